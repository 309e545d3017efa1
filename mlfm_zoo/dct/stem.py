"""The DCT coefficients of an image's 8 x 8 blocks, as one fixed convolution.

Paper: Learning in the Frequency Domain (CVPR 2020), https://arxiv.org/abs/2002.12416, section 3.1.

Normalized RGB -> 0 to 255 -> YCbCr (JPEG's, BT.601 full range) -> -128 -> orthonormal DCT-II of each block -> a subset
of the 192 channels -> (x - mean) / std. Every step is affine, so one convolution of kernel and stride 8 does them all.
"""

import json
import math
from pathlib import Path
from typing import Any, Dict, Iterable, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .._buffers import FixedBuffers
from .channels import NUM_CHANNELS, PLANE, select_channels

__all__ = [
    'DCTStem', 'Statistics', 'YCbCrConv2d', 'YCbCrStem', 'as_statistics', 'dct_matrix', 'measure_statistics',
]

BLOCK = 8

# Y, Cb and Cr of R, G and B, after JFIF; Cb and Cr without their shift of 128, which the level shift removes again.
YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


class Statistics(NamedTuple):
    """Mean and standard deviation of the 192 coefficients, for pixels from 0 to 255."""
    mean: Tuple[float, ...]
    std: Tuple[float, ...]


UNSCALED = Statistics((0.,) * NUM_CHANNELS, (1.,) * NUM_CHANNELS)  # coefficients in JPEG's units


def as_statistics(statistics: Optional[Sequence[Sequence[float]]]) -> Statistics:
    """Check statistics, with a ValueError if malformed; None gives the released ones.

    The released deviations look like those of each image's mean, and leave high frequencies far from unit variance. To
    train from scratch, `measure_statistics` is better.
    """
    if statistics is None:
        released = json.loads(Path(__file__).with_name('released_statistics.json').read_text(encoding='utf-8'))
        statistics = released['mean'], released['std']
    try:
        mean, std = (tuple(map(float, values)) for values in statistics)
    except (TypeError, ValueError):
        mean = std = ()
    if not len(mean) == len(std) == NUM_CHANNELS or min(std) <= 0 or not all(map(math.isfinite, mean + std)):
        raise ValueError(
            'The statistics are not two lists, 192 means and 192 standard deviations above 0: give what '
            'measure_statistics returns.')
    return Statistics(mean, std)


def dct_matrix() -> torch.Tensor:
    """The orthonormal DCT-II of 8 values, as a matrix (frequency, place) in float64."""
    places = torch.arange(BLOCK, dtype=torch.float64) + 0.5
    matrix = torch.cos(math.pi / BLOCK * places * torch.arange(BLOCK, dtype=torch.float64)[:, None]) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


@torch.compiler.assume_constant_result  # torch 2.6 cannot trace this function
def _knows_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@torch.fx.wrap  # a trace cannot ask for a device
def exact_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int) -> torch.Tensor:
    """Convolve in float32 inside autocast, and in the arguments' dtype elsewhere."""
    if not torch.jit.is_scripting():
        device = x.device.type
        if _knows_autocast(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return F.conv2d(x.float(), weight.float(), bias.float(), stride=stride)
    return F.conv2d(x, weight, bias, stride=stride)


class DCTStem(FixedBuffers):
    """Computes normalized DCT coefficients of normalized images.

    Images whose sides are not multiples of 8 are padded by repeating their right and lower edges, as JPEG encoders do.
    The weights follow from the arguments, so they are buffers outside of state dicts. Autocast leaves them in float32.

    Args:
        channels: Coefficients to compute, see `select_channels`.
        in_chans: Channels of the image: 3, RGB, or 1, gray.
        mean: Mean that the images are normalized with, for each of their channels.
        std: Standard deviation that they are normalized with.
        statistics: Mean and standard deviation of the 192 coefficients; the released ones if None.
        device: Device of the weights.
        dtype: Dtype of the weights.

    Raises:
        ValueError: An argument is out of range.

    Examples:
        >>> stem = DCTStem('24s')
        >>> stem(torch.randn(1, 3, 448, 448)).shape
        torch.Size([1, 24, 56, 56])
    """

    weight: torch.Tensor
    bias: torch.Tensor
    __constants__ = ['kernel_size']
    kernel_size = BLOCK

    def __init__(
            self,
            channels: Union[str, int, Sequence[int]] = '192',
            in_chans: int = 3,
            mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
            std: Sequence[float] = IMAGENET_DEFAULT_STD,
            statistics: Optional[Sequence[Sequence[float]]] = None,
            device: Any = None,
            dtype: Any = None,
    ):
        super().__init__()
        if in_chans not in (1, 3) or min(len(mean), len(std)) < in_chans or min(std) <= 0:
            raise ValueError(
                f'in_chans, mean and std are {in_chans!r}, {tuple(mean)} and {tuple(std)}, expected 3 for RGB or 1 for '
                'gray images, with a mean and a deviation above 0 for each channel.')
        self.channels = select_channels(channels)
        self.out_channels = len(self.channels)
        self.in_chans = in_chans
        self.mean, self.std = tuple(mean[:in_chans]), tuple(std[:in_chans])
        self.statistics = as_statistics(statistics)
        shape = (self.out_channels, in_chans, self.kernel_size, self.kernel_size)
        self.register_buffer('weight', torch.empty(shape, device=device, dtype=dtype), persistent=False)
        self.register_buffer('bias', torch.empty(shape[:1], device=device, dtype=dtype), persistent=False)
        self.init_non_persistent_buffers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute coefficients (N, C, ceil(H / 8), ceil(W / 8)) of x (N, in_chans, H, W)."""
        height, width = x.shape[-2], x.shape[-1]
        block = self.kernel_size
        x = F.pad(x, (0, (block - width % block) % block, 0, (block - height % block) % block), mode='replicate')
        return exact_conv(x, self.weight, self.bias, block)

    @torch.jit.ignore
    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Compute images from coefficients, with 0 for missing ones; exact with all 192.

        Args:
            coefficients: What the stem returns (N, C, h, w).

        Returns:
            Normalized images (N, in_chans, 8 h, 8 w), or (N, in_chans, h, w) for `YCbCrStem`, without clipping.
        """
        raw = DCTStem('192', self.in_chans, self.mean, self.std, UNSCALED).fixed_buffers()
        chosen = list(self.channels)
        mean, std = (torch.tensor(values, dtype=torch.float64)[chosen, None, None] for values in self.statistics)
        full = torch.zeros(len(coefficients), NUM_CHANNELS, *coefficients.shape[2:], dtype=torch.float64)
        full[:, chosen] = coefficients.cpu().double() * std + mean
        pixels_of = torch.linalg.pinv(raw['weight'].flatten(1))  # (in_chans * 64, 192)
        blocks = torch.einsum('pk,nkhw->nphw', pixels_of, full - raw['bias'][:, None, None])
        step = BLOCK // self.kernel_size
        return F.pixel_shuffle(blocks, BLOCK)[..., ::step, ::step].to(coefficients)

    def fixed_buffers(self) -> Dict[str, torch.Tensor]:
        """Compute the weight (C, in_chans, 8, 8) and the bias (C,) of all steps, in float64."""
        dct = dct_matrix()
        color = torch.tensor(YCBCR if self.in_chans == 3 else ((1.,), (0.,), (0.,)), dtype=torch.float64)
        basis = torch.einsum('uy,vx->uvyx', dct, dct).flatten(0, 1)  # (64, 8, 8)
        weight = torch.einsum('pc,kyx->pkcyx', color, basis).flatten(0, 1)  # of pixels from 0 to 255
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        bias = 255 * torch.einsum('kcyx,c->k', weight, mean)
        bias[0] -= 128 * BLOCK  # the level shift of Y; those of Cb and Cr are left out of YCBCR
        weight = 255 * weight * std[:, None, None]
        chosen = list(self.channels)
        of_mean, of_std = (torch.tensor(values, dtype=torch.float64)[chosen] for values in self.statistics)
        return dict(weight=weight[chosen] / of_std[:, None, None, None], bias=(bias[chosen] - of_mean) / of_std)

    def extra_repr(self) -> str:
        return f'{self.in_chans}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.kernel_size}'


class YCbCrStem(DCTStem):
    """Computes normalized Y, Cb and Cr of normalized images, at their size.

    A pixel is treated as a block of that color, whose only nonzero coefficients are the three constant ones. Their
    statistics normalize it. Arguments are those of `DCTStem`, except `channels`.
    """

    kernel_size = 1

    def __init__(self, **kwargs: Any):
        super().__init__((0, PLANE, 2 * PLANE), **kwargs)

    def fixed_buffers(self) -> Dict[str, torch.Tensor]:
        values = super().fixed_buffers()
        return dict(values, weight=values['weight'].sum((2, 3), keepdim=True))


class YCbCrConv2d(nn.Conv2d):
    """Convolution on Y, Cb and Cr of images (N, in_chans, H, W), from a stem.

    It is the first one of the paper's YCbCr baseline. Arguments are those of `torch.nn.Conv2d`, and the stem.
    """

    def __init__(self, *args: Any, stem: YCbCrStem, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stem = stem

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(self.stem(x), self.weight, self.bias)


def measure_statistics(
        loader: Iterable[Any],
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Statistics:
    """Measure the mean and standard deviation of each coefficient over images.

    Args:
        loader: Batches of normalized RGB images (N, 3, H, W), alone or followed by their labels.
        mean: Mean that the images are normalized with.
        std: Standard deviation that they are normalized with.

    Returns:
        The statistics, for `dct_statistics` of a network.

    Raises:
        ValueError: There is no image.

    Examples:
        >>> statistics = measure_statistics([torch.randn(2, 3, 64, 64)])
        >>> model = timm.create_model('dct_mobilenetv2_100_6s', dct_statistics=statistics)
    """
    stem = DCTStem('192', 3, mean, std, UNSCALED).double()
    count, total, squares = 0, torch.zeros(NUM_CHANNELS).double(), torch.zeros(NUM_CHANNELS).double()
    for batch in loader:
        images = batch if torch.is_tensor(batch) else batch[0]
        coefficients = stem.to(images.device)(images.double()).transpose(0, 1).flatten(1).cpu()
        count += coefficients.shape[1]
        total += coefficients.sum(1)
        squares += coefficients.square().sum(1)
    if not count:
        raise ValueError('There is no image to measure the statistics of: give a loader that has some.')
    average = total / count
    deviation = (squares / count - average.square()).clamp(min=1e-12).sqrt()
    return Statistics(tuple(average.tolist()), tuple(deviation.tolist()))
