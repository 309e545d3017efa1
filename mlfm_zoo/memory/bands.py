"""The Haar low band of a feature, and the low bands of an image.

Results equal those of the authors' code, which computes them differently: it runs a four-band filter bank and drops
three bands, and it makes each band of the image from the image itself. Here the low band is one convolution or pooling,
and each band is made from the one before. Where a trunk rounds odd sides down, as ConvNeXt's patch stem does, so does
the low band.
"""

from typing import List, Optional

import torch
import torch.nn.functional as F

__all__ = ['image_bands', 'low_band']


def low_band(x: torch.Tensor, ceil_mode: bool = True) -> torch.Tensor:
    """LL band of a one-level orthonormal 2-D Haar transform ('periodization' mode).

    Args:
        x: Feature or image (N, C, H, W).
        ceil_mode: How an odd side is halved: True repeats its last row or column, as 'periodization' does; False
            drops it, as a strided convolution without padding does.

    Returns:
        Low band (N, C, H / 2, W / 2), odd sides rounded up or, without `ceil_mode`, down.

    Examples:
        >>> low_band(torch.ones(1, 3, 5, 4)).shape
        torch.Size([1, 3, 3, 2])
    """
    # The Haar LL coefficient of a 2x2 cell is half its sum, that is, twice its mean. At an odd border, ceil_mode
    # averages the existing pixels; the extended cell repeats them and has the same mean.
    height, width = x.shape[-2:]
    if ceil_mode and not (_is_even(height) and _is_even(width)):
        return 2 * F.avg_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)
    # A convolution, since inference engines then keep the blocked memory layout of the trunk's convolutions. They
    # convert it for a pooling with ceil_mode and for a multiplication.
    kernels = torch.full((x.shape[1], 1, 2, 2), 0.5, device=x.device, dtype=x.dtype)
    return F.conv2d(x, kernels, stride=2, groups=x.shape[1])


def _is_even(side: int) -> bool:
    # A dynamic side of a trace or an export is not an int, and could be odd.
    return isinstance(side, int) and side % 2 == 0


def image_bands(image: torch.Tensor, num_levels: int, ceil_modes: Optional[List[bool]] = None) -> List[torch.Tensor]:
    """Low bands of an image: A_0 is the image and A_k = LL(A_{k-1}).

    Args:
        image: Image batch (N, C, H, W).
        num_levels: Deepest level to compute.
        ceil_modes: How odd sides are halved at each level, see `low_band`; rounded up if None.

    Returns:
        `num_levels + 1` tensors, of which the k-th is A_k, (N, C, H / 2^k, W / 2^k).

    Examples:
        >>> [tuple(band.shape[2:]) for band in image_bands(torch.randn(1, 3, 64, 48), num_levels=2)]
        [(64, 48), (32, 24), (16, 12)]
    """
    bands = [image]
    for level in range(num_levels):
        bands.append(low_band(bands[level], True if ceil_modes is None else ceil_modes[level]))
    return bands
