"""Average precision of boxes and masks, by pycocotools."""

import contextlib
import io
import os
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple, Union

import torch
import torch.nn as nn

from .coco import PathLike, check_coco, make_coco, read_coco, require_pycocotools

__all__ = ['evaluate']

MEASURES = ('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large')  # COCOeval's first six
KINDS = {'box': 'bbox', 'mask': 'segm'}


def evaluate(
        model: nn.Module,
        loader: Iterable[Tuple[Sequence[torch.Tensor], Sequence[Mapping[str, Any]]]],
        truth: Union[None, PathLike, Any] = None,
        progress: bool = False,
) -> Dict[str, Dict[str, float]]:
    """Measure a detector by COCO's average precision, on the images of a loader.

    Under `torch.distributed`, each process predicts the images of its own loader, and all return the result over all
    images.

    Args:
        model: A detector. Its mode is restored afterward.
        loader: Batches of images and of targets with an image_id, see `collate`.
        truth: Annotations including crowds: a file in COCO format, or a `pycocotools.coco.COCO` such as
            `CocoImages.coco`. If None, the targets of the loader.
        progress: Whether to print the number of images done.

    Returns:
        Results by kind: 'box', and 'mask' if both the model and the truth have masks. Each has 'AP', the mean over the
        thresholds 0.50 to 0.95, 'AP50', 'AP75', and by size 'AP_small', 'AP_medium' and 'AP_large'. Values are from 0
        to 1, or -1 without any object of this kind.

    Raises:
        ValueError: The loader is empty, an image of it is not in the truth, or the truth is damaged.

    Example:
        >>> from mlfm_zoo.detection import create_model
        >>> model = create_model('faster_rcnn', 'test_mlfm_resnet', num_classes=3, min_size=64, fpn_channels=32)
        >>> target = dict(image_id=1, boxes=torch.tensor([[10., 10., 50., 40.]]), labels=torch.tensor([1]))
        >>> 0 <= evaluate(model, [([torch.rand(3, 64, 96)], [target])])['box']['AP'] <= 1
        True
    """
    coco: Any = read_coco(truth) if isinstance(truth, (str, os.PathLike)) else truth
    if coco is truth and coco is not None:
        check_coco(coco, 'The truth')
    # for each image: predictions, whether they have masks, expected annotations, and the size
    found: Dict[Any, Tuple[List[Dict[str, Any]], bool, List[Dict[str, Any]], Tuple[int, int]]] = {}
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, targets in loader:
                predictions = model([image.to(device) for image in images])
                for image, target, prediction in zip(images, targets, predictions):
                    size = (int(image.shape[-2]), int(image.shape[-1]))
                    image_id = target['image_id']
                    image_id = image_id.item() if torch.is_tensor(image_id) else image_id
                    expected = [] if coco is not None else _entries(target, image_id)
                    has_masks = prediction.get('masks') is not None
                    found[image_id] = (_entries(prediction, image_id), has_masks, expected, size)
                if progress:
                    print(f'\r{len(found)} images', end='', flush=True)
    finally:
        model.train(training)
        if progress:
            print()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: List[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, found)
        found = {image_id: value for part in parts for image_id, value in part.items()}
    if not found:
        raise ValueError('The loader is empty: give it at least one image.')
    if coco is None:
        coco = _coco_of([(image_id, expected, size) for image_id, (_, _, expected, size) in found.items()])
    unknown = sorted(str(image_id) for image_id in found if image_id not in coco.imgs)
    if unknown:
        raise ValueError(f'The image {unknown[0]} is not in the truth: give the annotations of these images.')
    detections = [entry for entries, *_ in found.values() for entry in entries]
    kinds = ['box']
    if any(masks for _, masks, _, _ in found.values()) and all(e.get('segmentation') for e in coco.anns.values()):
        kinds.append('mask')
    return {kind: _measure(coco, detections, KINDS[kind], list(found)) for kind in kinds}


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


def _coco_of(images: Sequence[Tuple[Any, List[Dict[str, Any]], Tuple[int, int]]]) -> Any:
    """Make the truth from targets; ids start at 1, as COCOeval takes 0 for no match."""
    entries = [entry for _, expected, _ in images for entry in expected]
    return make_coco(dict(
        images=[dict(id=image_id, height=size[0], width=size[1]) for image_id, _, size in images],
        annotations=[dict(entry, id=i) for i, entry in enumerate(entries, start=1)],
        categories=[dict(id=label) for label in sorted({entry['category_id'] for entry in entries})],
    ))


def _measure(coco: Any, detections: List[Dict[str, Any]], kind: str, image_ids: List[Any]) -> Dict[str, float]:
    # copies, since COCOeval replaces the masks of its annotations
    coco = make_coco(dict(coco.dataset, annotations=[dict(entry) for entry in coco.anns.values()]))
    with contextlib.redirect_stdout(io.StringIO()):
        if detections:
            entries = [dict(entry) for entry in detections]
            if kind == 'segm':
                for entry in entries:
                    del entry['bbox']  # else loadRes takes areas from boxes
            results = coco.loadRes(entries)
        else:  # loadRes fails on none
            results = make_coco(dict(coco.dataset, annotations=[]))
        judge = require_pycocotools('pycocotools.cocoeval').COCOeval(coco, results, kind)
        judge.params.imgIds = image_ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(MEASURES, map(float, judge.stats)))
