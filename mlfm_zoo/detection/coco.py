"""Annotated images in the form of COCO: one JSON file and a folder of images."""

import contextlib
import io
import json
import os
import reprlib
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

from .._extras import require_extra

__all__ = ['CocoImages', 'collate', 'make_coco', 'read_coco', 'require_pycocotools']

PathLike = Union[str, 'os.PathLike[str]']
MODES = {1: 'L', 3: 'RGB'}

# Above every number of pixels, and within what float32 and COCOeval take.
TOO_LARGE = 10 ** 12


def _is_number(value: Any, least: float = -TOO_LARGE) -> bool:
    return type(value) in (int, float) and least <= value < TOO_LARGE  # neither a boolean nor NaN


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


# What the fields of each list hold: how it is checked, and said.
FIELDS: Dict[str, Dict[str, Tuple[Callable[[Any], bool], str]]] = {
    'images': dict(
        id=(_is_id, 'a whole number or a string'),
        file_name=(lambda value: isinstance(value, str), 'a string'),
        height=(_is_count, 'a whole number, 1 or more'),
        width=(_is_count, 'a whole number, 1 or more'),
    ),
    'categories': dict(
        id=(_is_count, 'a whole number, 1 or more: 0 is the background'),
        name=(_is_id, 'a string or a number'),
    ),
    'annotations': dict(
        id=(_is_count, 'a whole number, 1 or more: COCOeval takes 0 for none'),
        image_id=(_is_id, 'the id of an image'),
        category_id=(_is_count, 'the id of a category'),
        bbox=(_is_box, 'x, y, width and height in pixels'),
        iscrowd=(lambda value: type(value) in (int, bool) and value in (0, 1), '0 or 1'),
        area=(lambda value: _is_number(value, 0), 'a number of pixels'),
    ),
}
OPTIONAL = ('iscrowd', 'area')


def require_pycocotools() -> Any:
    """Import pycocotools.

    Returns:
        The package, with its modules coco, cocoeval and mask.

    Raises:
        RuntimeError: It is not installed.
    """
    what = "Reading and measuring COCO's form of annotations"
    for module in ('coco', 'cocoeval', 'mask'):
        require_extra(f'pycocotools.{module}', 'detection', what)
    return require_extra('pycocotools', 'detection', what)


def make_coco(content: Dict[str, Any]) -> Any:
    """Index annotations with pycocotools, which prints otherwise.

    Args:
        content: What a file of annotations holds.

    Returns:
        A `pycocotools.coco.COCO`.
    """
    coco = require_pycocotools().coco.COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_coco(file: PathLike) -> Any:
    """Read a file of annotations, and see that it is one.

    Args:
        file: JSON in the form of COCO's instances: images, annotations and categories.

    Returns:
        A `pycocotools.coco.COCO`. Annotations without area or iscrowd are given that of their box, and 0.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else, or one of its entries is in bad form.
    """
    path = Path(file)
    require_pycocotools()
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {path}: give the JSON file of annotations in COCO\'s form.')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError, RecursionError):
        raise ValueError(
            f'{path} cannot be read as JSON: give the file of annotations in COCO\'s form, whole.') from None
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f'{path} has no list of {key}, expected images, annotations and categories as in COCO\'s instances.')
    for key in FIELDS:
        for i, entry in enumerate(content[key]):
            _check_entry(path, key, i, entry)
        ids = [entry['id'] for entry in content[key]]
        if len(set(map(type, ids))) > 1:
            raise ValueError(f'{path}: some ids of {key} are numbers and some strings, expected one kind.')
        twice = [i for i, count in Counter(ids).items() if count > 1]
        if twice:
            raise ValueError(f'{path}: several {key} have the id {twice[0]!r}, expected an id of its own for each.')
    sizes = {entry['id']: (entry['height'], entry['width']) for entry in content['images']}
    categories = {entry['id'] for entry in content['categories']}
    for entry in content['annotations']:
        what = f'annotation {entry["id"]}'
        if entry['image_id'] not in sizes or entry['category_id'] not in categories:
            raise ValueError(
                f'{path}: {what} is of an image or a category that the file does not list: add it, or remove this.')
        if entry.get('segmentation') == [[]]:  # as exports of boxes have it
            entry['segmentation'] = []
        size = sizes[entry['image_id']]
        if entry.get('segmentation') and not _is_segmentation(entry['segmentation'], *size):
            raise ValueError(
                f'{path}: the segmentation of {what} is neither polygons nor run lengths of its image of {size[1]} x '
                f'{size[0]} pixels: repair or remove it.')
        entry.setdefault('iscrowd', 0)
        entry.setdefault('area', entry['bbox'][2] * entry['bbox'][3])
    return make_coco(content)


def _check_entry(path: Path, key: str, number: int, entry: Any) -> None:
    for field, (check, expected) in FIELDS[key].items():
        if not isinstance(entry, dict) or field not in entry:
            if not isinstance(entry, dict) or field not in OPTIONAL:
                needed = ', '.join(f for f in FIELDS[key] if f not in OPTIONAL)
                raise ValueError(f'{path}: entry {number} of {key} has no {field}, expected {needed}.')
        elif not check(entry[field]):
            raise ValueError(
                f'{path}: {field} of entry {number} of {key} is {reprlib.repr(entry[field])}, expected {expected}.')


def _is_segmentation(value: Any, height: int, width: int) -> bool:
    """Whether it is polygons, or run lengths of an image, of which pycocotools asks little."""
    if isinstance(value, list):
        # no fewer numbers than pycocotools takes, and no NaN; COCO has millions, so not one by one
        return all(
            isinstance(polygon, list) and len(polygon) >= 4 and set(map(type, polygon)) <= {int, float}
            and sum(map(abs, polygon)) < TOO_LARGE
            for polygon in value)
    if not isinstance(value, dict) or value.get('size') != [height, width] or not all(map(_is_count, value['size'])):
        return False
    counts = value.get('counts')
    if isinstance(counts, str):
        counts = _decode_counts(counts)
    return (
        isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
        and sum(counts) == height * width)


def _decode_counts(text: str) -> Optional[List[int]]:
    """Run lengths of a compressed string, as COCO's maskApi.c writes it; None if it is none.

    Five bits a character, lowest first, and a sixth if more follow; from the fourth on, the difference to the last but
    one.
    """
    counts: List[int] = []
    count = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        count |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:  # the sign
                count -= 1 << shift
            counts.append(count + (counts[-2] if len(counts) > 2 else 0))
            count = shift = 0
    return None if shift else counts


class CocoImages(Dataset[Tuple[torch.Tensor, Dict[str, Any]]]):
    """Images and targets, as torchvision's detectors take them, from annotations in the form of COCO.

    Labels are the file's category ids. Crowds, and boxes without area, which COCO itself has, are no targets; the
    evaluation by `coco` knows of both.

    Args:
        folder: Folder of the images.
        annotations: File of the annotations.
        transforms: What is done to image and target together, such as `torchvision.transforms.v2.RandomHorizontalFlip`.
        masks: Whether targets have masks.
        in_chans: 3 to read images as RGB, 1 as grey.
        keep_empty: Whether images without targets are among them.

    Attributes:
        coco: The annotations, a `pycocotools.coco.COCO`.
        names: Name of each class by its label.
        num_classes: What `create_model` takes: the largest label, and the background.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The file holds something else, or `in_chans` is out of range.
    """

    def __init__(
            self,
            folder: PathLike,
            annotations: PathLike,
            transforms: Optional[Callable[..., Any]] = None,
            masks: bool = True,
            in_chans: int = 3,
            keep_empty: bool = True,
    ):
        if in_chans not in MODES:
            raise ValueError(f'in_chans is {in_chans!r}, expected 3 for RGB or 1 for grey images.')
        self.folder, self.transforms, self.masks = Path(folder), transforms, masks
        self.mode = MODES[in_chans]
        if not self.folder.is_dir():
            raise FileNotFoundError(f'There is no folder {self.folder}: give the folder of the images.')
        self.coco = read_coco(annotations)
        self.file = Path(annotations)
        self.names = {c['id']: str(c['name']) for c in self.coco.dataset['categories']}
        if not self.names:
            raise ValueError(f'{self.file} has no categories: a detector needs one at least.')
        self.num_classes = max(self.names) + 1
        entries = [a for a in self.coco.dataset['annotations'] if not a['iscrowd']]
        self._targets: Dict[Any, List[Dict[str, Any]]] = {}
        for entry in entries:
            if min(entry['bbox'][2:]) > 0:
                self._targets.setdefault(entry['image_id'], []).append(entry)
                if masks and not entry.get('segmentation'):
                    raise ValueError(
                        f'{self.file}: annotation {entry["id"]} has no segmentation: add it, or ask for masks=False.')
        empty = len(entries) - sum(map(len, self._targets.values()))
        if empty:
            warnings.warn(f'{empty} boxes in {self.file} have no area and are left out of the targets.', stacklevel=2)
        self.ids = [i for i in sorted(self.coco.imgs) if keep_empty or i in self._targets]
        if not self.ids:
            raise ValueError(f'{self.file} lists no images to read: give one that does.')

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, Dict[str, Any]]:
        """Image (in_chans, H, W) from 0 to 1, and its boxes, labels, masks and image_id."""
        info = self.coco.imgs[self.ids[index]]
        file = self.folder / info['file_name']
        try:
            with Image.open(file) as opened:
                image = opened.convert(self.mode)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'There is no image {file}, which {self.file} lists: get it, or another list.') from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise ValueError(f'{file} cannot be decoded as an image: repair or remove it.') from None
        size = (image.height, image.width)
        if size != (info['height'], info['width']):
            raise ValueError(
                f'{file} is {size[1]} x {size[0]} pixels, and {info["width"]} x {info["height"]} in {self.file}: give '
                'the images that were annotated.')
        pixels: torch.Tensor = tv_tensors.Image(to_dtype(pil_to_tensor(image), torch.float32, scale=True))
        entries = self._targets.get(info['id'], [])
        boxes = torch.tensor([e['bbox'] for e in entries], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target: Dict[str, Any] = dict(
            boxes=tv_tensors.BoundingBoxes(boxes, format='XYXY', canvas_size=size),
            labels=torch.tensor([e['category_id'] for e in entries], dtype=torch.int64),
            image_id=info['id'],
        )
        if self.masks:
            target['masks'] = tv_tensors.Mask(self._masks(entries, size))
        if self.transforms is not None:
            pixels, target = self.transforms(pixels, target)
        return pixels, target

    def _masks(self, entries: Sequence[Dict[str, Any]], size: Tuple[int, int]) -> torch.Tensor:
        masks = torch.zeros(len(entries), *size, dtype=torch.uint8)
        for mask, entry in zip(masks, entries):
            mask.copy_(torch.from_numpy(self.coco.annToMask(entry)))
        return masks


def collate(samples: Sequence[Tuple[Any, Any]]) -> Tuple[List[Any], List[Any]]:
    """Lists of images and targets, which may be of any sizes, for `collate_fn` of a loader.

    Args:
        samples: Images and targets.

    Returns:
        The images, and the targets.
    """
    return [image for image, _ in samples], [target for _, target in samples]
