"""Folders of images and masks: layouts, the meaning of masks, and augmentation.

A mask is an image of one channel whose values are `Labels.values`, as in CamVid, VOC and ADE20K, or an RGB image whose
colors are `Labels.colors`. Void pixels of a mask have the label `IGNORE_INDEX`.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data.images import is_signed, open_image
from .settings import JSONRecord, TrainSettings, read_json

__all__ = [
    'IGNORE_INDEX', 'LABELS', 'Labels', 'Sample', 'SegmentationDataset', 'eval_transform', 'find_samples',
    'load_labels', 'read_image', 'read_labels', 'train_transform', 'voc_colors',
]

IGNORE_INDEX = 255
MAX_VALUE = 65535  # largest value of a mask of one channel in common file formats

Color = Tuple[int, int, int]

# Folders of images and of masks in a split.
LAYOUTS = (
    ('{}', '{}annot'),  # CamVid as in SegNet's repository
    ('JPEGImages', 'SegmentationClass'),  # VOC, with ImageSets/Segmentation/{}.txt
    ('images/{}', 'annotations/{}'),  # ADE20K
    ('images/{}', 'masks/{}'),
    ('{}/images', '{}/masks'),
)
ADE20K_SPLITS = {'train': 'training', 'val': 'validation'}

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


def voc_colors(num_colors: int) -> Tuple[Color, ...]:
    """Make the first colors of VOC's palette, which spreads a label's bits over RGB."""
    def channel(label: int, c: int) -> int:  # bit 3 k + c of a label is bit 7 - k of its channel c
        return sum((label >> (3 * k + c) & 1) << (7 - k) for k in range(8))

    return tuple((channel(label, 0), channel(label, 1), channel(label, 2)) for label in range(num_colors))


@dataclass(frozen=True)
class Labels(JSONRecord):
    """Classes of a data set, and their values and colors in masks.

    Attributes:
        names: The classes, at most 255.
        values: Value of each class in masks of one channel, 0 to 65535; 0, 1, ... if empty.
        void: Values of no class.
        colors: Color of each class in RGB masks and in pictures; those of VOC's palette if empty.
        void_colors: Colors of no class.

    Raises:
        ValueError: The numbers of names, values and colors differ, or a value or color is out of range.
    """
    names: Tuple[str, ...]
    values: Tuple[int, ...] = ()
    void: Tuple[int, ...] = (IGNORE_INDEX,)
    colors: Tuple[Color, ...] = ()
    void_colors: Tuple[Color, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        object.__setattr__(self, 'values', self.values or tuple(range(count)))
        object.__setattr__(self, 'colors', self.colors or voc_colors(count))
        if not len(self.values) == len(self.colors) == count <= IGNORE_INDEX:
            raise ValueError(
                f'There are {count} names, {len(self.values)} values and {len(self.colors)} colors, expected one of '
                f'each for at most {IGNORE_INDEX} classes.')
        parts = [part for color in self.colors for part in color]
        for what, numbers, most in (('value', self.values, MAX_VALUE), ('part of a color', parts, 255)):
            for number in numbers:
                if type(number) is not int or not 0 <= number <= most:
                    raise ValueError(f'A {what} of the labels is {number}, expected a whole number from 0 to {most}.')


# Those of 'ade20k' are the 150 classes of the MIT Scene Parsing Benchmark, whose masks have 0 for all others.
LABELS: Dict[str, Labels] = read_json(
    Path(__file__).with_name('labels.json'),
    lambda sets: {name: Labels.from_json(fields) for name, fields in sets.items()})


def load_labels(name: str) -> Labels:
    """Return the labels of a data set in `LABELS`, or read a JSON file of `Labels`."""
    return LABELS[name] if name in LABELS else read_json(Path(name), Labels.from_json)


class Sample(NamedTuple):
    """The file of an image and that of its mask."""
    image: Path
    mask: Path


def find_samples(folder: Union[str, Path], split: str) -> List[Sample]:
    """Find a split's images and masks in one of the `LAYOUTS`; their names differ in the extension only.

    A ValueError is raised if the folder is laid out in another way, is empty, lacks an image or a mask, or has two of
    a name.
    """
    root = Path(folder)
    for forms, name in product(LAYOUTS, (split, ADE20K_SPLITS.get(split, split))):
        images_dir, masks_dir = (root / form.format(name) for form in forms)
        if images_dir.is_dir() and masks_dir.is_dir():
            break
    else:
        expected = ', or '.join(' and '.join(f'{form.format(split)}/' for form in forms) for forms in LAYOUTS)
        raise ValueError(f'{root} has no images and masks of {split}, expected {expected}: check the path.')
    images, masks = _files_of(images_dir), _files_of(masks_dir)
    stems, source = sorted(images), images_dir
    if images_dir.name == 'JPEGImages':
        source = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
        lines = source.read_text(encoding='utf-8-sig', errors='surrogateescape').splitlines()
        stems = [line.strip() for line in lines if line.strip()]
    if not stems:
        raise ValueError(f'{source} is empty, expected images or their names: check the path.')
    for stem in stems:
        if stem not in images or stem not in masks:
            raise ValueError(
                f'{(images_dir if stem not in images else masks_dir) / stem} is missing, expected an image and a mask '
                'of each name: add it, or remove the name.')
    return [Sample(images[stem], masks[stem]) for stem in stems]


def _files_of(folder: Path) -> Dict[str, Path]:
    files: Dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.is_dir() or file.name.startswith('.'):
            continue
        if file.stem in files:
            raise ValueError(f'{file} and {files[file.stem].name} have one name, expected one file of it: remove one.')
        files[file.stem] = file
    return files


def read_image(file: Path, in_chans: int = 3) -> torch.Tensor:
    """Read an image as uint8 (in_chans, H, W), turned by its EXIF orientation.

    A ValueError is raised if the file is damaged or `in_chans` is not 1, 3 or 4.
    """
    if in_chans not in MODES:
        raise ValueError(f'in_chans is {in_chans}, expected 1, 3 or 4 for images of files: use tensors instead.')
    return v2.functional.pil_to_tensor(open_image(file, MODES[in_chans], upright=True))


def read_labels(file: Path, labels: Labels) -> torch.Tensor:
    """Read a mask: the class of each pixel (H, W), or `IGNORE_INDEX` if it is void.

    A ValueError is raised if the file is damaged, or has a value or color of no class or of two.
    """
    image = open_image(file, mode=None, upright=True)
    if len(image.getbands()) == 1:
        pixels = np.array(image)
        if image.mode == 'L' and is_signed(image):
            pixels = pixels.view(np.int8)
        keys, what = [*labels.values, *labels.void], 'value'
    else:
        pixels = np.array(image.convert('RGB')).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        keys, what = [(r << 16) + (g << 8) + b for r, g, b in (*labels.colors, *labels.void_colors)], 'color'
    classes = dict(zip(keys, [*range(len(labels.names)), *[IGNORE_INDEX] * len(keys)]))
    if len(classes) < len(keys):
        raise ValueError(f'{file} cannot be read: a {what} of the labels stands for two classes. Give each its own.')
    found, places = np.unique(pixels, return_inverse=True)
    unknown = [f'#{v:06x}' if what == 'color' else str(v) for v in found if v not in classes]
    if unknown:
        raise ValueError(
            f'{file} has pixels of {what} {", ".join(unknown[:5])}, expected those of the {len(labels.names)} classes '
            'or void: correct the mask, or give labels that name them.')
    return torch.from_numpy(np.array([classes[v] for v in found])[places.reshape(pixels.shape)])


def eval_transform(
        mean: Sequence[float],
        std: Sequence[float],
        img_size: Optional[Sequence[int]] = None,
) -> v2.Compose:
    """Make the transform for evaluation: optional resizing, and normalization.

    Args:
        mean: The network's `mean`.
        std: The network's `std`.
        img_size: Height and width to resize images and masks to; None leaves them as they are.

    Returns:
        A transform of an image and its mask.
    """
    resize = [] if img_size is None else [v2.Resize(list(img_size))]
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, 'others': None}, scale=True)
    return v2.Compose([*resize, to_float, v2.Normalize(list(mean), list(std))])


def train_transform(settings: TrainSettings, mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    """Make the transform for training: random scale, crop, flips and colors.

    Images smaller than the crop are padded with gray, and their masks with void. Scale 1 fits an image into `img_size`,
    or the crop if that is None. Colors change in gray and RGB images only.
    """
    fill: Dict[Any, Any] = {tv_tensors.Image: [255 * m for m in mean], tv_tensors.Mask: IGNORE_INDEX}
    height, width = settings.img_size or settings.crop_size
    jitter = settings.color_jitter if len(mean) in (1, 3) else 0
    return v2.Compose([
        v2.ScaleJitter((width, height), scale_range=settings.scale),  # torchvision names the width first
        v2.RandomCrop(settings.crop_size, pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(settings.vflip),
        *([v2.ColorJitter(jitter, jitter, jitter)] if jitter else []),
        eval_transform(mean, std),
    ])


class SegmentationDataset(torch.utils.data.Dataset[Tuple[torch.Tensor, torch.Tensor]]):
    """Images and labels of a folder.

    Args:
        folder: The folder, see `find_samples`.
        split: 'train', 'val', 'test' or whatever the folder has.
        labels: What the masks mean.
        transform: Transform of an image and its mask: `eval_transform` or `train_transform`.
        in_chans: Channels of the images.

    Raises:
        ValueError: The folder is laid out in another way, is empty, or lacks an image or a mask.
    """

    def __init__(
            self,
            folder: Union[str, Path],
            split: str,
            labels: Labels,
            transform: v2.Transform,
            in_chans: int = 3,
    ):
        self.samples = find_samples(folder, split)
        self.labels = labels
        self.in_chans = in_chans
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, torch.Tensor]:
        sample = self.samples[index]
        image, mask = read_image(sample.image, self.in_chans), read_labels(sample.mask, self.labels)
        if image.shape[-2:] != mask.shape:
            height, width = image.shape[-2:]
            raise ValueError(
                f'{sample.mask} is {mask.shape[1]} x {mask.shape[0]} pixels and its image {sample.image} '
                f'{width} x {height}, expected one size: correct or remove the pair.')
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor).long()
