"""Measures of segmentation: IoU, pixel accuracy and a boundary F-score.

The boundary F-score is that of Csurka et al., What is a good evaluation measure for semantic segmentation? (BMVC 2013).
A pixel of a class is on its boundary if one of its four neighbors is of another class; neighbors that are void in the
truth, or outside the image, do not count. Precision is the share of the predicted boundary within a tolerance of the
true one, and recall the share of the true one within that tolerance of the predicted one. The tolerance is 0.75 % of
the image's diagonal. The score of a class in an image is their harmonic mean. It is 0 if only one of the two boundaries
exists, and left out if neither does. It is averaged over images for each class, and then over classes.
"""

import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F

from .._extras import require_extra
from .data import IGNORE_INDEX

__all__ = ['Scores', 'SegmentationMeter', 'as_row', 'boundary_scores']

TOLERANCE = 0.0075  # of the diagonal


class Scores(NamedTuple):
    """Scores of a network on a data set, from 0 to 1.

    A class that is neither present nor predicted has NaN.

    Attributes:
        miou: Mean of the classes' IoU.
        pixel_accuracy: Share of pixels that are correct.
        boundary_f: Mean of the classes' boundary F-scores.
        class_iou: IoU of each class.
        class_boundary_f: Boundary F-score of each class.
        confusion: Pixels of each true class (rows) by their predicted class.
    """
    miou: float
    pixel_accuracy: float
    boundary_f: float
    class_iou: List[float]
    class_boundary_f: List[float]
    confusion: List[List[int]]


class SegmentationMeter:
    """Accumulates scores over images, in all processes of a training; `boundaries` take longer than the rest."""

    def __init__(self, num_classes: int, device: Any = 'cpu', boundaries: bool = True):
        torchmetrics = require_extra('torchmetrics.classification', 'segmentation', 'Measuring segmentation')
        self.num_classes = num_classes
        self.boundaries = boundaries
        self.confusion = torchmetrics.MulticlassConfusionMatrix(
            num_classes, ignore_index=IGNORE_INDEX, validate_args=False).to(device)
        self.sums = torch.zeros(2, num_classes, dtype=torch.float64, device=device)  # of scores, and of images

    def update(self, predicted: torch.Tensor, truth: torch.Tensor) -> None:
        """Add predicted and true classes of images (N, H, W); void pixels are `IGNORE_INDEX`."""
        self.confusion.update(predicted, truth)
        for i in range(len(truth) if self.boundaries else 0):
            scores = boundary_scores(predicted[i], truth[i], self.num_classes).to(self.sums)
            self.sums += torch.stack([scores.nan_to_num(0), (~scores.isnan()).to(scores)])

    def compute(self) -> Scores:
        """Compute the scores over all images and processes."""
        confusion = self.confusion.compute().double()  # summed over processes
        sums = self.sums.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        right = confusion.diagonal()
        iou = right / (confusion.sum(0) + confusion.sum(1) - right)
        boundary_f = sums[0] / sums[1]
        return Scores(
            iou.nanmean().item(), (right.sum() / confusion.sum()).item(), boundary_f.nanmean().item(), iou.tolist(),
            boundary_f.tolist(), confusion.long().tolist())


def boundary_scores(
        predicted: torch.Tensor,
        truth: torch.Tensor,
        num_classes: int,
        tolerance: Optional[float] = None,
) -> torch.Tensor:
    """Boundary F-score of each class in one image (num_classes,), NaN where neither boundary exists.

    Predicted and true classes are (H, W); void pixels are `IGNORE_INDEX`. The tolerance is in pixels, 0.75 % of the
    diagonal if None.
    """
    if tolerance is None:
        tolerance = TOLERANCE * math.hypot(*truth.shape)
    predicted = torch.where(truth == IGNORE_INDEX, IGNORE_INDEX, predicted)
    both = torch.stack([_boundaries(labels, num_classes) for labels in (predicted, truth)])  # (2, classes, H, W)
    near = _widened(both, tolerance).flip(0)
    met = (both & near).sum((2, 3)).double() / both.sum((2, 3))  # precision, recall; NaN where a boundary is missing
    precision, recall = met.nan_to_num(0)
    scores = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return scores.masked_fill(met.isnan().all(0), math.nan)


def _widened(mask: torch.Tensor, radius: float) -> torch.Tensor:
    """Whether each pixel (..., H, W) lies within a radius of a pixel of the mask."""
    reach = math.floor(radius)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disc = (torch.hypot(offsets[:, None], offsets) <= radius).to(mask.device, torch.float32)
    counts = F.conv2d(mask.flatten(0, -3)[:, None].float(), disc[None, None], padding=reach)
    return (counts > 0.5).view_as(mask)


def _boundaries(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Boundary of each class (num_classes, H, W)."""
    padded = F.pad(labels, [1] * 4, value=IGNORE_INDEX)
    neighbors = torch.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    edge = ((neighbors != labels) & (neighbors != IGNORE_INDEX)).any(0)
    classes = torch.arange(num_classes, device=labels.device)[:, None, None]
    return (labels == classes) & edge


def as_row(scores: Scores, names: Sequence[str]) -> Dict[str, float]:
    """Make a table's row: scores in percent by name; the boundary F-score if measured."""
    row = {'miou': scores.miou, 'pixel_accuracy': scores.pixel_accuracy}
    if not math.isnan(scores.boundary_f):
        row['boundary_f'] = scores.boundary_f
    row.update({f'iou_{name}': value for name, value in zip(names, scores.class_iou)})
    return {name: round(100 * value, 3) for name, value in row.items()}
