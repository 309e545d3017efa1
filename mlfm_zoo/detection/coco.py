"""Annotated images in the form of COCO: one JSON file and a folder of images."""

import contextlib
import io
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

__all__ = ['CocoImages', 'collate', 'make_coco', 'read_coco', 'require_pycocotools']

PathLike = Union[str, 'os.PathLike[str]']
MODES = {1: 'L', 3: 'RGB'}


def require_pycocotools() -> Any:
    """Import pycocotools.

    Returns:
        The package, with its modules coco, cocoeval and mask.

    Raises:
        RuntimeError: It is not installed.
    """
    try:
        import pycocotools
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError:
        raise RuntimeError(
            "Annotations in COCO's form and their measures need pycocotools, which is not installed: pip install "
            "'mlfm-zoo[detection]'.") from None
    return pycocotools


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
        ValueError: It is something else, or one of its annotations is broken.
    """
    path = Path(file)
    require_pycocotools()
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {path}: give the JSON file of annotations in COCO\'s form.')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError):
        raise ValueError(
            f'{path} cannot be read as JSON: give the file of annotations in COCO\'s form, whole.') from None
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f'{path} has no list of {key}, expected images, annotations and categories as in COCO\'s instances.')
    _need(path, content, 'images', 'id', 'file_name', 'height', 'width')
    _need(path, content, 'categories', 'id', 'name')
    _need(path, content, 'annotations', 'id', 'image_id', 'category_id', 'bbox')
    images, categories = ({entry['id'] for entry in content[key]} for key in ('images', 'categories'))
    if not all(isinstance(category, int) and category > 0 for category in categories):
        raise ValueError(
            f'{path} has a category whose id is not 1 or more: 0 is the background, so number them from 1.')
    for entry in content['annotations']:
        what = f'{path}: annotation {entry["id"]}'
        if entry['image_id'] not in images or entry['category_id'] not in categories:
            raise ValueError(
                f'{what} is of an image or a category that the file does not list: add it, or remove this.')
        box = entry['bbox']
        if not isinstance(box, list) or len(box) != 4 or not all(
                isinstance(v, (int, float)) and math.isfinite(v) for v in box):
            raise ValueError(f'{what} has the box {box!r}, expected x, y, width and height in pixels.')
        entry.setdefault('iscrowd', 0)
        entry.setdefault('area', box[2] * box[3])
    return make_coco(content)


def _need(path: Path, content: Mapping[str, Any], key: str, *fields: str) -> None:
    for i, entry in enumerate(content[key]):
        lacks = [f for f in fields if f not in entry] if isinstance(entry, dict) else list(fields)
        if lacks:
            raise ValueError(f'{path}: entry {i} of {key} has no {lacks[0]}, expected {", ".join(fields)}.')


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
            try:
                mask.copy_(torch.from_numpy(self.coco.annToMask(entry)))
            except Exception:  # of any kind: pycocotools does not check what it is given
                raise ValueError(
                    f'{self.file}: the segmentation of annotation {entry["id"]} is neither polygons nor run lengths of '
                    'its image: repair or remove it.') from None
        return masks


def collate(samples: Sequence[Tuple[Any, Any]]) -> Tuple[List[Any], List[Any]]:
    """Lists of images and targets, which may be of any sizes, for `collate_fn` of a loader.

    Args:
        samples: Images and targets.

    Returns:
        The images, and the targets.
    """
    return [image for image, _ in samples], [target for _, target in samples]
