"""An analysis of two networks on a folder of digits."""

import pytest
import timm
import torch

from digits import write_digits
from mlfm_zoo import frequency

MODEL = 'test_mlfm_resnet'


@pytest.fixture(scope='package')
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('digits'), 10, 60) / 'val'


@pytest.fixture(scope='package')
def models():
    """The network that knows digits, and one of another size of image that knows nothing."""
    torch.manual_seed(0)
    other = timm.create_model('resnet10t', num_classes=10)
    other.pretrained_cfg = dict(other.pretrained_cfg, input_size=(3, 33, 33))
    return {MODEL: timm.create_model(MODEL, pretrained=True), 'other': other}


@pytest.fixture(scope='package')
def analysed(data, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp('analysis')
    probe = frequency.Probe(models, data, batch_size=16, num_workers=0)
    frequency.analyse(probe, folder, radii=[1, 3, 8])
    return probe, folder
