"""Top-1 and top-5 accuracy on an image folder, with timm's transform and loader."""

from pathlib import Path
from typing import NamedTuple, Optional, Sequence, Union

import torch
import torch.nn as nn
from timm.utils import unwrap_model

from ..data.folders import data_config, open_folder, read_batches, usable_device

__all__ = ['Accuracy', 'evaluate']


class Accuracy(NamedTuple):
    """Images of `total` whose class is the first answer, or among the first five."""
    top1: int
    top5: int
    total: int


def evaluate(
        model: nn.Module,
        root: Union[str, Path],
        class_names: Optional[Sequence[str]] = None,
        img_size: Optional[int] = None,
        batch_size: int = 32,
        num_workers: int = 2,
        device: Union[str, torch.device] = 'cpu',
        progress: bool = False,
) -> Accuracy:
    """Count a model's correct answers on an image folder.

    Args:
        model: A timm model, also in DataParallel; its pretrained config determines how images are prepared.
        root: Folder with one folder of images per class.
        class_names: Names of the class folders in the order of the model's outputs, see `data.folders.open_folder`.
        img_size: Image size in pixels, instead of the config's.
        batch_size: Images per batch.
        num_workers: Processes that read images.
        device: Where the model runs.
        progress: Whether to print the number of images done.

    Returns:
        Counts of correct answers.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.
        ValueError: The classes are not the model's, an image cannot be decoded, or there is no such device.

    Examples:
        >>> model = timm.create_model('test_mlfm_resnet', pretrained=True)
        >>> accuracy = evaluate(model, 'digits/val', num_workers=0)
        >>> accuracy.top1, accuracy.total
        (32, 32)
    """
    network = unwrap_model(model)
    dataset = open_folder(root, network, class_names)
    config = data_config(network, img_size)
    device = usable_device(device)
    model = model.to(device).eval()
    top1 = top5 = total = 0
    try:
        with torch.inference_mode():
            for images, targets in read_batches(dataset, config, batch_size, num_workers, device):
                logits = model(images.to(device)).cpu()
                correct = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
                top1 += int(correct[:, 0].sum())
                top5 += int(correct.any(1).sum())
                total += len(targets)
                if progress:
                    print(f'\r{total}/{len(dataset)} images', end='', flush=True)
    finally:
        if progress:
            print()
    return Accuracy(top1, top5, total)
