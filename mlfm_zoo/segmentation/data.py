"""Folders of images and masks: layouts, the meaning of masks, and augmentation.

A mask is an image of one channel whose values are `Labels.values`, as in CamVid, VOC and ADE20K, or an RGB image whose
colors are `Labels.colors`. Void pixels of a mask have the label `IGNORE_INDEX`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data.images import open_image

__all__ = [
    'IGNORE_INDEX', 'LABELS', 'Labels', 'Sample', 'SegmentationDataset', 'eval_transform', 'find_samples',
    'load_labels', 'read_image', 'read_labels', 'train_transform', 'voc_colors',
]

IGNORE_INDEX = 255

Color = Tuple[int, int, int]

# Folders of images and of masks, and names of splits that differ.
LAYOUTS: Tuple[Tuple[str, str, Dict[str, str]], ...] = (
    ('{split}', '{split}annot', {}),  # CamVid as in SegNet's repository
    ('JPEGImages', 'SegmentationClass', {}),  # VOC, with ImageSets/Segmentation/{split}.txt
    ('images/{split}', 'annotations/{split}', {'train': 'training', 'val': 'validation'}),  # ADE20K
    ('images/{split}', 'masks/{split}', {}),
    ('{split}/images', '{split}/masks', {}),
)

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


def voc_colors(num_colors: int) -> Tuple[Color, ...]:
    """Colors of VOC's palette, which spreads the bits of a label over red, green and blue.

    Args:
        num_colors: How many.

    Returns:
        Red, green and blue of labels 0, 1, ...
    """
    def channel(label: int, c: int) -> int:  # bit 3 k + c of a label is bit 7 - k of its channel c
        return sum((label >> (3 * k + c) & 1) << (7 - k) for k in range(8))

    return tuple((channel(label, 0), channel(label, 1), channel(label, 2)) for label in range(num_colors))


@dataclass(frozen=True)
class Labels:
    """What the masks of a data set mean.

    Attributes:
        names: The classes, at most 255.
        values: The value of each class in masks of one channel; 0, 1, ... if empty.
        void: Values that belong to no class.
        colors: The color of each class in RGB masks, and in pictures; those of VOC's palette if empty.
        void_colors: Colors that belong to no class.

    Raises:
        ValueError: The numbers of names, values and colors differ.
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

    @classmethod
    def from_json(cls, fields: Dict[str, Any]) -> 'Labels':
        """Make labels of lists, as JSON has them."""
        as_tuples: Dict[str, Any] = {
            k: tuple(tuple(x) if isinstance(x, list) else x for x in v) for k, v in fields.items()}
        return cls(**as_tuples)


CAMVID = ('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist')
CAMVID_COLORS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192))
VOC = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
    'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')

LABELS = {
    'camvid': Labels(CAMVID, void=(11,), colors=CAMVID_COLORS, void_colors=((0, 0, 0),)),
    'voc': Labels(VOC, void_colors=((224, 224, 192),)),
    # the 150 classes of the MIT Scene Parsing Benchmark, whose masks have 0 for all others
    'ade20k': Labels.from_json(json.loads(Path(__file__).with_name('ade20k.json').read_text(encoding='utf-8'))),
    'membrane': Labels(('membrane', 'cell'), values=(0, 255), void=(), colors=((0, 0, 0), (255, 255, 255))),
}


def load_labels(name: str) -> Labels:
    """Labels of a known data set, or those of a JSON file.

    Args:
        name: One of `LABELS`, or a JSON file with the fields of `Labels`.

    Returns:
        The labels.

    Raises:
        ValueError: There is no such data set or file, or its values do not fit.
    """
    if name in LABELS:
        return LABELS[name]
    if not Path(name).is_file():
        raise ValueError(
            f'{name} names no labels: give {", ".join(LABELS)} or a JSON file with names and, if need be, values, '
            'void, colors and void_colors.')
    return Labels.from_json(json.loads(Path(name).read_text(encoding='utf-8')))


class Sample(NamedTuple):
    """The file of an image and that of its mask."""
    image: Path
    mask: Path


def find_samples(folder: Union[str, Path], split: str) -> List[Sample]:
    """Find the images of a split and their masks, which have the same name except for the extension.

    Args:
        folder: Folder laid out as CamVid, VOC or ADE20K, or with images/SPLIT and masks/SPLIT or the other way round.
        split: 'train', 'val', 'test' or whatever the folder has.

    Returns:
        The pairs, by name.

    Raises:
        ValueError: The folder is laid out in another way, is empty, or lacks an image or a mask.
    """
    root = Path(folder)
    for images_form, masks_form, names in LAYOUTS:
        name = split if (root / images_form.format(split=split)).is_dir() else names.get(split, split)
        images_dir, masks_dir = root / images_form.format(split=name), root / masks_form.format(split=name)
        if images_dir.is_dir() and masks_dir.is_dir():
            break
    else:
        raise ValueError(
            f'{root} has no images and masks of {split}, expected {split}/ and {split}annot/, JPEGImages/ and '
            f'SegmentationClass/, images/{split}/ and annotations/{split}/ or masks/{split}/, or {split}/images/ and '
            f'{split}/masks/: check the path.')
    images, masks = _files_of(images_dir), _files_of(masks_dir)
    stems = sorted(images)
    if images_dir.name == 'JPEGImages':
        stems = (root / 'ImageSets' / 'Segmentation' / f'{split}.txt').read_text(encoding='utf-8').split()
    if not stems:
        raise ValueError(f'{images_dir} is empty, expected images: check the path.')
    for stem in stems:
        if stem not in images or stem not in masks:
            raise ValueError(
                f'{(images_dir if stem not in images else masks_dir) / stem} is missing, expected an image and a mask '
                'of each name: add it, or remove the name.')
    return [Sample(images[stem], masks[stem]) for stem in stems]


def _files_of(folder: Path) -> Dict[str, Path]:
    return {f.stem: f for f in folder.iterdir() if f.is_file() and not f.name.startswith('.')}


def read_image(file: Path, in_chans: int = 3) -> torch.Tensor:
    """Read an image.

    Args:
        file: The file.
        in_chans: Channels wanted: 1 for gray, 3 for RGB, 4 for RGBA.

    Returns:
        The pixels, uint8 (in_chans, H, W).

    Raises:
        ValueError: The file is damaged or has more than 8 bits a channel, or images have no such number of channels.
    """
    if in_chans not in MODES:
        raise ValueError(f'in_chans is {in_chans}, expected 1, 3 or 4 for images of files: use tensors instead.')
    image = open_image(file, mode=None)
    if image.mode.startswith(('I', 'F')):  # which PIL would clip
        raise ValueError(f'{file} is of mode {image.mode}, expected 8 bits a channel: convert it.')
    return v2.functional.pil_to_tensor(image.convert(MODES[in_chans]))


def read_labels(file: Path, labels: Labels) -> torch.Tensor:
    """Read a mask.

    Args:
        file: The file.
        labels: What its values or colors mean.

    Returns:
        Class of each pixel, and `IGNORE_INDEX` where it is void (H, W).

    Raises:
        ValueError: The file is damaged, or has a value or color that stands for no class or for two.
    """
    image = open_image(file, mode=None)
    if len(image.getbands()) == 1:
        pixels = np.array(image).astype(np.int64)
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


def _statistics(in_chans: int) -> Tuple[List[float], List[float]]:
    """Mean and standard deviation for normalization: ImageNet's, or 0.5 for images other than RGB."""
    if in_chans == 3:
        return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    return [0.5] * in_chans, [0.5] * in_chans


def eval_transform(in_chans: int = 3, img_size: Optional[Sequence[int]] = None) -> v2.Compose:
    """Make the transform that normalizes and, on request, resizes.

    Args:
        in_chans: Channels of the image.
        img_size: Height and width to resize images and masks to; None leaves them as they are.

    Returns:
        A transform of an image and its mask.
    """
    resize = [] if img_size is None else [v2.Resize(list(img_size))]
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, 'others': None}, scale=True)
    return v2.Compose([*resize, to_float, v2.Normalize(*_statistics(in_chans))])


def train_transform(
        crop_size: Sequence[int],
        in_chans: int = 3,
        img_size: Optional[Sequence[int]] = None,
        scale: Tuple[float, float] = (0.5, 2.0),
        vflip: float = 0.,
        color_jitter: float = 0.3,
) -> v2.Compose:
    """Make the transform for training: random scale, crop, flips and colors.

    Args:
        crop_size: Height and width of crops; smaller images are padded with gray, and their masks with void.
        in_chans: Channels of the image.
        img_size: Height and width that scale 1 stands for, the crop's if None.
        scale: Range of scales.
        vflip: Probability of an upside-down flip.
        color_jitter: Range of brightness, contrast and saturation; only for gray and RGB images.

    Returns:
        A transform of an image and its mask.
    """
    mean, _ = _statistics(in_chans)
    fill: Dict[Any, Any] = {tv_tensors.Image: [255 * m for m in mean], tv_tensors.Mask: IGNORE_INDEX}
    jitter = [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter and in_chans in (1, 3) else []
    return v2.Compose([
        v2.ScaleJitter(tuple(img_size or crop_size), scale_range=scale),
        v2.RandomCrop(tuple(crop_size), pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(vflip),
        *jitter,
        eval_transform(in_chans),
    ])


class SegmentationDataset(torch.utils.data.Dataset[Tuple[torch.Tensor, torch.Tensor]]):
    """Images and labels of a folder.

    Args:
        folder: The folder, see `find_samples`.
        split: 'train', 'val', 'test' or whatever the folder has.
        labels: What the masks mean.
        in_chans: Channels of the images.
        transform: Transform of an image and its mask.

    Raises:
        ValueError: The folder is laid out in another way, is empty, or lacks an image or a mask.
    """

    def __init__(
            self,
            folder: Union[str, Path],
            split: str,
            labels: Labels,
            in_chans: int = 3,
            transform: Optional[v2.Transform] = None,
    ):
        self.samples = find_samples(folder, split)
        self.labels = labels
        self.in_chans = in_chans
        self.transform = transform or eval_transform(in_chans)

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
