"""Store images as resized JPEG files, for reading their coefficients."""

from pathlib import Path
from typing import Union

from PIL import Image

from .._files import written_whole
from .._terminal import printable
from ..data.folders import walk_images
from ..data.images import convert_pixels, open_image
from .stem import BLOCK

__all__ = ['store_jpegs']


def store_jpegs(
        source: Union[str, Path],
        target: Union[str, Path],
        size: int = 448,
        crop: bool = False,
        quality: int = 95,
        subsampling: int = 0,
) -> int:
    """Store a folder of images as resized JPEG files, in the same subfolders.

    The shorter side becomes `size`, by Pillow's bilinear filter, as in the networks' configs. CMYK becomes RGB, 16 bits
    become 8, and EXIF's orientation is ignored, as in timm. Existing files are kept, so an interrupted run resumes. For
    other settings give another folder.

    Args:
        source: Folder of images, with any subfolders.
        target: Folder to write into; 'a/b.png' becomes 'a/b.jpg'.
        size: Length of the shorter side in pixels, a multiple of 8.
        crop: Whether to keep only the square in the middle, for a validation set.
        quality: Pillow's, 1 to 100.
        subsampling: 0 for chroma at full resolution, 1 at half the width, 2 at half the width and height.

    Returns:
        Number of files written.

    Raises:
        FileNotFoundError: There is no such folder, or it has no images.
        ValueError: An argument is out of range, an image cannot be decoded, or two would become one file.

    Examples:
        >>> store_jpegs('digits', 'stored', size=64)
        96
        >>> store_jpegs('digits', 'stored', size=64)  # nothing is left to do
        0
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    if target == source or source in target.parents:
        raise ValueError(f'{target} lies in {source}, expected a folder outside: its files would be stored again.')
    if size < BLOCK or size % BLOCK or not 1 <= quality <= 100 or subsampling not in (0, 1, 2):
        raise ValueError(
            f'size, quality and subsampling are {size}, {quality} and {subsampling}, expected a multiple of {BLOCK}, 1 '
            'to 100, and 0, 1 or 2.')
    files = walk_images(source)
    if not files:
        raise FileNotFoundError(f'{source} has no images: give a folder with .jpg, .png or other images in it.')
    paths = {(target / file.relative_to(source)).with_suffix('.jpg'): file for file in files}
    if len(paths) < len(files):
        twice = next(file for file in files if file not in paths.values())
        raise ValueError(f'{printable(twice)} has the name of another image except for its ending: rename one of them.')
    written = 0
    for path, file in paths.items():
        if path.exists():
            continue
        image = open_image(file, mode=None)
        image = convert_pixels(image, 'L' if image.mode == 'L' or image.mode.startswith('I') else 'RGB', file)
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        if crop:
            left, top = (width - size) // 2, (height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            image.save(unfinished, 'JPEG', quality=quality, subsampling=subsampling)
        written += 1
    return written
