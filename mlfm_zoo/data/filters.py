"""Filters of an image batch by spatial frequency.

Paper: Frequency and Scale Perspectives of Feature Extraction, https://arxiv.org/abs/2302.12477, whose low-pass filter
keeps the Fourier coefficients within a radius of DC and whose high-pass filter keeps the others.

The radius is in cycles per image: a coefficient of u cycles over the width and v over the height lies sqrt(u^2 + v^2)
from DC, for any sides of the image. In an image that is not square, a number of cycles is a different wavelength on
each axis.

The authors' released probe measures the distance from (N - 1) / 2 after the shift of even sides, half a coefficient off
DC. Its filters are not symmetric and their output is not real. Here the distance is from DC itself.
"""

import math
from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn

__all__ = ['FORMS', 'KINDS', 'FrequencyFilter', 'bandpass', 'bandstop', 'full_radius', 'highpass', 'lowpass']

KINDS = ('lowpass', 'highpass', 'bandpass', 'bandstop')
FORMS = ('ideal', 'gaussian')

Radius = Union[float, Tuple[float, float]]


class FrequencyFilter(nn.Module):
    """Keeps one band of the spatial frequencies of images.

    The ideal low-pass filter of radius r keeps the coefficients at most r from DC. The Gaussian one weights those at
    distance d with exp(-d^2 / (2 r^2)). The other kinds follow from it: high-pass is the image minus low-pass,
    band-pass is low-pass of the upper radius minus low-pass of the lower, and band-stop is the image minus band-pass.

    Radius 0 keeps only DC, the mean of each channel. The low-pass filter returns its input itself if the radius reaches
    every coefficient (see `full_radius`); in Gaussian form, if it is `math.inf`.

    The module has no parameters and no buffers, and takes single images too. In a list of transforms it goes after the
    one that makes a tensor.

    Args:
        kind: 'lowpass', 'highpass', 'bandpass' or 'bandstop'.
        radius: Radius in cycles per image, 0 or more; for the bands a pair, lower and upper.
        form: 'ideal' or 'gaussian'.
        mean: Mean that the images were normalized with, one number per channel. With `mean` and `std`, pixels are
            filtered instead of the normalized tensor. The two differ in DC only: a filter that removes DC then leaves
            pixels around 0, black, instead of around the mean.
        std: Standard deviation that they were normalized with.

    Raises:
        ValueError: Kind or form is unknown, a radius is missing, negative or not a number, the lower is above the
            upper, or only one of `mean` and `std` is given.

    Examples:
        >>> low, high = FrequencyFilter('lowpass', 5), FrequencyFilter('highpass', 5)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> torch.allclose(low(images) + high(images), images, atol=1e-5)
        True
    """

    shift: List[float]

    def __init__(
            self,
            kind: str,
            radius: Radius,
            form: str = 'ideal',
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
    ):
        super().__init__()
        for name, value, known in (('kind', kind, KINDS), ('form', form, FORMS)):
            if value not in known:
                raise ValueError(f'The {name} of a filter is {value!r}, expected one of {", ".join(known)}.')
        if (mean is None) != (std is None):
            raise ValueError('Only one of mean and std is given: give both to filter pixels, or none.')
        self.kind = kind
        self.form = form
        lower, upper = radius if isinstance(radius, (list, tuple)) else (0., radius)
        self.lower, self.upper = float(lower), float(upper)
        is_band = kind in ('bandpass', 'bandstop')
        if isinstance(radius, (list, tuple)) != is_band or not 0 <= self.lower <= self.upper:  # neither is nan
            expected = 'two numbers, lower and upper,' if is_band else 'one number'
            raise ValueError(
                f'The radius of a {kind} filter is {radius!r}, expected {expected} of cycles per image, 0 or more.')
        self.shift = [] if mean is None or std is None else [m / s for m, s in zip(mean, std)]

    def forward(self, images: torch.Tensor, spectrum: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Filter images.

        Args:
            images: Image batch (N, C, H, W), or one image (C, H, W), of a floating-point dtype. Half precision is
                filtered in float32.
            spectrum: `torch.fft.rfft2` of the images in that precision, which several filters can share; computed here
                if None.

        Returns:
            The filtered images, of the shape, dtype and device of the input.

        Raises:
            ValueError: The images have another number of dimensions, no pixels, or are not floating-point.
        """
        return _filter(images, spectrum, self.kind, self.lower, self.upper, self.form, self.shift)

    def extra_repr(self) -> str:
        radius = self.upper if self.kind in ('lowpass', 'highpass') else (self.lower, self.upper)
        return f'{self.kind}, radius={radius}, form={self.form}{", pixels" if self.shift else ""}'


def lowpass(images: torch.Tensor, radius: float, form: str = 'ideal') -> torch.Tensor:
    """Keep the low frequencies, see `FrequencyFilter`.

    Args:
        images: Image batch (N, C, H, W), or one image.
        radius: Radius in cycles per image.
        form: 'ideal' or 'gaussian'.

    Returns:
        The filtered images.

    Examples:
        >>> lowpass(torch.randn(3, 32, 32), radius=5).shape
        torch.Size([3, 32, 32])
    """
    return FrequencyFilter('lowpass', radius, form)(images)


def highpass(images: torch.Tensor, radius: float, form: str = 'ideal') -> torch.Tensor:
    """Keep what `lowpass` of the same arguments removes.

    Args:
        images: Image batch (N, C, H, W), or one image.
        radius: Radius in cycles per image.
        form: 'ideal' or 'gaussian'.

    Returns:
        The filtered images.

    Examples:
        >>> highpass(torch.ones(3, 32, 32), radius=5).abs().max() < 1e-6  # a constant image is all DC
        tensor(True)
    """
    return FrequencyFilter('highpass', radius, form)(images)


def bandpass(images: torch.Tensor, lower: float, upper: float, form: str = 'ideal') -> torch.Tensor:
    """Keep frequencies above `lower` and up to `upper`, see `FrequencyFilter`.

    Args:
        images: Image batch (N, C, H, W), or one image.
        lower: Lower radius in cycles per image.
        upper: Upper radius in cycles per image.
        form: 'ideal' or 'gaussian'.

    Returns:
        The filtered images.

    Examples:
        >>> bandpass(torch.randn(3, 32, 32), lower=5, upper=10).shape
        torch.Size([3, 32, 32])
    """
    return FrequencyFilter('bandpass', (lower, upper), form)(images)


def bandstop(images: torch.Tensor, lower: float, upper: float, form: str = 'ideal') -> torch.Tensor:
    """Keep what `bandpass` of the same arguments removes.

    Args:
        images: Image batch (N, C, H, W), or one image.
        lower: Lower radius in cycles per image.
        upper: Upper radius in cycles per image.
        form: 'ideal' or 'gaussian'.

    Returns:
        The filtered images.

    Examples:
        >>> images = torch.randn(3, 32, 32)
        >>> torch.allclose(bandstop(images, 5, 10) + bandpass(images, 5, 10), images, atol=1e-5)
        True
    """
    return FrequencyFilter('bandstop', (lower, upper), form)(images)


def full_radius(height: int, width: int) -> int:
    """The smallest whole radius that reaches every coefficient, in cycles per image.

    Args:
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        The radius.

    Examples:
        >>> full_radius(224, 224)
        159
    """
    return math.ceil(math.sqrt((height // 2) ** 2 + (width // 2) ** 2))


@torch.fx.wrap  # a trace does not know the shape of images
def _filter(
        images: torch.Tensor,
        spectrum: Optional[torch.Tensor],
        kind: str,
        lower: float,
        upper: float,
        form: str,
        shift: List[float],
) -> torch.Tensor:
    """Filter images, see `FrequencyFilter.forward`."""
    if images.dim() not in (3, 4) or not images.numel() or not images.is_floating_point():
        raise ValueError(
            f'The images are a tensor of shape {list(images.shape)} and {images.dtype}, expected floating-point '
            'numbers in a batch (N, C, H, W) or an image (C, H, W).')
    height, width = images.shape[-2], images.shape[-1]
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    filtered = images
    reach = math.inf if form == 'gaussian' else float(full_radius(height, width))
    if kind != 'lowpass' or upper < reach:  # else it keeps everything
        # factors of the coefficients of rfft2, (H, W // 2 + 1); on the CPU, as devices may lack float64
        y = torch.arange(height, dtype=torch.float64, device='cpu')
        x = torch.arange(width // 2 + 1, dtype=torch.float64, device='cpu')
        distance = torch.sqrt(torch.minimum(y, height - y)[:, None].square() + x.square())
        gain = _low_gain(distance, upper, form)
        if kind in ('bandpass', 'bandstop'):
            gain = gain - _low_gain(distance, lower, form)
        if kind in ('highpass', 'bandstop'):
            gain = 1 - gain
        if spectrum is None:
            spectrum = torch.fft.rfft2(images.to(dtype))
        # times 1: the gradient of a sum is one expanded value, for which irfft2 of torch 2.6 fails on CPUs
        spectrum = spectrum * gain.to(images.device, dtype)
        filtered = (torch.fft.irfft2(spectrum, s=[height, width]) * 1).to(images.dtype)
    if len(shift) > 0 and kind in ('highpass', 'bandpass'):
        # normalizing maps a pixel of 0 to -mean / std, and these filters remove DC
        filtered = filtered - torch.tensor(shift, dtype=images.dtype, device=images.device)[:, None, None]
    return filtered


def _low_gain(distance: torch.Tensor, radius: float, form: str) -> torch.Tensor:
    if form == 'ideal' or radius == 0 or math.isinf(radius):
        return (distance <= radius).double()
    return torch.exp(-distance.square() / (2 * radius ** 2))
