"""Any network that sees filtered images only, by a name and arguments that scripts can give."""

import copy
import pickle

import pytest
import timm
import torch

from mlfm_zoo.data.filters import lowpass


def test_filtered_network():
    model = timm.create_model(
        'mlfm_filtered', network='test_mlfm_resnet', radius=3, pretrained=True, pretrained_cfg=None).eval()
    plain = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    assert type(model) is type(plain) and model.pretrained_cfg['tag'] == 'digits'
    assert model.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(2, 1, 64, 64).expand(-1, plain.pretrained_cfg['input_size'][0], -1, -1)
    with torch.inference_mode():
        expected = plain(lowpass(image, 3))
        assert not torch.allclose(plain(image), expected)
        for form in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(form(image), expected)
        band = timm.create_model('mlfm_filtered', network='resnet18', radius=(2, 9), kind='bandpass', num_classes=7)
        assert band(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    model.train()(image).sum().backward()
    gray = timm.create_model('mlfm_filtered', network='resnet18', radius=4, in_chans=1)
    assert gray.conv1.in_channels == 1


@pytest.mark.parametrize('arguments, sentence', [
    ({}, 'needs the name of a network'), (dict(radius=3), 'needs the name of a network'),
    (dict(network='resnet18'), 'and a radius'), (dict(network='resnet18', radius=-1), '0 or more')])
def test_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        timm.create_model('mlfm_filtered', **arguments)
    assert '\n' not in str(error.value)
