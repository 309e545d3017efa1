"""Top-1 and top-5 accuracy of a model on an image folder, through timm's own dataset, transform and loader."""

from pathlib import Path
from typing import NamedTuple, Optional, Sequence, Union

import torch
import torch.nn as nn
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.utils import accuracy

__all__ = ['Accuracy', 'evaluate']


class Accuracy(NamedTuple):
    """Correct answers among `total` images, counting the first answer only and the first five."""
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
        model: A timm model; its pretrained config says how images are prepared.
        root: Folder with one folder of images a class.
        class_names: Names of the class folders in the order of the model's outputs, needed where `root` holds only
            some of the classes; sorted folder names if None.
        img_size: Image size in pixels, instead of the config's.
        batch_size: Images a batch.
        num_workers: Processes that read images.
        device: Where the model runs.
        progress: Whether to print how far it is.

    Returns:
        Counts of correct answers.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f'There is no folder at {root}: give one that holds a folder of images for each class.')
    class_map = {name: i for i, name in enumerate(class_names)} if class_names else None
    try:
        dataset = create_dataset('', root=str(root), class_map=class_map)
    except RuntimeError:
        raise FileNotFoundError(
            f'{root} holds no images of the expected classes: give a folder that holds a folder of images for each '
            'class.') from None
    config = resolve_model_data_config(model, args=dict(img_size=img_size) if img_size else None)
    device = torch.device(device)
    loader = create_loader(
        dataset,
        input_size=config['input_size'],
        batch_size=batch_size,
        interpolation=config['interpolation'],
        mean=config['mean'],
        std=config['std'],
        crop_pct=config['crop_pct'],
        num_workers=num_workers,
        persistent_workers=False,
        use_prefetcher=False,
        device=device,
    )
    model = model.to(device).eval()
    top1 = top5 = total = 0
    with torch.inference_mode():
        for images, targets in loader:
            images, targets = images.to(device), targets.to(device)
            correct1, correct5 = (a * len(targets) / 100 for a in accuracy(model(images), targets, topk=(1, 5)))
            top1, top5, total = top1 + round(float(correct1)), top5 + round(float(correct5)), total + len(targets)
            if progress:
                print(f'\r{total}/{len(dataset)} images', end='', flush=True)
    if progress:
        print()
    return Accuracy(top1, top5, total)
