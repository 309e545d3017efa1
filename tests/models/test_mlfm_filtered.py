"""Any network that sees filtered images only, by a name and arguments that scripts can give."""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torchvision.models.feature_extraction import create_feature_extractor

from helpers.networks import lived_in
from mlfm_zoo.data.filters import FrequencyFilter

RADIUS = 3


def gaussian_by_numpy(images):
    """Low-pass filtered images; a second pass would change them again."""
    height, width = images.shape[-2:]
    distance = np.hypot((np.fft.fftfreq(height) * height)[:, None], np.fft.fftfreq(width) * width)
    spectrum = np.fft.fft2(images.double().numpy()) * np.exp(-distance ** 2 / (2 * RADIUS ** 2))
    return torch.from_numpy(np.fft.ifft2(spectrum).real).float()


def filtered(network, **kwargs):
    return timm.create_model('mlfm_filtered', network=network, radius=RADIUS, form='gaussian', **kwargs).eval()


@pytest.fixture(scope='module')
def pair():
    """A filtered network and the plain one with the same weights, images, and the right answer."""
    torch.manual_seed(0)
    model, plain = filtered('resnet10t', num_classes=5), timm.create_model('resnet10t', num_classes=5).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = plain(gaussian_by_numpy(images))
        assert (plain(images) - expected).abs().max() > 0.1
    return model, plain, images, expected


def test_names_are_those_of_the_network(pair):
    model, plain, _, _ = pair
    assert model.state_dict().keys() == plain.state_dict().keys() and isinstance(model, type(plain))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    groups, expected = (
        [(g['lr_scale'], g['weight_decay'], len(g['params'])) for g in param_groups_layer_decay(network)]
        for network in (model, plain))
    assert groups == expected and len(groups) > 4
    pretrained = filtered('test_mlfm_resnet', pretrained=True, pretrained_cfg=None)
    assert pretrained.pretrained_cfg['tag'] == 'digits'
    assert filtered('resnet10t', in_chans=1).conv1[0].in_channels == 1


def saved(model, folder):
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


@pytest.mark.parametrize('form', [
    lambda model, folder: model, lambda model, folder: copy.deepcopy(model),
    lambda model, folder: pickle.loads(pickle.dumps(model)),
    saved, lambda model, folder: saved(saved(model, folder), folder),
    lambda model, folder: torch.fx.symbolic_trace(model), lambda model, folder: torch.jit.script(model),
    lambda model, folder: torch.jit.trace(model, torch.randn(1, 3, 64, 64)),
    lambda model, folder: torch.export.export(model, (torch.randn(2, 3, 64, 64),)).module(),
    lambda model, folder: torch.nn.Sequential(*model.children()),
    lambda model, folder: lambda x: model.forward_head(model.forward_features(x)),
    lambda model, folder: lambda x: create_feature_extractor(model, ['fc'])(x)['fc']])
def test_every_form_is_filtered_once(form, pair, tmp_path):
    model, _, images, expected = pair
    with torch.no_grad():
        torch.testing.assert_close(form(model, tmp_path)(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('network, feature_cls', [
    *(('resnet10t', name) for name in ('list', 'dict', 'hook', 'fx', 'getter')), ('test_mlfm_resnet', 'getter')])
def test_features(network, feature_cls):
    options = dict(features_only=True, feature_cls=feature_cls)
    model, plain = filtered(network, **options), timm.create_model(network, **options).eval()
    for own, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        other.copy_(own)
    images = torch.randn(2, plain.in_chans, 64, 64)
    with torch.no_grad():
        actual, expected = model(images), plain(gaussian_by_numpy(images))
    if isinstance(expected, dict):
        actual, expected = list(actual.values()), list(expected.values())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_intermediates_and_another_classifier(pair):
    model, plain, images, _ = pair
    model, plain = copy.deepcopy(model), copy.deepcopy(plain)
    for network in (model, plain):
        network.reset_classifier(3)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_intermediates(images), plain.forward_intermediates(gaussian_by_numpy(images)),
            rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(images), plain(gaussian_by_numpy(images)), rtol=1e-4, atol=1e-4)
    model.train()(images).sum().backward()
    assert model.conv1[0].weight.grad.isfinite().all()


def test_memory_is_fused_behind_the_filter():
    torch.manual_seed(0)
    model = lived_in(filtered('test_mlfm_resnet'))
    plain = timm.create_model('test_mlfm_resnet').eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, plain.in_chans, 64, 64)
    with torch.no_grad():
        expected = plain(gaussian_by_numpy(images))
        fused = model.fuse()
        assert isinstance(fused.filter, FrequencyFilter) and isinstance(fused, type(plain))
        for network in (model, fused):
            torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('arguments, sentence', [
    ({}, 'needs the name of a network'), (dict(radius=3), 'needs the name of a network'),
    (dict(network='resnet18'), 'and a radius'), (dict(network='resnet18', radius=-1), '0 or more')])
def test_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        timm.create_model('mlfm_filtered', **arguments)
    assert '\n' not in str(error.value)
