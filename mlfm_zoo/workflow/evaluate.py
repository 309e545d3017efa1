"""Top-1 and top-5 accuracy of a model on an image folder, through timm's own dataset, transform and loader."""

import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from PIL import Image
from timm.data import ImageDataset, create_loader, resolve_model_data_config
from timm.utils import accuracy

from .._timm import config_of

__all__ = [
    'Accuracy', 'data_config', 'evaluate', 'image_mode', 'open_folder', 'open_images', 'read_batches', 'usable_device',
]


class Accuracy(NamedTuple):
    """Correct answers among `total` images, counting the first answer only and the first five."""
    top1: int
    top5: int
    total: int


class UnreadableImage(ValueError):
    """An image file cannot be decoded."""


class StrictImageDataset(ImageDataset):
    """timm's image folder, but an unreadable image is an error: timm's would put the next image in its place."""

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        file, target = self.reader[index]
        try:
            image = Image.open(file).convert(self.input_img_mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            name = self.reader.filename(index, absolute=True)
            raise UnreadableImage(f'{name} cannot be decoded as an image: repair or remove it.') from None
        return self.transform(image), target


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
            some of the classes; sorted folder names if None. Folders of other names are left out, with a warning.
        img_size: Image size in pixels, instead of the config's.
        batch_size: Images a batch.
        num_workers: Processes that read images.
        device: Where the model runs.
        progress: Whether to print how far it is.

    Returns:
        Counts of correct answers.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.
        ValueError: The classes are not as many as the model's outputs, an image cannot be decoded, or there is no such
            device.
    """
    dataset = open_folder(root, getattr(model, 'num_classes', 0), class_names)
    config = data_config(model, img_size)
    dataset.input_img_mode = image_mode(config)
    device = usable_device(device)
    model = model.to(device).eval()
    top1 = top5 = total = 0
    try:
        with torch.inference_mode():
            for images, targets in read_batches(dataset, config, batch_size, num_workers, device):
                images, targets = images.to(device), targets.to(device)
                correct1, correct5 = (a * len(targets) / 100 for a in accuracy(model(images), targets, topk=(1, 5)))
                top1, top5, total = top1 + round(float(correct1)), top5 + round(float(correct5)), total + len(targets)
                if progress:
                    print(f'\r{total}/{len(dataset)} images', end='', flush=True)
    finally:
        if progress:
            print()
    return Accuracy(top1, top5, total)


def read_batches(
        dataset: StrictImageDataset,
        config: Mapping[str, Any],
        batch_size: int,
        num_workers: int,
        device: Union[str, torch.device] = 'cpu',
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Read a data set through timm's loader, as a model gets it.

    Args:
        dataset: The data set.
        config: What `timm.data.resolve_model_data_config` says of the model.
        batch_size: Images a batch.
        num_workers: Processes that read images.
        device: Where the model runs.

    Yields:
        Images and targets.

    Raises:
        ValueError: An image cannot be decoded.
    """
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
        device=torch.device(device),
    )
    try:
        yield from loader
    except UnreadableImage as error:  # from a worker, its message is the whole traceback
        raise UnreadableImage(str(error).strip().splitlines()[-1].split('UnreadableImage: ')[-1]) from None


def open_images(root: Union[str, Path], class_map: Optional[Dict[str, int]] = None) -> StrictImageDataset:
    """Open a folder of images, whatever their classes.

    Args:
        root: Folder of images, or of folders of them.
        class_map: Index of each class by its folder; the order of their names if None.

    Returns:
        timm's dataset, without a transform.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'There is no folder at {root}: give one that holds a folder of images for each class.')
    try:
        return StrictImageDataset(str(root), class_map=class_map)
    except RuntimeError:
        images = 'images of the expected classes' if class_map else 'images'
        raise FileNotFoundError(
            f'{root} holds no {images}: give a folder that holds a folder of images for each class.') from None


def open_folder(
        root: Union[str, Path],
        model_classes: int,
        class_names: Optional[Sequence[str]] = None,
) -> StrictImageDataset:
    """Open an image folder for a model's classes.

    Args:
        root: As `evaluate`.
        model_classes: Outputs of the model.
        class_names: As `evaluate`.

    Returns:
        timm's dataset, without a transform.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.
        ValueError: The classes are not as many as the model's outputs.
    """
    root = Path(root)
    dataset = open_images(root, {name: i for i, name in enumerate(class_names)} if class_names else None)
    num_classes = len(class_names or dataset.reader.class_to_idx)
    if num_classes != model_classes:
        raise ValueError(
            f'The model tells {model_classes} classes apart and the data has {num_classes}: give data of the same '
            'classes, and their names where the data holds only some of them.')
    others = [f.name for f in root.iterdir() if f.is_dir() and f.name not in dataset.reader.class_to_idx]
    if others:
        warnings.warn(
            f'{len(others)} folders in {root} are of no class and left out, {min(others)} among them.', stacklevel=3)
    return dataset


def image_mode(config: Mapping[str, Any]) -> str:
    """Say how Pillow reads images for a model.

    Args:
        config: What `timm.data.resolve_model_data_config` says of the model.

    Returns:
        Pillow's mode: 'L' for 1 channel, 'RGBA' for 4, and 'RGB' for others.
    """
    return {1: 'L', 4: 'RGBA'}.get(config['input_size'][0], 'RGB')


def data_config(model: nn.Module, img_size: Optional[int] = None) -> Dict[str, Any]:
    """Say how images are prepared for a model.

    Args:
        model: A timm model.
        img_size: Image size in pixels, instead of its config's.

    Returns:
        What `timm.data.resolve_model_data_config` says.

    Raises:
        ValueError: The model takes no images that a file can hold.
    """
    in_chans = config_of(model).get('input_size', (3,))[0]
    if in_chans not in (1, 3, 4):
        raise ValueError(
            f'The model takes {in_chans} channels, expected images of 1, 3 or 4: a network on DCT coefficients takes '
            "images if it is built with dct_input='rgb'.")
    return resolve_model_data_config(model, args=dict(img_size=img_size) if img_size else None)


def usable_device(device: Union[str, torch.device]) -> torch.device:
    """Check that something can be put on a device.

    Args:
        device: Its name.

    Returns:
        The device.

    Raises:
        ValueError: This machine has none of that name, or torch knows none.
    """
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, NotImplementedError):  # torch says in several ways that there is none
        raise ValueError(f'There is no device {device} on this machine: give another, such as cpu.') from None
