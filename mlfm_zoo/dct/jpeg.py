"""Read JPEG files as a network's coefficients, with crops and flips, for timm.

Subsampled chroma is repeated to full resolution, as in the simplest decoders, by a linear map of its blocks. A crop
lies on the grid of blocks, and a flip changes the order and signs of coefficients: both are exact.
"""

import functools
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from timm.data import ImageDataset

from .._terminal import printable
from ..data.folders import open_images
from .channels import PLANE, select_channels
from .jpeg_file import Component, Damaged, JPEGFile, read_jpeg
from .stem import BLOCK, YCBCR, as_statistics, dct_matrix

__all__ = ['JPEGCoefficients', 'read_coefficients']

# The norm of a block's pixels, and so of its unrounded coefficients, is at most 1024. Encoders that reduce ringing
# exceed it a little, damaged files by far.
LARGEST = 2048
DCT = dct_matrix().numpy()

# Matrices from 8 frequencies to those of the last value, repeated, and from a block (64) to its last row or column.
LAST = DCT @ np.repeat(DCT.T[-1:], BLOCK, 0)
LAST_ROW = np.kron(LAST, np.eye(BLOCK)).T.astype(np.float32, order='C')
LAST_COLUMN = np.kron(np.eye(BLOCK), LAST).T.astype(np.float32, order='C')

# Top, left, height and width of a rectangle of blocks at full resolution; it may pass the lower and right edge.
Window = Tuple[int, int, int, int]


def read_coefficients(
        source: Union[str, Path, bytes],
        channels: Union[str, int, Sequence[int]] = '192',
) -> torch.Tensor:
    """Read a JPEG file's dequantized coefficients, all planes at full resolution.

    Args:
        source: A file, or its content.
        channels: Coefficients to read, see `select_channels`.

    Returns:
        Coefficients (C, ceil(H / 8), ceil(W / 8)) in float32 and in JPEG's units, as a `DCTStem` with means of 0 and
        deviations of 1 computes them. For a gray file, those of Cb and Cr are 0.

    Raises:
        ValueError: The file is damaged, or of a kind without coefficients of Y, Cb and Cr.
        RuntimeError: jpeglib is not installed.

    Examples:
        >>> with open('photo.jpg', 'rb') as file:
        ...     read_coefficients(file.read(), '24s').shape
        torch.Size([24, 54, 80])
    """
    chosen = select_channels(channels)
    if isinstance(source, bytes):
        return torch.from_numpy(_read(source, 'The JPEG file', chosen))
    return torch.from_numpy(_read(Path(source).read_bytes(), str(source), chosen))


class JPEGCoefficients(ImageDataset):
    """Dataset of normalized coefficients from folders of JPEG files, one per class.

    Files are not resized: store them at the size of the crop or a little larger, see `store_jpegs`. Crops are random in
    training and central otherwise. They lie on the grid of blocks, and avoid blocks that the image fills only in part.
    Files smaller than the crop are padded by repeating the lower and right edge.

    EXIF's orientation is ignored, as in timm. Only batch-level augmentations apply; the loader's transform is ignored.
    A file that cannot be read raises.

    Args:
        root: Folder of class folders; links are followed and hidden files left out.
        channels: As `dct_channels` of the network.
        size: Height and width of the crop in pixels, multiples of 8; one number for both; None for whole files, which
            need batches of 1 if their sizes differ.
        statistics: As `dct_statistics` of the network; the released ones if None.
        is_training: Whether crops and flips are random.
        hflip: Probability of a horizontal flip, for training.
        normalize: Whether to normalize here. If not, coefficients are rounded to int16, which is exact for luma, and
            timm's prefetcher normalizes them on the device with the values of `loader_config`.

    Raises:
        ValueError: An argument is out of range.
        FileNotFoundError: `root` is not a folder, or holds no images.

    Examples:
        >>> mlfm_zoo.dct.store_jpegs('digits', 'jpegs', size=64)
        96
        >>> data = JPEGCoefficients('jpegs/train', '24s', size=64)
        >>> coefficients, target = data[0]
        >>> coefficients.shape
        torch.Size([24, 8, 8])
    """

    def __init__(
            self,
            root: Union[str, Path],
            channels: Union[str, int, Sequence[int]] = '24s',
            size: Union[None, int, Tuple[int, int]] = 448,
            statistics: Optional[Sequence[Sequence[float]]] = None,
            is_training: bool = False,
            hflip: float = 0.5,
            normalize: bool = True,
    ):
        super().__init__(str(root), open_images(root).reader)
        self.channels = select_channels(channels)
        self.size = (size, size) if isinstance(size, int) else size
        if any(side < 1 or side % BLOCK for side in self.size or ()) or not 0 <= hflip <= 1:
            raise ValueError(
                f'size and hflip are {size} and {hflip}, expected multiples of {BLOCK}, as a crop lies on the grid of '
                'blocks, and a probability from 0 to 1.')
        self.is_training = is_training
        self.hflip = hflip
        self.normalize = normalize
        self.statistics = as_statistics(statistics)
        mean, std = (np.array(values)[list(self.channels), None, None] for values in self.statistics)
        self._mean, self._factor = mean.astype(np.float32), (1 / std).astype(np.float32)
        odd = np.array(self.channels)[:, None, None] % 2
        self._flip = (1 - 2 * odd).astype(np.float32)  # a horizontal flip negates odd horizontal frequencies

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        file, target = self.reader.samples[index]
        values = _read(Path(file).read_bytes(), file, self.channels, self.size, self.is_training)
        if self.is_training and torch.rand(()) < self.hflip:
            values = values[:, :, ::-1] * self._flip
        values = (values - self._mean) * self._factor if self.normalize else np.rint(values).astype(np.int16)
        return torch.from_numpy(values), target

    def loader_config(self) -> Dict[str, Any]:
        """Make the arguments of `timm.data.create_loader`, with its prefetcher or without.

        The prefetcher expects pixels from 0 to 255 and means for pixels from 0 to 1. timm's own collate function would
        convert coefficients to bytes.

        Returns:
            `input_size`, `mean`, `std` and `collate_fn`.
        """
        chosen, height_width = list(self.channels), self.size or (BLOCK, BLOCK)
        mean, std = ([values[i] / 255 for i in chosen] for values in self.statistics)
        if self.normalize:
            mean, std = [0.] * len(chosen), [1 / 255] * len(chosen)
        return dict(
            input_size=(len(chosen), *(side // BLOCK for side in height_width)), mean=tuple(mean), std=tuple(std),
            collate_fn=torch.utils.data.default_collate)


def _read(
        content: bytes,
        name: str,
        channels: Sequence[int],
        size: Optional[Tuple[int, int]] = None,
        random_crop: bool = False,
) -> np.ndarray:
    """Coefficients (C, h, w) of a file, or of a crop of a size in pixels, in float32."""
    try:
        file = read_jpeg(content)
        if size is None:
            return _coefficients(file, channels, (0, 0, -(-file.height // BLOCK), -(-file.width // BLOCK)))
        height, width = (side // BLOCK for side in size)
        rooms = max(0, file.height // BLOCK - height), max(0, file.width // BLOCK - width)  # in whole blocks
        top, left = (int(torch.randint(room + 1, ())) if random_crop and room else room // 2 for room in rooms)
        return _coefficients(file, channels, (top, left, height, width))
    except Damaged as error:
        raise ValueError(
            f'{printable(name)} cannot be read as JPEG coefficients, {error}: repair or remove it, or write it again '
            'with mlfm_zoo.dct.store_jpegs.') from error


def _coefficients(file: JPEGFile, channels: Sequence[int], window: Window) -> np.ndarray:
    if file.is_rgb:
        colors = np.stack([_full_resolution(plane, list(range(PLANE)), window) for plane in file.components])
        # the level shift of R, G and B is that of Y, and cancels in Cb and Cr
        planes = np.einsum('pr,rkhw->pkhw', np.array(YCBCR, np.float32), colors)
        return planes.reshape(-1, *window[2:])[list(channels)]
    out = np.zeros((len(channels), *window[2:]), np.float32)
    of_plane, coefficients = np.divmod(channels, PLANE)
    for i, plane in enumerate(file.components):
        if i in of_plane:
            out[of_plane == i] = _full_resolution(plane, coefficients[of_plane == i].tolist(), window)
    return out


def _full_resolution(plane: Component, coefficients: List[int], window: Window) -> np.ndarray:
    """Dequantized coefficients (k, h, w) of a plane's window at full resolution."""
    (tall, wide), (rows, columns), (top, left, height, width) = plane.ratio, plane.size, window
    first_row, first_column = top // tall, left // wide
    bottom, right = -(-(top + height) // tall), -(-(left + width) // wide)
    values = plane.blocks[first_row:bottom, first_column:right] * plane.table
    norm = np.sqrt(np.einsum('hwi,hwi->hw', values, values).max())
    if norm > min(LARGEST + np.linalg.norm(plane.table / 2), np.iinfo(np.int16).max):
        raise Damaged('some of them are larger than those of any image')
    if (tall, wide) == (1, 1) and bottom <= rows and right <= columns:
        return np.moveaxis(values[..., coefficients], 2, 0)
    if right > columns:
        values = np.concatenate([values, np.repeat(values[:, -1:] @ LAST_COLUMN, right - columns, 1)], 1)
    if bottom > rows:
        values = np.concatenate([values, np.repeat(values[-1:] @ LAST_ROW, bottom - rows, 0)], 0)
    parts = values @ _repetition(tall, wide, tuple(coefficients))
    parts = parts.reshape(*values.shape[:2], tall, wide, len(coefficients))
    full = parts.transpose(4, 0, 2, 1, 3).reshape(len(coefficients), tall * len(values), wide * values.shape[1])
    top, left = top - tall * first_row, left - wide * first_column
    return full[:, top:top + height, left:left + width]


@functools.lru_cache(maxsize=64)
def _repetition(tall: int, wide: int, coefficients: Tuple[int, ...]) -> np.ndarray:
    """Matrix from a block (64) to the blocks that repeat its pixels (tall * wide * k)."""
    vertical, horizontal = (
        DCT @ np.repeat(DCT.T, ratio, 0).reshape(ratio, BLOCK, BLOCK) for ratio in (tall, wide))
    maps = [np.kron(v, h)[list(coefficients)] for v in vertical for h in horizontal]
    return np.concatenate(maps).T.astype(np.float32, order='C')
