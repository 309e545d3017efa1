"""Read JPEG files as a network's coefficients, with crops and flips, for timm.

Subsampled chroma is repeated to full resolution, as in the simplest decoders, by a linear map of its blocks. A crop
lies on the grid of blocks, and a flip changes the order and signs of coefficients: both are exact.
"""

import functools
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from timm.data import ImageDataset

from ..data.folders import open_images
from .channels import PLANE, select_channels
from .jpeg_file import Damaged, JPEGFile, Plane, errors_named, read_jpeg
from .stem import BLOCK, YCBCR, as_statistics, dct_matrix

__all__ = ['JPEGCoefficients', 'read_coefficients']

# The norm of a block's pixels, and so of its unrounded coefficients, is at most 1024. Encoders that reduce ringing
# exceed it a little, damaged files by far.
LARGEST = 2048
DCT = dct_matrix().numpy()


class Window(NamedTuple):
    """A rectangle of blocks at full resolution; it may pass the lower and right edge."""
    top: int
    left: int
    height: int
    width: int


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

    Example:
        >>> with open('photo.jpg', 'rb') as file:
        ...     read_coefficients(file.read(), '24s').shape
        torch.Size([24, 54, 80])
    """
    chosen = select_channels(channels)
    name = 'The JPEG file' if isinstance(source, bytes) else str(source)
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    with errors_named(name):
        file = read_jpeg(content)
        return torch.from_numpy(_coefficients(file, chosen, _whole(file)))


class JPEGCoefficients(ImageDataset):
    """Dataset of normalized coefficients from folders of JPEG files, one per class.

    Files are not resized: store them at the size of the crop or a little larger, see `store_jpegs`. Crops are random in
    training and central otherwise. They lie on the grid of blocks, and avoid blocks that the image fills only in part.
    Files smaller than the crop are padded by repeating the lower and right edge.

    EXIF's orientation is ignored, as in timm. Only batch-level augmentations apply; the loader's transform is ignored.
    A file that cannot be read raises.

    Args:
        root: Folder of class folders; links are followed and hidden files left out. Or the root that `reader` takes.
        channels: As `dct_channels` of the network.
        size: Height and width of the crop in pixels, multiples of 8; one number for both; None for whole files, which
            need batches of 1 if their sizes differ.
        statistics: As `dct_statistics` of the network; the released ones if None.
        is_training: Whether crops and flips are random.
        hflip: Probability of a horizontal flip, for training.
        normalize: Whether to normalize here. If not, coefficients are rounded to int16, which is exact for luma, and
            timm's prefetcher normalizes them on the device with the values of `loader_config`.
        reader: A reader of timm, or its name.
        class_map: Class names to indices, as timm takes it; timm reads the folder then.
        **kwargs: Other arguments of timm's `ImageDataset`, except `transform`.

    Raises:
        ValueError: An argument is out of range.
        FileNotFoundError: `root` is not a folder, or holds no images.

    Example:
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
            reader: Any = None,
            class_map: Any = None,
            **kwargs: Any,
    ):
        if reader is None and class_map is None:
            reader = open_images(root).reader
        super().__init__(str(root), reader, class_map=class_map, load_bytes=True, **kwargs)
        self.channels = select_channels(channels)
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and (
                not isinstance(self.size, (tuple, list)) or len(self.size) != 2
                or any(type(side) is not int or side < 1 or side % BLOCK for side in self.size)):
            raise ValueError(f'The size is {size}, expected multiples of {BLOCK}: a crop lies on the grid of blocks.')
        if not isinstance(hflip, (int, float)) or not 0 <= hflip <= 1:
            raise ValueError(f'hflip is {hflip}, expected a probability from 0 to 1.')
        self.is_training = is_training
        self.hflip = hflip
        self.normalize = normalize
        self.statistics = as_statistics(statistics)
        mean, std = (np.array(values)[list(self.channels), None, None] for values in self.statistics)
        self._mean, self._factor = mean.astype(np.float32), (1 / std).astype(np.float32)

    def __getitem__(self, index: int) -> Tuple[Any, ...]:
        source, target, *features = self.reader[index]
        with source:
            content = source.read()
        with errors_named(self.reader.filename(index, absolute=True)):
            file = read_jpeg(content)
            values = _coefficients(file, self.channels, self._window(file))
        if self.is_training and torch.rand(()) < self.hflip:
            values = values[:, :, ::-1] * _signs(self.channels)
        if self.normalize:
            values = (values - self._mean) * self._factor
        else:
            values = np.rint(values).astype(np.int16)
        if target is None:
            target = -1
        elif self.target_transform is not None:
            target = self.target_transform(target)
        return (torch.from_numpy(values), target, *(features if self.additional_features is not None else ()))

    def loader_config(self) -> Dict[str, Any]:
        """Make the arguments of `timm.data.create_loader`, with its prefetcher or without.

        The prefetcher expects pixels from 0 to 255 and means for pixels from 0 to 1. timm's own collate function would
        convert coefficients to bytes.

        Returns:
            `input_size`, `mean`, `std` and `collate_fn`.
        """
        chosen = list(self.channels)
        mean = [0.] * len(chosen) if self.normalize else [self.statistics.mean[i] / 255 for i in chosen]
        std = [1 / 255] * len(chosen) if self.normalize else [self.statistics.std[i] / 255 for i in chosen]
        height, width = self.size or (BLOCK, BLOCK)
        return dict(
            input_size=(len(chosen), height // BLOCK, width // BLOCK), mean=tuple(mean), std=tuple(std),
            collate_fn=torch.utils.data.default_collate)

    def _window(self, file: JPEGFile) -> Window:
        if self.size is None:
            return _whole(file)
        corner = []
        for side, wanted in zip((file.height, file.width), self.size):
            room = max(0, side // BLOCK - wanted // BLOCK)  # in whole blocks
            corner.append(int(torch.randint(room + 1, ())) if self.is_training and room else room // 2)
        return Window(*corner, *(side // BLOCK for side in self.size))


def _whole(file: JPEGFile) -> Window:
    return Window(0, 0, -(-file.height // BLOCK), -(-file.width // BLOCK))


def _coefficients(file: JPEGFile, channels: Sequence[int], window: Window) -> np.ndarray:
    """Coefficients (C, h, w) of a window of a file in float32."""
    out = np.zeros((len(channels), window.height, window.width), np.float32)
    of_plane: List[List[int]] = [[], [], []]  # coefficients of each plane
    rows: List[List[int]] = [[], [], []]  # where they belong
    for row, channel in enumerate(channels):
        of_plane[channel // PLANE].append(channel % PLANE)
        rows[channel // PLANE].append(row)
    if not file.is_rgb:
        for plane, coefficients, at in zip(file.planes, of_plane, rows):
            if at:
                out[at] = _full_resolution(plane, coefficients, window)
        return out
    needed = sorted({*of_plane[0], *of_plane[1], *of_plane[2]})
    colors = np.stack([_full_resolution(plane, needed, window) for plane in file.planes])
    # the level shift of R, G and B is that of Y, and cancels in Cb and Cr
    for weights, coefficients, at in zip(np.array(YCBCR, np.float32), of_plane, rows):
        if at:
            out[at] = np.einsum('r,rkhw->khw', weights, colors[:, [needed.index(i) for i in coefficients]])
    return out


def _full_resolution(plane: Plane, coefficients: List[int], window: Window) -> np.ndarray:
    """Dequantized coefficients (k, h, w) of a plane's window at full resolution."""
    (tall, wide), (height, width) = plane.ratio, plane.blocks.shape[:2]
    top, left = window.top // tall, window.left // wide
    bottom, right = -(-(window.top + window.height) // tall), -(-(window.left + window.width) // wide)
    values = plane.blocks[top:bottom, left:right] * plane.table
    norm = np.sqrt(np.einsum('hwi,hwi->hw', values, values).max())
    if norm > min(LARGEST + np.linalg.norm(plane.table / 2), np.iinfo(np.int16).max):
        raise Damaged('some of them are larger than those of any image')
    if (tall, wide) == (1, 1) and bottom <= height and right <= width:
        return np.moveaxis(values[..., coefficients], 2, 0)
    if right > width:
        values = np.concatenate([values, np.repeat(values[:, -1:] @ _edge(1), right - width, 1)], 1)
    if bottom > height:
        values = np.concatenate([values, np.repeat(values[-1:] @ _edge(0), bottom - height, 0)], 0)
    matrix = _repetition(tall, wide, tuple(coefficients))
    parts = (values @ matrix).reshape(*values.shape[:2], tall, wide, len(coefficients))
    full = parts.transpose(4, 0, 2, 1, 3).reshape(len(coefficients), tall * len(values), wide * values.shape[1])
    top, left = window.top - tall * top, window.left - wide * left
    return full[:, top:top + window.height, left:left + window.width]


@functools.lru_cache(maxsize=64)
def _repetition(tall: int, wide: int, coefficients: Tuple[int, ...]) -> np.ndarray:
    """Matrix from a block (64) to the blocks that repeat its pixels (tall * wide * k)."""
    vertical, horizontal = _repeat_matrices(tall), _repeat_matrices(wide)
    maps = np.einsum('iup,jvq->pqijuv', vertical, horizontal).reshape(PLANE, tall * wide, PLANE)
    return np.ascontiguousarray(maps[:, :, list(coefficients)].reshape(PLANE, -1).astype(np.float32))


def _repeat_matrices(ratio: int) -> np.ndarray:
    """Matrices from 8 frequencies to those of the repeated values (ratio, 8, 8)."""
    rows = np.arange(BLOCK * ratio) // ratio
    inverse = DCT.T[rows].reshape(ratio, BLOCK, BLOCK)  # (block, place, frequency)
    return DCT @ inverse


@functools.lru_cache(maxsize=2)
def _edge(axis: int) -> np.ndarray:
    """Matrix from a block (64) to its last row (axis 0) or column (axis 1), repeated."""
    repeat = DCT @ np.repeat(DCT.T[-1:], BLOCK, 0)  # (frequency out, frequency in)
    maps = [repeat, np.eye(BLOCK)] if axis == 0 else [np.eye(BLOCK), repeat]
    return np.einsum('up,vq->pquv', *maps).reshape(PLANE, PLANE).astype(np.float32)


def _signs(channels: Sequence[int]) -> np.ndarray:
    """-1 for odd horizontal frequencies, which a horizontal flip negates."""
    return np.array([1 - 2 * (c % 2) for c in channels], np.float32)[:, None, None]
