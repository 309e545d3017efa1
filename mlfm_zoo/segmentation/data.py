"""Folders of images and masks: how they are laid out, what the values of masks mean, and augmentation.

A mask is a picture of one channel whose values are `Labels.values`, as CamVid's, VOC's and ADE20K's are, or an RGB
picture whose colours are `Labels.colors`. What is void in a mask is `IGNORE_INDEX` in the labels.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import tv_tensors
from torchvision.transforms import v2

__all__ = [
    'IGNORE_INDEX', 'LABELS', 'Labels', 'Sample', 'SegmentationDataset', 'eval_transform', 'find_samples',
    'load_labels', 'read_image', 'read_labels', 'statistics_of', 'train_transform', 'voc_colors',
]

IGNORE_INDEX = 255

Color = Tuple[int, int, int]

# Where images and masks lie in a folder, and what the splits are called there.
LAYOUTS: Tuple[Tuple[str, str, Dict[str, str]], ...] = (
    ('{split}', '{split}annot', {}),  # CamVid as in SegNet's repository
    ('JPEGImages', 'SegmentationClass', {}),  # VOC, with ImageSets/Segmentation/{split}.txt
    ('images/{split}', 'annotations/{split}', {'train': 'training', 'val': 'validation'}),  # ADE20K
    ('images/{split}', 'masks/{split}', {}),
    ('{split}/images', '{split}/masks', {}),
)

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


def voc_colors(num_colors: int) -> Tuple[Color, ...]:
    """Colours of VOC's palette, which has the bits of a label spread over red, green and blue.

    Args:
        num_colors: How many.

    Returns:
        Red, green and blue of labels 0, 1, ...
    """
    return tuple(  # bit 3 k + c of a label is bit 7 - k of its channel c
        (_spread(label, 0), _spread(label, 1), _spread(label, 2)) for label in range(num_colors))


def _spread(label: int, channel: int) -> int:
    return sum((label >> (3 * k + channel) & 1) << (7 - k) for k in range(8))


@dataclass(frozen=True)
class Labels:
    """What masks of a data set mean.

    Attributes:
        names: The classes.
        values: The value of each class in masks of one channel; 0, 1, ... if empty.
        void: Values that are of no class.
        colors: The colour of each class in RGB masks, and in pictures; those of VOC's palette if empty.
        void_colors: Colours that are of no class.

    Raises:
        ValueError: There are too many or too few of one of them, or one stands for two classes.
    """
    names: Tuple[str, ...]
    values: Tuple[int, ...] = ()
    void: Tuple[int, ...] = (IGNORE_INDEX,)
    colors: Tuple[Color, ...] = ()
    void_colors: Tuple[Color, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 1 <= count <= IGNORE_INDEX:
            raise ValueError(f'There are {count} classes, expected 1 to {IGNORE_INDEX}.')
        if not self.values:
            object.__setattr__(self, 'values', tuple(range(count)))
        if not self.colors:
            object.__setattr__(self, 'colors', voc_colors(count))
        for what, given, void in (('values', self.values, self.void), ('colors', self.colors, self.void_colors)):
            if len(given) != count:
                raise ValueError(f'There are {len(given)} {what} for {count} classes, expected one for each.')
            if what == 'values' and len({*given, *void}) != len(given) + len(void):
                raise ValueError('A value stands for two classes, or for one and for none: give each its own.')

    @classmethod
    def from_json(cls, fields: Dict[str, Any]) -> 'Labels':
        """Labels from lists, as JSON has them."""
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
        ValueError: The file is missing, or has other fields or values.
    """
    if name in LABELS:
        return LABELS[name]
    try:
        return Labels.from_json(json.loads(Path(name).read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{name} names no labels ({error}): give {", ".join(LABELS)} or a JSON file with names and, if need be, '
            'values, void, colors and void_colors.') from None


class Sample(NamedTuple):
    """An image and its mask.

    Attributes:
        image: The image's file.
        mask: The mask's file.
    """
    image: Path
    mask: Path


def find_samples(folder: Union[str, Path], split: str) -> List[Sample]:
    """Images of a split and their masks, which have the same name but for its ending.

    Args:
        folder: Folder laid out as CamVid, VOC or ADE20K, or with images/SPLIT and masks/SPLIT or the other way round.
        split: 'train', 'val', 'test' or whatever the folder has.

    Returns:
        The pairs, by name.

    Raises:
        ValueError: The folder is laid out in another way, is empty, or lacks a mask.
    """
    root = Path(folder)
    for images, masks, names in LAYOUTS:
        name = split if (root / images.format(split=split)).is_dir() else names.get(split, split)
        images_dir, masks_dir = root / images.format(split=name), root / masks.format(split=name)
        if images_dir.is_dir() and masks_dir.is_dir():
            break
    else:
        raise ValueError(
            f'{root} has no images and masks of {split}, expected {split}/ and {split}annot/, JPEGImages/ and '
            f'SegmentationClass/, images/{split}/ and annotations/{split}/ or masks/{split}/, or {split}/images/ and '
            f'{split}/masks/: check the path.')
    files = sorted(f for f in images_dir.iterdir() if f.is_file() and not f.name.startswith('.'))
    listed = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
    if images == 'JPEGImages':
        if not listed.is_file():
            raise ValueError(f'{listed} is missing, expected the names of the images of {split}: check the path.')
        by_stem = {f.stem: f for f in files}
        wanted = listed.read_text(encoding='utf-8').split()
        missing = [stem for stem in wanted if stem not in by_stem]
        if missing:
            raise ValueError(f'{images_dir} has no image {missing[0]}, which {listed} names: get the data again.')
        files = [by_stem[stem] for stem in wanted]
    if not files:
        raise ValueError(f'{images_dir} is empty, expected images: check the path.')
    found = {f.stem: f for f in masks_dir.iterdir() if f.is_file() and not f.name.startswith('.')}
    for file in files:
        if file.stem not in found:
            raise ValueError(f'{file} has no mask, expected {masks_dir / file.stem}.png: add it, or take it away.')
    return [Sample(file, found[file.stem]) for file in files]


def read_image(file: Path, in_chans: int = 3) -> torch.Tensor:
    """Read an image.

    Args:
        file: The file.
        in_chans: Channels wanted: 1 for grey, 3 for RGB, 4 for RGBA.

    Returns:
        Whole numbers (in_chans, H, W).

    Raises:
        ValueError: The file is damaged or has more than 8 bits a channel, or there are no images of so many channels.
    """
    if in_chans not in MODES:
        raise ValueError(f'Files hold no images of {in_chans} channels, expected 1, 3 or 4: give tensors instead.')
    image = _open(file)
    if image.mode.startswith(('I', 'F')):  # which PIL would clip
        raise ValueError(f'{file} is of mode {image.mode}, expected 8 bits a channel: convert it.')
    pixels = np.array(image.convert(MODES[in_chans]))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], in_chans)).permute(2, 0, 1)


def read_labels(file: Path, labels: Labels) -> torch.Tensor:
    """Read a mask.

    Args:
        file: The file.
        labels: What its values or colours mean.

    Returns:
        Class of each pixel, and `IGNORE_INDEX` where it is void (H, W).

    Raises:
        ValueError: The file is damaged, or has a value or a colour that means nothing.
    """
    image = _open(file)
    if image.mode in ('RGB', 'RGBA', 'CMYK', 'YCbCr'):
        pixels = np.array(image.convert('RGB')).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        keys = [(r << 16) + (g << 8) + b for r, g, b in (*labels.colors, *labels.void_colors)]
        what = 'colour'
        if len({*keys}) < len(keys):
            raise ValueError(
                f'{file} is an RGB mask, and a colour of the labels stands for two classes: give masks of one channel, '
                'or labels that tell them apart.')
    else:
        pixels = np.array(image).astype(np.int64)
        keys = [*labels.values, *labels.void]
        what = 'value'
        if pixels.ndim != 2:
            raise ValueError(f'{file} is of mode {image.mode}, expected a mask of one channel or RGB: convert it.')
    meanings = np.array([*range(len(labels.names)), *[IGNORE_INDEX] * (len(keys) - len(labels.names))])
    order = np.argsort(keys, kind='stable')
    sorted_keys = np.array(keys)[order]
    places = np.searchsorted(sorted_keys, pixels).clip(max=len(keys) - 1)
    unknown = pixels[sorted_keys[places] != pixels]
    if unknown.size:
        shown = ', '.join(f'#{v:06x}' if what == 'colour' else str(v) for v in np.unique(unknown)[:5])
        raise ValueError(
            f'{file} has {unknown.size} pixels of {what} {shown}, expected those of the {len(labels.names)} classes or '
            'void: mend the mask, or give labels that name them.')
    return torch.from_numpy(meanings[order][places])


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f'{file} cannot be decoded ({error}): get it again, or take it away.') from None


def statistics_of(in_chans: int) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    """Mean and standard deviation that images are normalised with: ImageNet's, or 0.5 for other channels than RGB.

    Args:
        in_chans: Channels of the image.

    Returns:
        Both, for pixels from 0 to 1.
    """
    if in_chans == 3:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return (0.5,) * in_chans, (0.5,) * in_chans


def eval_transform(in_chans: int = 3, img_size: Optional[Sequence[int]] = None) -> v2.Compose:
    """Normalisation and, on request, another size.

    Args:
        in_chans: Channels of the image.
        img_size: Height and width to resize images and masks to; None leaves them as they are.

    Returns:
        A transform of an image and its mask.
    """
    mean, std = statistics_of(in_chans)
    resize = [] if img_size is None else [v2.Resize(list(img_size), antialias=True)]
    return v2.Compose([*resize, v2.ToDtype({tv_tensors.Image: torch.float32, 'others': None}, scale=True),
                       v2.Normalize(list(mean), list(std))])


def train_transform(
        crop_size: Sequence[int],
        in_chans: int = 3,
        img_size: Optional[Sequence[int]] = None,
        scale: Tuple[float, float] = (0.5, 2.0),
        vflip: float = 0.,
        color_jitter: float = 0.3,
) -> v2.Compose:
    """Augmentation: random scale, crop, flips and colours.

    Args:
        crop_size: Height and width of crops; what a scaled image lacks is grey, and void in the mask.
        in_chans: Channels of the image.
        img_size: Height and width that scale 1 stands for, the crop's if None.
        scale: Range of scales.
        vflip: Probability of an upside-down flip.
        color_jitter: Range of brightness, contrast and saturation; only of grey and RGB images.

    Returns:
        A transform of an image and its mask.
    """
    mean, _ = statistics_of(in_chans)
    fill: Dict[Any, Any] = {tv_tensors.Image: [255 * m for m in mean], tv_tensors.Mask: IGNORE_INDEX}
    jitter = [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter and in_chans in (1, 3) else []
    return v2.Compose([
        v2.ScaleJitter(tuple(img_size or crop_size), scale_range=scale, antialias=True),
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
        ValueError: The folder is laid out in another way, is empty, or lacks a mask.
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
                f'{width} x {height}, expected one size: mend the pair, or take it away.')
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor).long()
