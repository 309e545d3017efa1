"""Images with annotations in COCO format: a JSON file and a folder of images."""

import contextlib
import functools
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import convert_bounding_box_format, to_dtype, to_image

from .._extras import require_extra
from ..data.images import open_image
from ..memory.options import check_option

__all__ = ['CocoImages', 'collate', 'make_coco', 'read_coco', 'require_pycocotools']

PathLike = Union[str, 'os.PathLike[str]']
MODES = {1: 'L', 3: 'RGB'}

require_pycocotools = functools.partial(require_extra, extra='detection', what='Data in the form of COCO')

MAX_SIDE = 2 ** 16  # of an image in pixels


def make_coco(content: Dict[str, Any]) -> Any:
    """Index annotations as a `pycocotools.coco.COCO`, without its prints."""
    coco = require_pycocotools('pycocotools.coco').COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turn the errors of damaged annotations into one sentence."""
    try:
        yield
    except OSError:  # names its file
        raise
    except Exception as error:  # pycocotools raises bare exceptions too
        reason = str(error) if type(error) is ValueError else f'{type(error).__name__}: {error}'
        raise ValueError(f'{what} ({reason}): repair or remove it.') from error


def read_coco(source: Any) -> Any:
    """Complete and check annotations: a file in COCO format, or a `pycocotools.coco.COCO`.

    A missing iscrowd becomes 0, and a missing area that of the box. A ValueError is raised for faults that break
    training or evaluation.
    """
    coco, file = source, 'The truth'
    if isinstance(source, (str, os.PathLike)):
        file = str(source)
        with _damage(f'{file} is not a JSON file in the form of COCO'):
            coco = make_coco(dict(json.loads(Path(file).read_text(encoding='utf-8-sig'))))
    for info in coco.dataset.get('images', []):
        with _damage(f'{file}: image {info.get("id")} is damaged'):
            if not all(type(info[side]) is int and 0 < info[side] < MAX_SIDE for side in ('height', 'width')):
                raise ValueError('its height or width is no number of pixels')
    for entry in coco.dataset.get('annotations', []):
        with _damage(f'{file}: annotation {entry["id"]} is damaged'):
            if not int(entry['id']) or coco.anns[entry['id']] is not entry:  # COCOeval takes 0 for no match
                raise ValueError('its id is 0 or given twice')
            if entry['image_id'] not in coco.imgs or entry['category_id'] not in coco.cats:
                raise ValueError('the file does not list its image or its category')
            entry['bbox'] = x, y, width, height = [float(value) for value in entry['bbox']]
            entry['area'] = float(entry.get('area', width * height))
            if not abs(x) + abs(y) + abs(width) + abs(height) + abs(entry['area']) < MAX_SIDE ** 2:
                raise ValueError('its bbox or area is not finite or far too large')
            entry['iscrowd'] = int(entry.get('iscrowd', 0))
            if entry.get('segmentation') == [[]]:  # as exports of boxes have it
                entry['segmentation'] = []
            _check_segmentation(entry.get('segmentation') or [], coco.imgs[entry['image_id']])
    return coco


def _check_segmentation(segmentation: Any, info: Dict[str, Any]) -> None:
    """Raise for masks that crash pycocotools or read memory beyond them; far-off polygons would fill the memory."""
    height, width = info['height'], info['width']
    if isinstance(segmentation, dict):
        if list(segmentation['size']) != [height, width]:
            raise ValueError('its mask has another size than its image')
        runs = segmentation['counts']
        if isinstance(runs, (str, bytes)):
            runs = _decode_runs(runs)
        if min(runs) < 0 or sum(runs) != height * width:
            raise ValueError('its run lengths are not those of its image')
        return
    limit = 2 * max(height, width)
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2 or not all(abs(value) <= limit for value in polygon):
            raise ValueError('a polygon has fewer than 3 points, or coordinates far outside of its image')


def _decode_runs(text: Union[str, bytes]) -> List[int]:
    """Decode the compressed run lengths of COCO: 5 bits a character, and from the third on differences."""
    runs: List[int] = []
    value = shift = 0
    for character in text.encode('ascii') if isinstance(text, str) else text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last one of a number, whose sign is bit 4
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError('its run lengths end within a number')
    return runs


def _is_target(entry: Dict[str, Any]) -> bool:
    return not entry['iscrowd'] and min(entry['bbox'][2:]) > 0


class CocoImages(Dataset[Tuple[torch.Tensor, Dict[str, Any]]]):
    """Images and targets for torchvision's detectors, from annotations in COCO format.

    Images are turned by their EXIF orientation, since annotations refer to what annotators saw. Labels are the file's
    category ids. Crowds and boxes without area, which occur in COCO, are not targets; evaluation by `coco` includes
    both.

    Args:
        folder: Folder of the images.
        annotations: File of the annotations.
        transforms: Applied to image and target together, such as `torchvision.transforms.v2.RandomHorizontalFlip`.
        masks: Whether targets have masks.
        in_chans: 3 to read images as RGB, 1 as gray.
        keep_empty: Whether to keep images without targets.

    Attributes:
        coco: The annotations, a `pycocotools.coco.COCO`.
        ids: Id of each image.
        names: Name of each class by its label.
        num_classes: `num_classes` of `create_model`: the largest label plus one for the background.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not in COCO format, an annotation is damaged, or `in_chans` is out of range.

    Examples:
        >>> content = dict(
        ...     images=[dict(id=1, file_name='photo.jpg', height=427, width=640)],
        ...     annotations=[dict(id=1, image_id=1, category_id=1, bbox=[100, 120, 450, 260])],
        ...     categories=[dict(id=1, name='pavilion')])
        >>> _ = Path('boxes.json').write_text(json.dumps(content))
        >>> image, target = CocoImages('.', 'boxes.json', masks=False)[0]
        >>> image.shape, target['labels']
        (torch.Size([3, 427, 640]), tensor([1]))
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
        check_option('in_chans', in_chans, tuple(MODES))
        require_pycocotools('pycocotools.coco')
        self.annotations, self.transforms, self.masks = annotations, transforms, masks
        self.mode = MODES[in_chans]
        self.coco = read_coco(annotations)
        with _damage(f'{annotations} lacks a name of a file or class'):
            self.names = {c['id']: str(c['name']) for c in self.coco.cats.values()}
            self.files = {i['id']: Path(folder, i['file_name']) for i in self.coco.imgs.values()}
        if min(self.names, default=0) < 1:
            raise ValueError(f'{annotations} has no categories or one of id 0, the background: number them from 1.')
        self.num_classes = max(self.names) + 1
        targets = [entry for entry in self.coco.anns.values() if _is_target(entry)]
        for entry in targets:
            if masks and not entry.get('segmentation'):
                raise ValueError(
                    f'{annotations}: annotation {entry["id"]} has no segmentation: add it, or ask for masks=False.')
        empty = sum(not entry['iscrowd'] for entry in self.coco.anns.values()) - len(targets)
        if empty:
            warnings.warn(f'{empty} boxes in {annotations} have no area and are left out of the targets.', stacklevel=2)
        self.ids = sorted(self.coco.imgs if keep_empty else {entry['image_id'] for entry in targets})

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, Dict[str, Any]]:
        """Image (in_chans, H, W) from 0 to 1, and its boxes, labels, masks and image_id."""
        info = self.coco.imgs[self.ids[index]]
        file, size = self.files[info['id']], (info['height'], info['width'])
        image = to_dtype(to_image(open_image(file, self.mode, upright=True)), torch.float32, scale=True)
        if image.shape[1:] != size:
            raise ValueError(
                f'{file} is {image.shape[2]} x {image.shape[1]} pixels, turned as its EXIF orientation says, and '
                f'{size[1]} x {size[0]} in {self.annotations}: give the images that were annotated.')
        entries = [entry for entry in self.coco.imgToAnns[info['id']] if _is_target(entry)]
        boxes = torch.tensor([entry['bbox'] for entry in entries]).reshape(-1, 4)
        target: Dict[str, Any] = dict(
            image_id=info['id'],
            boxes=convert_bounding_box_format(
                tv_tensors.BoundingBoxes(boxes, format='XYWH', canvas_size=size), new_format='XYXY'),
            labels=torch.tensor([entry['category_id'] for entry in entries], dtype=torch.int64))
        if self.masks:
            target['masks'] = tv_tensors.Mask(torch.zeros(len(entries), *size, dtype=torch.uint8))
            for mask, entry in zip(target['masks'], entries):
                with _damage(f'{self.annotations}: annotation {entry["id"]} is damaged'):
                    mask.copy_(torch.from_numpy(self.coco.annToMask(entry)))
        return (image, target) if self.transforms is None else self.transforms(image, target)


def collate(samples: Sequence[Tuple[Any, Any]]) -> Tuple[List[Any], List[Any]]:
    """Collect images and targets of any size in lists, as a loader's `collate_fn`.

    Args:
        samples: Images and targets.

    Returns:
        The images, and the targets.

    Examples:
        >>> images, targets = collate([(torch.rand(3, 64, 48), {}), (torch.rand(3, 32, 32), {})])
        >>> len(images), len(targets)
        (2, 2)
    """
    return [image for image, _ in samples], [target for _, target in samples]
