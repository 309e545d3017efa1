"""The DCT stem against scipy, its inverse, its fixed weights, and measured statistics."""

import copy
import json
import pickle

import numpy as np
import pytest
import timm
import torch
from scipy.fft import dctn

from helpers.smooth_pictures import pixels
from mlfm_zoo.dct import DCTStem, measure_statistics, select_channels

PLAIN = ([0.0] * 192, [1.0] * 192)


def by_scipy(image):
    """All 192 coefficients of pixels (3, H, W), padded by repetition, after JFIF's equations."""
    r, g, b = np.pad(image.double().numpy(), [(0, 0), *((0, -side % 8) for side in image.shape[1:])], mode='edge')
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = np.stack([y - 128, (b - y) / 1.772, (r - y) / 1.402])
    blocks = planes.reshape(3, y.shape[0] // 8, 8, y.shape[1] // 8, 8)
    out = dctn(blocks, axes=(2, 4), norm='ortho').transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(out.reshape(192, *out.shape[3:]))


@pytest.mark.parametrize('size', [(16, 24), (17, 23), (1, 9)])
def test_stem_against_scipy(size):
    raw, normalized = pixels(2, 3, *size)
    expected = torch.stack([by_scipy(image) for image in raw])
    stem = DCTStem('192', statistics=PLAIN)
    torch.testing.assert_close(stem(normalized).double(), expected, rtol=0, atol=2e-3)  # of values up to 1024
    torch.testing.assert_close(stem.double()(normalized.double()), expected, rtol=0, atol=1e-3)
    stem, chosen = DCTStem('24d'), list(select_channels('24d'))
    mean, std = (torch.tensor(values).double()[chosen, None, None] for values in stem.statistics)
    torch.testing.assert_close(
        stem(normalized).double(), (expected[:, chosen] - mean) / std, rtol=0, atol=5e-3)


@pytest.mark.parametrize('in_chans', [1, 3])
def test_inverse(in_chans):
    _, normalized = pixels(2, 3, 24, 40)
    stem, image = DCTStem('192', in_chans), normalized[:, :in_chans]
    torch.testing.assert_close(stem.inverse(stem(image)), image, rtol=0, atol=1e-4)
    few = DCTStem('24s', in_chans)
    assert few.inverse(few(image)).shape == image.shape


def test_stem_is_fixed():
    stem, image = DCTStem('48t'), torch.randn(2, 3, 32, 32)
    expected = stem(image)
    assert not stem.state_dict() and not list(stem.parameters())
    weight = stem.weight.clone()
    assert torch.equal(copy.deepcopy(stem).half().float().weight, weight)
    assert torch.equal(pickle.loads(pickle.dumps(stem))(image), expected)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = stem(image)
    assert inside.dtype == torch.float32 and torch.equal(inside, expected)
    torch.testing.assert_close(torch.jit.script(stem)(image), expected)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(stem, fullgraph=True, backend='eager')(image), expected)


def test_measured_statistics():
    batches = [(pixels(2, 3, 32, 40)[1] + 0.1 * i, torch.zeros(2)) for i in range(3)]
    statistics = measure_statistics(batches)
    stem = DCTStem('192', statistics=statistics)
    values = torch.cat([stem(batch).transpose(0, 1).flatten(1) for batch, _ in batches], 1)
    assert values.mean(1).abs().max() < 1e-2
    varying = torch.tensor(statistics.std) > 1e-2
    torch.testing.assert_close(values.std(1)[varying], torch.ones(int(varying.sum())), rtol=2e-2, atol=0)
    with pytest.raises(ValueError, match='no image'):
        measure_statistics([])
    model = timm.create_model('dct_resnet50_24s', dct_statistics=json.loads(json.dumps(statistics)))
    assert model.conv1.statistics == statistics


@pytest.mark.parametrize('statistics', [
    5, 'st.json', [[0] * 192], [[0] * 192, [0] * 192], [[0] * 192, [float('nan')] * 192], [[0], [1]]])
def test_statistics_are_checked(statistics):
    with pytest.raises(ValueError, match='two lists, 192 means and 192 standard deviations'):
        DCTStem(statistics=statistics)


@pytest.mark.parametrize('name', ['dct_mobilenetv2_100_24s', 'gssdnet_o1_050'])
def test_built_on_meta(name):
    """Values that no state dict has are there after each way of filling a network that was built without values."""
    model, images = timm.create_model(name, num_classes=3).eval(), torch.randn(1, 3, 64, 64)
    for fill in (
        lambda network: network.load_state_dict(model.state_dict(), assign=True),
        lambda network: network.to_empty(device='cpu').load_state_dict(model.state_dict()),
    ):
        with torch.device('meta'):
            network = timm.create_model(name, num_classes=3)
        fill(network)
        assert torch.equal(network.eval()(images), model(images))
