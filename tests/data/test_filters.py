"""Filters against numpy's Fourier transform, and what holds of any filter."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from mlfm_zoo.data.filters import FrequencyFilter, bandpass, bandstop, full_radius, highpass, lowpass

SIZES = [(32, 32), (33, 47), (1, 8), (7, 7), (64, 31)]
sizes = pytest.mark.parametrize('size', SIZES)


def distances(height, width):
    """Distance of each coefficient of numpy's fft2 from DC, in cycles per image."""
    fy, fx = np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width
    return np.hypot(fy[:, None], fx)


def by_numpy(images, gain):
    spectrum = np.fft.fft2(images.double().numpy())
    out = np.fft.ifft2(spectrum * gain)
    assert np.abs(out.imag).max() < 1e-9  # real
    return torch.from_numpy(out.real)


@sizes
@pytest.mark.parametrize('form', ['ideal', 'gaussian'])
@pytest.mark.parametrize('radius', [0, 1, 2.5, 5, 9, 1000])
def test_against_numpy(size, form, radius):
    images, squares = torch.randn(2, 3, *size), distances(*size) ** 2
    wide, low = (1.0 * (squares <= r * r) if form == 'ideal' else np.exp(-squares / (2 * r * r or 1e-9))
                 for r in (radius, radius / 2))
    for actual, gain in (
        (lowpass(images, radius, form), wide), (highpass(images, radius, form), 1 - wide),
        (bandpass(images, radius / 2, radius, form), wide - low),
        (bandstop(images, radius / 2, radius, form), 1 - wide + low),
    ):
        torch.testing.assert_close(actual.double(), by_numpy(images, gain), rtol=0, atol=1e-5)


@sizes
def test_ends_of_the_range(size):
    images = torch.randn(2, 3, *size)
    assert lowpass(images, full_radius(*size)) is images  # not only equal
    assert lowpass(images, math.inf, 'gaussian') is images
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(lowpass(images, 0), mean, rtol=0, atol=1e-6)
    assert full_radius(*size) >= distances(*size).max() > full_radius(*size) - 1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype):
    images = torch.randn(2, 3, 17, 20).to(dtype)
    out = FrequencyFilter('lowpass', 4)(images)
    assert out.dtype == dtype and out.shape == images.shape
    expected = lowpass(images.double(), 4).to(dtype)
    torch.testing.assert_close(out, expected, rtol=torch.finfo(dtype).eps * 4, atol=max(torch.finfo(dtype).eps, 1e-6))
    assert torch.equal(FrequencyFilter('lowpass', 4)(images[0]), out[0])


def test_gradients():
    """A filter is its own adjoint: the gradient of half the energy that passes is what passes."""
    images = torch.randn(1, 2, 9, 12, dtype=torch.float64, requires_grad=True)
    low = lowpass(images, 3)
    [gradient] = torch.autograd.grad(0.5 * low.square().sum(), images)
    torch.testing.assert_close(gradient, low.detach())
    [gradient] = torch.autograd.grad(lowpass(images, 3).sum(), images)
    torch.testing.assert_close(gradient, torch.ones_like(images))  # a sum is its DC, which passes


def test_pixels():
    """Filtering pixels and normalizing is what the option does; it differs in DC alone."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    m, s = (torch.tensor(v)[:, None, None] for v in (mean, std))
    pixels = torch.rand(2, 3, 32, 33)
    for kind, radius in (('lowpass', 4), ('highpass', 4), ('bandpass', (2, 6)), ('bandstop', (2, 6))):
        expected = (FrequencyFilter(kind, radius)(pixels) - m) / s
        actual = FrequencyFilter(kind, radius, 'ideal', mean, std)((pixels - m) / s)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        without = FrequencyFilter(kind, radius)((pixels - m) / s)
        torch.testing.assert_close(
            actual - actual.mean((2, 3), keepdim=True), without - without.mean((2, 3), keepdim=True),
            rtol=1e-4, atol=1e-5)


def test_as_a_module():
    module = FrequencyFilter('bandpass', (2, 6))
    images = torch.randn(2, 3, 32, 32)
    assert not module.state_dict() and repr(module).startswith('FrequencyFilter(bandpass, radius=(2.0, 6.0)')
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(module)))(images), module(images))
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend='eager')(images), module(images))
    spectrum = torch.fft.rfft2(images)
    assert torch.equal(module(images, spectrum), module(images))
    assert module(images.to(memory_format=torch.channels_last)).shape == images.shape


@pytest.mark.parametrize('arguments, sentence', [
    (('lowpass', -1), 'expected one number of cycles per image, 0 or more'), (('lowpass', math.nan), '0 or more'),
    (('lowpass', (1, 2)), 'expected one number'), (('bandpass', 3), 'expected two numbers, lower and upper'),
    (('bandpass', (3, 1)), 'lower and upper'), (('allpass', 1), "'allpass', expected one of lowpass"),
    (('lowpass', 1, 'box'), 'expected one of ideal, gaussian'), (('lowpass', 1, 'ideal', (0.5,)), 'give both')])
def test_bad_filters(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        FrequencyFilter(*arguments)


@pytest.mark.parametrize('images', [
    torch.zeros(4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 3, 0, 4)])
def test_bad_images(images):
    with pytest.raises(ValueError, match='The images'):
        lowpass(images, 1)
