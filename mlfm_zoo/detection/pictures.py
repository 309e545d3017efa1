"""Pictures of a detector's predictions."""

from pathlib import Path
from typing import Any, Mapping, Optional

import torch
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .._files import written_whole
from .._terminal import printable
from .coco import PathLike

__all__ = ['draw_predictions']

COLORS = ('#e6194b', '#3cb44b', '#4363d8', '#f58231', '#911eb4', '#008080', '#f032e6', '#9a6324', '#808000', '#000075')


def draw_predictions(
        image: torch.Tensor,
        instances: Mapping[str, Any],
        file: PathLike,
        names: Optional[Mapping[int, str]] = None,
        min_score: float = 0.5,
) -> Path:
    """Draw boxes, masks, classes and scores into an image.

    Args:
        image: Image from 0 to 1: (3, H, W) in RGB, (1, H, W) in gray, or (4, H, W), whose last channel is ignored.
        instances: The detector's output for the image, or a target, which has no scores.
        file: PNG file to write.
        names: Name of each class; its number if None.
        min_score: Lowest score of a prediction that is drawn.

    Returns:
        The file.

    Raises:
        ValueError: The image has another shape.

    Examples:
        >>> instances = dict(boxes=[[10, 10, 50, 40]], labels=torch.tensor([1]), scores=torch.tensor([0.9]))
        >>> draw_predictions(torch.rand(3, 64, 96), instances, 'boxes.png', names={1: 'cat'}).name
        'boxes.png'
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise ValueError(
            f'The image is of shape {tuple(image.shape)}, expected (3, H, W), (4, H, W) or (1, H, W): give the '
            'channels to be drawn.')
    canvas = (image[:3].detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    canvas = torch.as_tensor(canvas).expand(3, -1, -1).contiguous()
    boxes, labels = (torch.as_tensor(instances[key]).detach().cpu() for key in ('boxes', 'labels'))
    scores = instances['scores'].detach().cpu() if 'scores' in instances else None
    shown = torch.ones(len(labels), dtype=torch.bool) if scores is None else scores >= min_score
    chosen = labels[shown].tolist()
    words = [printable((names or {}).get(label, label)) for label in chosen]
    if scores is not None:
        words = [f'{word} {score:.2f}' for word, score in zip(words, scores[shown].tolist())]
    if chosen:
        # a color for each class, or for each instance if there are masks
        with_masks = instances.get('masks') is not None
        colors = [COLORS[n % len(COLORS)] for n in (range(len(chosen)) if with_masks else chosen)]
        if with_masks:
            masks = torch.as_tensor(instances['masks']).detach().cpu()[shown].flatten(0, -3) > 0.5
            canvas = draw_segmentation_masks(canvas, masks, alpha=0.45, colors=colors)
        canvas = draw_bounding_boxes(canvas, boxes[shown], words, colors, width=max(1, min(canvas.shape[1:]) // 200))
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        to_pil_image(canvas).save(unfinished, 'PNG', optimize=True)
    return path
