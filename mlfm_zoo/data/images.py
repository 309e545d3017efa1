"""The one place that decodes image files."""

import os
from pathlib import Path
from typing import IO, Optional, Union

from PIL import Image

__all__ = ['UnreadableImage', 'open_image']

# What Pillow raises for a file that is damaged or no image, over all of its formats.
DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, NotImplementedError, MemoryError, OverflowError,
    Image.DecompressionBombError)


class UnreadableImage(ValueError):
    """An image file cannot be decoded."""


def open_image(
        file: Union[str, Path, IO[bytes]],
        mode: Optional[str] = 'RGB',
        name: Optional[Union[str, Path]] = None,
) -> Image.Image:
    """Decode an image file completely.

    Args:
        file: Path of the file, or the open file.
        mode: Pillow mode to convert to; None keeps the file's own.
        name: Name of the file in errors; taken from `file` if None.

    Returns:
        The decoded image, whose file is closed if it was opened here.

    Raises:
        UnreadableImage: The file is missing, damaged or not an image.
    """
    if name is None:
        name = file if isinstance(file, (str, os.PathLike)) else getattr(file, 'name', 'The file')
    try:
        with Image.open(file) as image:
            image.load()
            return image if mode is None or mode == image.mode else image.convert(mode)
    except FileNotFoundError as error:
        raise UnreadableImage(f'There is no image at {name}: give the path of an image file.') from error
    except DECODING_ERRORS as error:
        raise UnreadableImage(f'{name} cannot be decoded as an image: repair or remove it.') from error
