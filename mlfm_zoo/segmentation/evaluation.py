"""Loss, prediction and evaluation of segmentation networks."""

from typing import Any, Optional, Sequence

import torch
import torch.nn.functional as F
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader, Subset

from .data import IGNORE_INDEX, SegmentationDataset
from .metrics import Scores, SegmentationMeter

__all__ = ['evaluate', 'predict_labels', 'predict_probabilities', 'segmentation_loss']


def segmentation_loss(
        output: Any,
        labels: torch.Tensor,
        aux_weight: float = 0.4,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.,
) -> torch.Tensor:
    """Cross entropy over the pixels that are not void; binary if there is one output.

    Args:
        output: Output of a network: logits (N, num_classes, H, W), or a pair of them and the auxiliary head's.
        labels: Class of each pixel, 0 or 1 for one output (N, H, W).
        aux_weight: Weight of the auxiliary logits' loss.
        ignore_index: The label of void pixels.
        label_smoothing: Label smoothing, for more than one output.

    Returns:
        The mean over pixels; 0 where all are void.

    Examples:
        >>> segmentation_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
        tensor(0.6931)
    """
    if isinstance(output, tuple):
        loss, aux_loss = (
            segmentation_loss(logits, labels, aux_weight, ignore_index, label_smoothing) for logits in output)
        return loss + aux_weight * aux_loss
    output = output.float()  # autocast may have made it half
    valid = labels != ignore_index
    count = valid.sum().clamp(min=1)
    if output.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(output[:, 0], labels.to(output).clamp(0, 1), reduction='none')
        return (loss * valid).sum() / count
    return F.cross_entropy(
        output, labels, ignore_index=ignore_index, reduction='sum', label_smoothing=label_smoothing) / count


@torch.no_grad()
def predict_probabilities(
        model: torch.nn.Module,
        image: torch.Tensor,
        window: Optional[Sequence[int]] = None,
        overlap: float = 0.5,
        flip: bool = False,
) -> torch.Tensor:
    """Predict the probability of each class for each pixel.

    Args:
        model: The network, in eval mode.
        image: Image batch (N, C, H, W).
        window: Height and width of a window that slides over the image, with probabilities averaged where windows
            overlap; None for the whole image at once.
        overlap: Share of a window that the next one covers too.
        flip: Whether to average with the prediction for the mirrored image.

    Returns:
        Probabilities (N, num_classes, H, W), float32.

    Raises:
        ValueError: The window or the overlap is out of range.

    Examples:
        >>> model = torch.nn.Conv2d(3, 2, 1)
        >>> predict_probabilities(model, torch.randn(1, 3, 64, 96), window=(32, 32)).shape
        torch.Size([1, 2, 64, 96])
    """
    if flip:
        mirrored = predict_probabilities(model, image.flip(3), window, overlap).flip(3)
        return (predict_probabilities(model, image, window, overlap) + mirrored) / 2
    if window is None:
        logits = model(image).float()
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    if min(window) < 1 or not 0 <= overlap < 1:
        raise ValueError(
            f'The window is {tuple(window)} and its overlap {overlap:g}, expected a height and a width above 0, and '
            'an overlap from 0 to less than 1.')
    total: Optional[torch.Tensor] = None
    count = image.new_zeros(image.shape[-2:], dtype=torch.float32)
    for top in _starts(image.shape[2], window[0], overlap):
        for left in _starts(image.shape[3], window[1], overlap):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            probabilities = predict_probabilities(model, image[..., rows, columns])
            if total is None:
                total = probabilities.new_zeros(len(image), probabilities.shape[1], *image.shape[-2:])
            total[..., rows, columns] += probabilities
            count[rows, columns] += 1
    assert total is not None
    return total / count


def _starts(size: int, window: int, overlap: float) -> Sequence[int]:
    """Evenly spaced starts of windows on a side, the fewest that overlap enough."""
    if window >= size:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(size - window) // step)
    return [round(i * (size - window) / count) for i in range(count + 1)]


def predict_labels(probabilities: torch.Tensor) -> torch.Tensor:
    """Choose each pixel's most likely class; with one output, 1 if at least 0.5.

    Args:
        probabilities: Probabilities (N, num_classes, H, W).

    Returns:
        Classes (N, H, W).

    Examples:
        >>> predict_labels(torch.tensor([0.2, 0.8]).view(1, 2, 1, 1))
        tensor([[[1]]])
    """
    return (probabilities[:, 0] >= 0.5).long() if probabilities.shape[1] == 1 else probabilities.argmax(1)


def evaluate(
        model: torch.nn.Module,
        dataset: SegmentationDataset,
        num_classes: int,
        window: Optional[Sequence[int]] = None,
        overlap: float = 0.5,
        flip: bool = False,
        boundaries: bool = True,
        num_workers: int = 0,
        progress: bool = False,
) -> Scores:
    """Measure a network on a data set, one image of any size after the other.

    Under `torch.distributed`, each process evaluates a share of the images.

    Args:
        model: The network.
        dataset: Images and labels.
        num_classes: Classes.
        window: As in `predict_probabilities`.
        overlap: As in `predict_probabilities`.
        flip: As in `predict_probabilities`.
        boundaries: Whether to compute the boundary F-score too.
        num_workers: Processes that read images.
        progress: Whether to show a progress bar.

    Returns:
        The scores.

    Examples:
        >>> from mlfm_zoo.segmentation import create_model, data
        >>> model = create_model('fcn8s', 'test_mlfm_resnet', num_classes=3)
        >>> labels, transform = data.load_labels('shapes/labels.json'), data.eval_transform(model.mean, model.std)
        >>> dataset = SegmentationDataset('shapes', 'val', labels, transform)
        >>> 0 <= evaluate(model, dataset, num_classes=3).miou <= 1
        True
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    device = next(model.parameters()).device
    meter = SegmentationMeter(num_classes, device, boundaries)
    was_training = model.training
    model.eval()
    loader = DataLoader(Subset(dataset, range(rank, len(dataset), world)), batch_size=1, num_workers=num_workers)
    for image, labels in tqdm(loader, desc='evaluation', disable=not progress):
        probabilities = predict_probabilities(model, image.to(device), window, overlap, flip)
        meter.update(predict_labels(probabilities), labels.to(device))
    model.train(was_training)
    return meter.compute()
