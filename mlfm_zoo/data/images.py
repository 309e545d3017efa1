"""The one place that decodes image files."""

import os
from pathlib import Path
from typing import IO, Optional, Union

from PIL import Image, ImageOps

__all__ = ['UnreadableImage', 'convert_pixels', 'is_signed', 'open_image']

# Largest ratio of the sides. Transforms resize the shorter side to a few hundred pixels and the longer one with it, so
# a file of 1 x 200,000 pixels, which has 500 bytes, would fill the memory.
MAX_ASPECT = 200

SAMPLE_FORMAT, SIGNED = 339, 2  # tag of TIFF, and its value for signed numbers


class UnreadableImage(ValueError):
    """An image file cannot be decoded, or networks cannot take its pixels."""


def open_image(
        file: Union[str, Path, IO[bytes]],
        mode: Optional[str] = 'RGB',
        name: Optional[Union[str, Path]] = None,
        upright: bool = False,
) -> Image.Image:
    """Decode an image file completely.

    Args:
        file: Path of the file, or the open file.
        mode: Pillow mode to convert to, by `convert_pixels`; None keeps the file's own.
        name: Name of the file in errors; taken from `file` if None.
        upright: Whether to apply the EXIF orientation. Annotations refer to the upright image; timm ignores the
            orientation when it classifies.

    Returns:
        The decoded image. Its file is closed if it was opened here.

    Raises:
        UnreadableImage: The file is missing, damaged or not an image, or cannot be converted.

    Examples:
        >>> open_image('photo.jpg').size
        (640, 427)
    """
    if name is None:
        name = file if isinstance(file, (str, os.PathLike)) else getattr(file, 'name', 'The file')
    try:
        with Image.open(file) as image:
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError as error:
        raise UnreadableImage(f'There is no image at {name}: give the path of an image file.') from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImage(f'{name} has more than {limit:,} pixels: make it smaller, or repair it.') from error
    except Exception as error:  # for damaged files, Pillow's decoders raise exceptions of all kinds
        if isinstance(error, OSError) and error.strerror:
            raise UnreadableImage(f'{name} cannot be read ({error.strerror}): check the file.') from error
        raise UnreadableImage(f'{name} cannot be decoded as an image: repair or remove it.') from error
    return image if mode is None else convert_pixels(image, mode, name)


def convert_pixels(image: Image.Image, mode: str, name: Union[str, Path]) -> Image.Image:
    """Convert an image to 8 bits a channel; 16-bit gray is scaled, not clipped.

    Args:
        image: The image as `open_image` decoded it.
        mode: Pillow mode to convert to, such as 'RGB' or 'L'.
        name: Name of the file in errors.

    Returns:
        The image in this mode.

    Raises:
        UnreadableImage: The range of the pixels is unknown, as for floats, or the image is a thin strip.

    Examples:
        >>> convert_pixels(Image.new('I;16', (64, 64)), 'L', 'scan.png')
        Traceback (most recent call last):
        mlfm_zoo.data.images.UnreadableImage: scan.png has pixels of mode I;16, ...
    """
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise UnreadableImage(
            f'{name} is {image.width} x {image.height} pixels, expected sides that differ by a factor of at most '
            f'{MAX_ASPECT}: crop it.')
    wide = image.mode.startswith(('I', 'F'))
    if is_signed(image) or wide and not _is_gray_of_16_bits(image):
        raise UnreadableImage(
            f'{name} has pixels of mode {image.mode}, whose range is unknown, expected 8 or 16 bits a channel: '
            'convert it.')
    if wide:
        image = image.convert('I').point(lambda value: value / 257 + 0.5).convert('L')  # 65535 = 257 * 255
    try:
        return image if mode == image.mode else image.convert(mode)
    except ValueError as error:
        raise UnreadableImage(f'{name} has pixels of mode {image.mode}, expected gray or RGB: convert it.') from error


def is_signed(image: Image.Image) -> bool:
    """Whether an image is a TIFF of signed numbers.

    Pillow reads those of 8 bits as unsigned.

    Args:
        image: an opened image.

    Returns:
        Whether its samples are signed.

    Examples:
        >>> is_signed(Image.new('L', (8, 8)))
        False
    """
    return SIGNED in getattr(image, 'tag_v2', {}).get(SAMPLE_FORMAT, ())


def _is_gray_of_16_bits(image: Image.Image) -> bool:
    """Whether pixels range from 0 (black) to 65535 (white), which not all TIFFs do."""
    if image.format == 'TIFF':  # whose pixels may be signed, of 12 bits or inverted
        bits_per_sample, photometric = 258, 262
        tags = image.tag_v2  # type: ignore[attr-defined]
        return image.mode.startswith('I;16') and (tags[bits_per_sample], tags[photometric]) == ((16,), 1)
    return image.mode.startswith('I') and image.format in ('PNG', 'PPM', 'JPEG2000')
