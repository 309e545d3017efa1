"""Arguments of segmentation.create_model."""

import pytest

from mlfm_zoo.segmentation import create_model


@pytest.mark.parametrize('kwargs, message', [
    (dict(name='fcn4s'), "name is 'fcn4s', expected one of fcn32s"),
    (dict(name='fcn8s', encoder=None), "only 'unet' has one of its own"),
    (dict(name='unet', encoder=None, pretrained=True), 'has no pretrained weights'),
    (dict(name='unet', encoder=None, memory_update='sum'), "memory_update is 'sum', expected 'add' or 'cat'"),
    (dict(name='unet', encoder=None, memory=False, memory_decoder=True), 'memory_decoder is True without memory'),
    (dict(name='fcn8s', head='mlp'), "head is 'mlp', expected 'conv'"),
    (dict(name='fcn8s', encoder='vgg11', memory=True), 'memory was not attached'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{'encoder': 'test_mlfm_resnet', **kwargs})
