"""Folders of images, read as a timm model expects them."""

import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.data import ImageDataset, create_loader, resolve_model_data_config

from .._timm import config_of
from .images import UnreadableImage, open_image

__all__ = [
    'StrictImageDataset', 'data_config', 'image_mode', 'open_folder', 'open_images', 'read_batches', 'usable_device',
]


class StrictImageDataset(ImageDataset):
    """timm's image folder, except that an unreadable image is an error; timm returns the next image instead."""

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        file, target = self.reader[index]
        with file:
            image = open_image(file, self.input_img_mode, self.reader.filename(index, absolute=True))
        return self.transform(image), target


def open_images(root: Union[str, Path], class_map: Optional[Dict[str, int]] = None) -> StrictImageDataset:
    """Open a folder of images of any classes.

    Args:
        root: Folder of images, or of folders of them.
        class_map: Index of each class by its folder; the order of the folders' names if None.

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
    except RuntimeError as error:
        images = 'images of the expected classes' if class_map else 'images'
        raise FileNotFoundError(
            f'{root} holds no {images}: give a folder that holds a folder of images for each class.') from error


def open_folder(
        root: Union[str, Path],
        model_classes: int,
        class_names: Optional[Sequence[str]] = None,
) -> StrictImageDataset:
    """Open an image folder for a model's classes.

    Args:
        root: Folder with one folder of images a class.
        model_classes: Number of the model's outputs.
        class_names: Names of the class folders in the order of the model's outputs, needed where `root` holds only
            some of the classes; sorted folder names if None. Folders of other names are left out, with a warning.

    Returns:
        timm's dataset, without a transform.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.
        ValueError: The number of classes is not the number of the model's outputs.
    """
    dataset = open_images(root, {name: i for i, name in enumerate(class_names)} if class_names else None)
    num_classes = len(class_names or dataset.reader.class_to_idx)
    if num_classes != model_classes:
        raise ValueError(
            f'The model distinguishes {model_classes} classes and the data has {num_classes}: give data of the same '
            'classes, and their names where the data holds only some of them.')
    others = [f.name for f in Path(root).iterdir() if f.is_dir() and f.name not in dataset.reader.class_to_idx]
    if others:
        warnings.warn(
            f'{len(others)} folders in {root} belong to no class and are left out, {min(others)} among them.',
            stacklevel=3)
    return dataset


def read_batches(
        dataset: StrictImageDataset,
        config: Mapping[str, Any],
        batch_size: int,
        num_workers: int,
        device: Union[str, torch.device] = 'cpu',
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Read a dataset through timm's loader, as a model expects it.

    Args:
        dataset: The dataset.
        config: What `data_config` returns for the model.
        batch_size: Images a batch.
        num_workers: Processes that read images.
        device: Where the model runs.

    Yields:
        Images and targets.

    Raises:
        UnreadableImage: An image cannot be decoded.
    """
    dataset.input_img_mode = image_mode(config)
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
        raise UnreadableImage(str(error).strip().splitlines()[-1].split('UnreadableImage: ')[-1]) from error


def image_mode(config: Mapping[str, Any]) -> str:
    """Name the Pillow mode in which images are read for a model.

    Args:
        config: What `data_config` returns for the model.

    Returns:
        'L' for 1 channel, 'RGBA' for 4, and 'RGB' otherwise.
    """
    return {1: 'L', 4: 'RGBA'}.get(config['input_size'][0], 'RGB')


def data_config(model: nn.Module, img_size: Optional[int] = None) -> Dict[str, Any]:
    """Resolve how images are prepared for a model.

    Args:
        model: A timm model.
        img_size: Image size in pixels, instead of its config's.

    Returns:
        What `timm.data.resolve_model_data_config` returns.

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
    """Check that tensors can be put on a device.

    Args:
        device: Name of the device.

    Returns:
        The device.

    Raises:
        ValueError: This machine has no device of that name.
    """
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, NotImplementedError) as error:  # torch reports a missing device in many ways
        raise ValueError(f'There is no device {device} on this machine: give another, such as cpu.') from error
