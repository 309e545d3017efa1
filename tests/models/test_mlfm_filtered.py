"""Any network that sees filtered images only, by a name and arguments that scripts can give."""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from mlfm_zoo.data.filters import lowpass


def test_filtered_network():
    model = timm.create_model(
        'mlfm_filtered', network='test_mlfm_resnet', radius=3, pretrained=True, pretrained_cfg=None).eval()
    plain = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    assert model.pretrained_cfg['tag'] == 'digits'
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


def by_numpy(images, radius):
    """Low-pass filtered images, by numpy's transform."""
    height, width = images.shape[-2:]
    distance = np.hypot((np.fft.fftfreq(height) * height)[:, None], np.fft.fftfreq(width) * width)
    return torch.from_numpy(np.fft.ifft2(np.fft.fft2(images.double().numpy()) * (distance <= radius)).real).float()


@pytest.fixture(scope='module')
def filtered():
    torch.manual_seed(0)
    return timm.create_model('mlfm_filtered', network='resnet10t', radius=3, num_classes=7).eval()


@pytest.mark.parametrize('consume', [
    torch.fx.symbolic_trace, torch.jit.script, lambda m: torch.export.export(m, (torch.randn(2, 3, 64, 64),)).module()])
def test_consumers_see_the_filter(filtered, consume):
    images = torch.randn(2, 3, 64, 64)
    expected = filtered.network(by_numpy(images, 3))
    assert (filtered.network(images) - expected).abs().max() > 1e-2
    torch.testing.assert_close(consume(filtered)(images), expected, rtol=1e-4, atol=1e-4)


def test_features_and_classifier(filtered):
    images = torch.randn(2, 3, 64, 64)
    seen = by_numpy(images, 3)
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(filtered.forward_features(images), filtered.network.forward_features(seen), **close)
    last = filtered.forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(last, filtered.network.forward_features(seen), **close)
    extractor = timm.create_model('mlfm_filtered', network='resnet10t', radius=3, features_only=True).eval()
    assert extractor.feature_info.channels() == [64, 64, 128, 256, 512]
    for feature, expected in zip(extractor(images), extractor.network(seen), strict=True):
        torch.testing.assert_close(feature, expected, **close)
    model = copy.deepcopy(filtered)
    model.reset_classifier(5)
    assert model.num_classes == 5 and model(images).shape == (2, 5)


def test_saved_folder(filtered, tmp_path):
    """The folder rebuilds network and filter; a parent's state dict, and the network's own, load too."""
    timm.models.save_for_hf(filtered, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images), filtered(images)) and loaded.num_classes == 7
    parent, other = torch.nn.Sequential(filtered), torch.nn.Sequential(copy.deepcopy(filtered))
    other[0].network.fc.weight.data.zero_()
    other.load_state_dict(parent.state_dict())
    assert torch.equal(other(images), filtered(images))
    other[0].load_state_dict(timm.create_model('resnet10t', num_classes=7).state_dict())


def test_layer_decay_is_the_networks(filtered):
    """timm groups parameters by name: the groups are as many, and of the same sizes, as without a filter."""
    sizes = [
        [(group['lr_scale'], group['weight_decay'], len(group['params'])) for group in param_groups_layer_decay(model)]
        for model in (filtered, filtered.network)]
    assert sizes[0] == sizes[1] and len(sizes[0]) > 4


@pytest.mark.parametrize('arguments, sentence', [
    ({}, 'needs the name of a network'), (dict(radius=3), 'needs the name of a network'),
    (dict(network='resnet18'), 'and a radius'), (dict(network='resnet18', radius=-1), '0 or more')])
def test_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        timm.create_model('mlfm_filtered', **arguments)
    assert '\n' not in str(error.value)
