"""Images annotated in COCO's form: one JSON file and a folder of images, read by torchvision and pycocotools."""

import contextlib
import functools
import io
import math
import os
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms.v2.functional import to_dtype, to_image

from .._extras import require_extra
from ..data.images import open_image
from ..memory.options import check_option

__all__ = ['CocoImages', 'collate', 'make_coco', 'read_coco', 'require_pycocotools']

PathLike = Union[str, 'os.PathLike[str]']
MODES = {1: 'L', 3: 'RGB'}

require_pycocotools = functools.partial(require_extra, extra='detection', what='Data in the form of COCO')

# pycocotools ends the interpreter on polygons with coordinates that are no numbers or beyond 4.2e8.
MAX_COORDINATE = 10 ** 6


def make_coco(content: Dict[str, Any]) -> Any:
    """Index annotations with pycocotools, without its prints.

    Args:
        content: What a file of annotations holds.

    Returns:
        A `pycocotools.coco.COCO`.
    """
    coco = require_pycocotools('pycocotools.coco').COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_coco(file: PathLike) -> Any:
    """Read a file of annotations and check each of them.

    Args:
        file: JSON in the form of COCO's instances: images, annotations and categories.

    Returns:
        A `pycocotools.coco.COCO`. Annotations without iscrowd or area get 0 and the area of their box.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not in COCO's form, or an annotation is damaged.
    """
    coco_class = require_pycocotools('pycocotools.coco').COCO
    with _damage(f'{file} is not a JSON file in the form of COCO'):
        coco = coco_class(file)
    _check(coco, file)
    return coco


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    """Say in one sentence what is damaged, whatever pycocotools raises, and keep it from printing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except OSError:  # names its file
        raise
    except Exception as error:  # pycocotools raises bare exceptions too
        reason = str(error) if type(error) is ValueError else f'{type(error).__name__}: {error}'
        raise ValueError(f'{what} ({reason}): repair or remove it.') from error


def _check(coco: Any, file: PathLike) -> None:
    """Complete the annotations, and raise for what would stop a training or falsify an evaluation later."""
    for entry in coco.dataset.get('annotations', []):
        with _damage(f'{file}: annotation {entry["id"]} is damaged'):
            if not entry['id'] or coco.anns[entry['id']] is not entry:  # COCOeval takes 0 for no match
                raise ValueError('its id is 0 or given twice')
            if entry['image_id'] not in coco.imgs or entry['category_id'] not in coco.cats:
                raise ValueError('the file does not list its image or its category')
            entry['bbox'] = x, y, width, height = [float(value) for value in entry['bbox']]
            if not math.isfinite(x + y + width + height):
                raise ValueError('its bbox is not finite')
            entry.setdefault('iscrowd', 0)
            entry.setdefault('area', width * height)
            if entry.get('segmentation') == [[]]:  # as exports of boxes have it
                entry['segmentation'] = []
            polygons = entry['segmentation'] if isinstance(entry.get('segmentation'), list) else []
            if not all(len(polygon) >= 6 and all(abs(v) < MAX_COORDINATE for v in polygon) for polygon in polygons):
                raise ValueError('a polygon has fewer than 3 points, or coordinates out of range')


def _is_target(entry: Dict[str, Any]) -> bool:
    return not entry['iscrowd'] and min(entry['bbox'][2:]) > 0


class _Targets(CocoDetection):
    """torchvision's dataset without crowds and boxes without area; `open_image` reads the images."""

    def __init__(self, folder: PathLike, file: PathLike, masks: bool, mode: str):
        with _damage(f'{file} is not a JSON file in the form of COCO'):
            super().__init__(folder, file)
        _check(self.coco, file)
        self.file, self.masks, self.mode = file, masks, mode

    def _load_image(self, id: Any) -> Image.Image:
        info = self.coco.imgs[id]
        file = Path(self.root, info['file_name'])
        image = open_image(file, self.mode)
        if image.size != (info['width'], info['height']):
            raise ValueError(
                f'{file} is {image.width} x {image.height} pixels, and {info["width"]} x {info["height"]} in '
                f'{self.file}: give the images that were annotated.')
        return image

    def _load_target(self, id: Any) -> List[Dict[str, Any]]:
        entries = [entry for entry in super()._load_target(id) if _is_target(entry)]
        info = self.coco.imgs[id]
        for entry in entries:
            if self.masks and not isinstance(entry['segmentation'], list):  # only decoding shows what is in run lengths
                with _damage(f'{self.file}: annotation {entry["id"]} is damaged'):
                    if self.coco.annToMask(entry).shape != (info['height'], info['width']):
                        raise ValueError('its mask has another size than its image')
        return entries


class CocoImages(Dataset[Tuple[torch.Tensor, Dict[str, Any]]]):
    """Images and targets for torchvision's detectors, from annotations in COCO's form.

    Labels are the file's category ids. Crowds are no targets, nor are boxes without area, which COCO itself has; the
    evaluation by `coco` knows both.

    Args:
        folder: Folder of the images.
        annotations: File of the annotations.
        transforms: Applied to image and target together, such as `torchvision.transforms.v2.RandomHorizontalFlip`.
        masks: Whether targets have masks.
        in_chans: 3 to read images as RGB, 1 as grey.
        keep_empty: Whether to keep images without targets.

    Attributes:
        coco: The annotations, a `pycocotools.coco.COCO`.
        ids: Id of each image.
        names: Name of each class by its label.
        num_classes: What `create_model` takes: the largest label, and the background.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not in COCO's form, an annotation is damaged, or `in_chans` is out of range.

    Example:
        >>> data = CocoImages('val2017', 'annotations/instances_val2017.json')    # doctest: +SKIP
        >>> image, target = data[0]                                               # doctest: +SKIP
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
        data = _Targets(folder, annotations, masks, MODES[in_chans])
        self.coco, self.masks, self.transforms = data.coco, masks, transforms
        self.names = {c['id']: str(c['name']) for c in self.coco.cats.values()}
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
        if not keep_empty:
            data.ids = sorted({entry['image_id'] for entry in targets})
        if not data.ids:
            raise ValueError(f'{annotations} lists no images to read: give one that does.')
        self.ids = data.ids
        self._data = wrap_dataset_for_transforms_v2(
            data, {'boxes', 'labels', 'image_id', *(('masks',) if masks else ())})

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, Dict[str, Any]]:
        """Image (in_chans, H, W) from 0 to 1, and its boxes, labels, masks and image_id."""
        image, target = self._data[index]
        size = (image.height, image.width)
        if 'boxes' not in target:  # torchvision leaves out what is empty
            target['boxes'] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format='XYXY', canvas_size=size)
            target['labels'] = torch.zeros(0, dtype=torch.int64)
            if self.masks:
                target['masks'] = tv_tensors.Mask(torch.zeros(0, *size, dtype=torch.uint8))
        pixels = to_dtype(to_image(image), torch.float32, scale=True)
        return (pixels, target) if self.transforms is None else self.transforms(pixels, target)


def collate(samples: Sequence[Tuple[Any, Any]]) -> Tuple[List[Any], List[Any]]:
    """Collect images and targets of any sizes in lists, as the `collate_fn` of a loader.

    Args:
        samples: Images and targets.

    Returns:
        The images, and the targets.
    """
    return [image for image, _ in samples], [target for _, target in samples]
