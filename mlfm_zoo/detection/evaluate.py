"""Average precision of boxes and masks, by pycocotools."""

import contextlib
import io
from itertools import chain
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple, Union

import torch
import torch.nn as nn

from .coco import PathLike, make_coco, read_coco, require_pycocotools

__all__ = ['evaluate']

MEASURES = ('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large')  # COCOeval's first six


def evaluate(
        model: nn.Module,
        loader: Iterable[Tuple[Sequence[torch.Tensor], Sequence[Mapping[str, Any]]]],
        truth: Union[None, PathLike, Any] = None,
) -> Dict[str, Dict[str, float]]:
    """Measure a detector by COCO's average precision, on the images of a loader.

    Under `torch.distributed`, each process predicts the images of its own loader, and all return the result over all
    images.

    Args:
        model: A detector. Its mode is restored afterward.
        loader: Batches of images and of targets with an image_id, see `collate`.
        truth: Annotations including crowds: a file in COCO format, or a `pycocotools.coco.COCO` such as
            `CocoImages.coco`. If None, the targets of the loader.

    Returns:
        Results by kind: 'box', and 'mask' if both the model and the truth have masks. Each has 'AP', the mean over the
        thresholds 0.50 to 0.95, 'AP50', 'AP75', and by size 'AP_small', 'AP_medium' and 'AP_large'. Values are from 0
        to 1, or -1 without any object of this kind.

    Raises:
        ValueError: The loader is empty, an image of it is not in the truth, or the truth is damaged.

    Examples:
        >>> from mlfm_zoo.detection import create_model
        >>> model = create_model('faster_rcnn', 'test_mlfm_resnet', num_classes=3, min_size=64, fpn_channels=32)
        >>> target = dict(image_id=1, boxes=torch.tensor([[10., 10., 50., 40.]]), labels=torch.tensor([1]))
        >>> 0 <= evaluate(model, [([torch.rand(3, 64, 96)], [target])])['box']['AP'] <= 1
        True
    """
    coco = None if truth is None else read_coco(truth)
    # for each image: predictions, whether they have masks, targets, and the size
    found: Dict[Any, Tuple[List[Dict[str, Any]], bool, List[Dict[str, Any]], Dict[str, Any]]] = {}
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, targets in loader:
                predictions = model([image.to(device) for image in images])
                for image, target, prediction in zip(images, targets, predictions):
                    image_id = target['image_id']
                    image_id = image_id.item() if torch.is_tensor(image_id) else image_id
                    found[image_id] = (
                        _entries(prediction, image_id), prediction.get('masks') is not None,
                        _entries(target, image_id) if coco is None else [],
                        dict(id=image_id, height=int(image.shape[-2]), width=int(image.shape[-1])))
    finally:
        model.train(training)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: List[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, found)
        found = {image_id: value for part in parts for image_id, value in part.items()}
    if not found:
        raise ValueError('The loader is empty: give it at least one image.')
    detections, have_masks, expected, sizes = zip(*found.values())
    if coco is None:
        entries = list(chain(*expected))
        labels = sorted({entry['category_id'] for entry in entries})
        coco = _index(entries, images=list(sizes), categories=[dict(id=label) for label in labels])
    unknown = sorted(str(image_id) for image_id in found if image_id not in coco.imgs)
    if unknown:
        raise ValueError(f'The image {unknown[0]} is not in the truth: give the annotations of these images.')
    kinds = {'box': 'bbox'}
    if any(have_masks) and all(entry.get('segmentation') for entry in coco.anns.values()):
        kinds['mask'] = 'segm'
    return {name: _measure(coco, list(chain(*detections)), kind, list(found)) for name, kind in kinds.items()}


def _entries(instances: Mapping[str, Any], image_id: Any) -> List[Dict[str, Any]]:
    """Predictions or targets of an image as COCO's annotations."""
    boxes = torch.as_tensor(instances['boxes']).detach().cpu().double().clone()
    boxes[:, 2:] -= boxes[:, :2]
    entries: List[Dict[str, Any]] = [
        dict(image_id=image_id, category_id=label, bbox=box, area=box[2] * box[3], iscrowd=0)
        for box, label in zip(boxes.tolist(), instances['labels'].tolist())
    ]
    if 'scores' in instances:
        for entry, score in zip(entries, instances['scores'].tolist()):
            entry['score'] = score
    if instances.get('masks') is not None:
        coder = require_pycocotools('pycocotools.mask')
        masks = torch.as_tensor(instances['masks']).detach()
        masks = (masks.flatten(0, -3) > 0.5).to(torch.uint8).cpu()
        for entry, mask in zip(entries, masks):
            entry['segmentation'] = coder.encode(mask.t().contiguous().t().numpy())  # it expects columns first
            if 'scores' not in instances:
                entry['area'] = float(coder.area(entry['segmentation']))
    return entries


def _index(entries: Iterable[Dict[str, Any]], **content: Any) -> Any:
    """Index copies, since COCOeval replaces masks; ids start at 1, as it takes 0 for no match."""
    return make_coco(dict(content, annotations=[dict(entry, id=i) for i, entry in enumerate(entries, start=1)]))


def _measure(coco: Any, detections: List[Dict[str, Any]], kind: str, image_ids: List[Any]) -> Dict[str, float]:
    if kind == 'segm':  # the size of an object is that of its mask, not of its box
        area = require_pycocotools('pycocotools.mask').area
        detections = [dict(entry, area=float(area(entry['segmentation']))) for entry in detections]
    content = dict(images=coco.dataset['images'], categories=coco.dataset['categories'])
    judge = require_pycocotools('pycocotools.cocoeval').COCOeval(
        _index(coco.anns.values(), **content), _index(detections, **content), kind)
    judge.params.imgIds = image_ids
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(MEASURES, map(float, judge.stats)))
