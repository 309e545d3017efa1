"""The Haar low band and the bands of an image against PyWavelets."""

import numpy as np
import pytest
import pywt
import torch

from mlfm_zoo import image_bands, low_band

SIZES = [(1, 1), (2, 2), (7, 7), (8, 8), (5, 12), (33, 47), (64, 64), (225, 193), (256, 128)]


@pytest.mark.parametrize('height, width', SIZES)
def test_low_band_is_the_haar_ll_band(height, width):
    x = np.random.default_rng(0).standard_normal((2, 3, height, width))
    expected = pywt.dwt2(x, 'haar', mode='periodization')[0]
    np.testing.assert_allclose(low_band(torch.from_numpy(x)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize('level', range(1, 6))
@pytest.mark.parametrize('height, width', [(33, 47), (64, 64), (225, 193), (256, 128)])
def test_image_bands_are_the_haar_decomposition(height, width, level):
    image = np.random.default_rng(0).standard_normal((2, 3, height, width))
    bands = image_bands(torch.from_numpy(image), level)
    expected = image
    for _ in range(level):  # wavedec2 would warn that a 5-level transform of a small image is all border
        expected = pywt.dwt2(expected, 'haar', mode='periodization')[0]
    assert len(bands) == level + 1
    np.testing.assert_allclose(bands[level].numpy(), expected, atol=1e-11)


def test_rounding_down_drops_the_odd_border():
    x = torch.randn(1, 2, 9, 12)
    torch.testing.assert_close(low_band(x, ceil_mode=False), low_band(x[:, :, :8]))
    bands = image_bands(x, 2, [True, False])
    assert [tuple(b.shape[2:]) for b in bands] == [(9, 12), (5, 6), (2, 3)]
