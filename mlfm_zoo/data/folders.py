"""Folders of images, read as a timm model expects them."""

import math
import os
import warnings
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.data import ImageDataset, create_loader, get_img_extensions, resolve_model_data_config
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils import natural_key

from .._terminal import printable
from .._timm import config_of
from .images import UnreadableImage, open_image

__all__ = [
    'StrictImageDataset', 'data_config', 'image_mode', 'label_names', 'open_folder', 'open_images', 'read_batches',
    'usable_device', 'walk_images',
]


def walk_images(root: Union[str, Path], endings: Optional[Collection[str]] = None) -> List[Path]:
    """List the images in a folder and the folders in it, in timm's order.

    Links are followed, except back into a folder that holds them. Hidden files and folders are left out.

    Args:
        root: The folder.
        endings: Endings of images in lower case; those that timm reads if None.

    Returns:
        The files. They include broken links with an image's ending, so that opening them raises.

    Raises:
        FileNotFoundError: There is no such folder, or there is another broken link, which may be a class.
        OSError: A folder cannot be read.

    Examples:
        >>> len(walk_images('digits/val'))
        32
    """
    endings = get_img_extensions(as_set=True) if endings is None else endings
    files: List[str] = []

    def search(folder: str, above: Tuple[str, ...]) -> None:
        above += (os.path.join(os.path.realpath(folder), ''),)
        for entry in os.scandir(folder):
            if entry.name.startswith('.'):
                continue
            if entry.is_dir():
                inside = os.path.join(os.path.realpath(entry.path), '')
                if not any(path.startswith(inside) for path in above):
                    search(entry.path, above)
            elif os.path.splitext(entry.name)[1].lower() in endings:
                files.append(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise FileNotFoundError(f'{entry.path} is a link that leads nowhere: repair or remove it.')

    search(str(root), ())
    return [Path(file) for file in sorted(files, key=lambda file: (natural_key(file), file))]


class _FolderReader(ReaderImageFolder):
    """timm's reader of the files that `walk_images` lists.

    The class of an image is the name of the folder that holds it. `class_names` gives the order of the classes; images
    of other classes are left out. `found` lists all classes that have images.
    """

    def __init__(self, root: Path, class_names: Optional[Sequence[str]] = None):
        self.root = root
        named = [(file, file.parent.name if file.parent != root else '') for file in walk_images(root)]
        self.found = sorted({name for _, name in named}, key=lambda name: (natural_key(name), name))
        self.class_to_idx = {name: i for i, name in enumerate(class_names or self.found)}
        self.samples = [(str(file), self.class_to_idx[name]) for file, name in named if name in self.class_to_idx]


class StrictImageDataset(ImageDataset):
    """timm's image folder, but an unreadable image raises instead of being skipped."""

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        file, target = self.reader.samples[index]
        return self.transform(open_image(file, self.input_img_mode)), target


def open_images(root: Union[str, Path], class_names: Optional[Sequence[str]] = None) -> StrictImageDataset:
    """Open a folder of images of any classes.

    Args:
        root: Folder of images, or of folders of them.
        class_names: Names of the class folders in the order of their indices; others are left out. All folders in
            timm's order if None.

    Returns:
        timm's dataset, without a transform.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.

    Examples:
        >>> dataset = open_images('digits/val', class_names=['3', '7'])
        >>> sorted(dataset.reader.class_to_idx)
        ['3', '7']
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'There is no folder at {root}: give one that holds a folder of images for each class.')
    reader = _FolderReader(root, class_names)
    if not reader.samples:
        of = f' of the classes {_listed(class_names or [])}, only of {_listed(reader.found)}' if reader.found else ''
        raise FileNotFoundError(
            f'{root} holds no images{of}: give a folder that holds a folder of images for each class.')
    return StrictImageDataset(str(root), reader=reader)


def label_names(model: nn.Module) -> Optional[List[str]]:
    """Return the names of a model's classes, from its config.

    Args:
        model: A timm model.

    Returns:
        A name for each output; None if the config has none, or another number of them.

    Examples:
        >>> label_names(timm.create_model('test_mlfm_resnet'))[:3]
        ['0', '1', '2']
    """
    names, num_classes = config_of(model).get('label_names') or (), getattr(model, 'num_classes', 0)
    if isinstance(names, dict):  # names by index, which JSON makes a string
        names = [names.get(i, names.get(str(i), i)) for i in range(len(names))]
    return [str(name) for name in names] if len(names) == num_classes else None


def open_folder(
        root: Union[str, Path],
        model: nn.Module,
        class_names: Optional[Sequence[str]] = None,
) -> StrictImageDataset:
    """Open an image folder for a model's classes.

    Folders are matched with outputs by name if the caller or the model's config names the classes, and in timm's order
    otherwise.

    Args:
        root: Folder with one folder of images per class.
        model: A timm model.
        class_names: Names of the class folders in the order of the model's outputs; those of `label_names` if None.
            `root` may hold only some of them. Folders of other names are left out, with a warning.

    Returns:
        timm's dataset, without a transform.

    Raises:
        FileNotFoundError: `root` is not a folder, or a class folder holds no images.
        ValueError: The classes differ from the model's in their names or, if it has no names, in their number.

    Examples:
        >>> len(open_folder('digits/val', timm.create_model('test_mlfm_resnet')))
        32
    """
    names = class_names or label_names(model)
    dataset = open_images(root, names)
    reader, num_classes = dataset.reader, getattr(model, 'num_classes', 0)
    filled = {Path(dataset.filename(i)).parts[0] for i in range(len(dataset))}
    folders = {f.name for f in Path(root).iterdir() if f.is_dir() and not f.name.startswith('.')}
    if empty := (folders & set(names or folders)) - filled:
        raise FileNotFoundError(
            f'{Path(root, min(empty))} holds no images, expected those of a class: add them, or remove the folder.')
    classes = class_names or reader.found
    if len(classes) != num_classes:
        raise ValueError(
            f'The model distinguishes {num_classes} classes and the data has {len(classes)}, {_listed(classes)}: give '
            'data of the same classes, or class_names (--imagenet100 for ImageNet100) if it holds only some of them.')
    others = sorted(set(reader.found) - set(reader.class_to_idx))
    if others and class_names is None:
        raise ValueError(
            f'The classes of the model are {_listed(list(reader.class_to_idx))}, and the folders in {root} are '
            f'{_listed(reader.found)}: rename the folders, or give their names in the order of the classes.')
    if others:
        warnings.warn(
            f'{len(others)} folders in {root} belong to no class and are left out, {printable(others[0])} among them.',
            stacklevel=3)
    return dataset


def _listed(names: Sequence[str]) -> str:
    """The first few names, for an error."""
    return ', '.join(map(printable, names[:12])) + (', ...' if len(names) > 12 else '')


def read_batches(
        dataset: StrictImageDataset,
        config: Mapping[str, Any],
        batch_size: int,
        num_workers: int,
        device: Union[str, torch.device] = 'cpu',
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Read a dataset through timm's loader, prepared for a model.

    Args:
        dataset: The dataset.
        config: The model's `data_config`.
        batch_size: Images per batch.
        num_workers: Processes that read images.
        device: Where the model runs.

    Yields:
        Images and targets.

    Raises:
        UnreadableImage: An image cannot be decoded.

    Examples:
        >>> model = timm.create_model('test_mlfm_resnet')
        >>> batches = read_batches(open_folder('digits/val', model), data_config(model), batch_size=8, num_workers=0)
        >>> images, targets = next(batches)
        >>> images.shape
        torch.Size([8, 3, 64, 64])
    """
    dataset.input_img_mode = image_mode(config)
    loader = create_loader(
        dataset, batch_size=batch_size, num_workers=num_workers, persistent_workers=False, use_prefetcher=False,
        device=torch.device(device), **config)
    try:
        yield from loader
    except UnreadableImage as error:  # a worker puts the whole traceback into the message
        raise UnreadableImage(str(error).rpartition('UnreadableImage: ')[2].strip()) from error


def image_mode(config: Mapping[str, Any]) -> str:
    """Return the Pillow mode in which images are read for a model.

    Args:
        config: The model's `data_config`.

    Returns:
        'L' for 1 channel, 'RGBA' for 4, and 'RGB' otherwise.

    Examples:
        >>> image_mode({'input_size': (1, 64, 64)})
        'L'
    """
    return {1: 'L', 4: 'RGBA'}.get(config['input_size'][0], 'RGB')


def data_config(model: nn.Module, img_size: Optional[int] = None) -> Dict[str, Any]:
    """Resolve how images are prepared for a model.

    Args:
        model: A timm model.
        img_size: Image size in pixels, instead of its config's.

    Returns:
        The result of `timm.data.resolve_model_data_config`.

    Raises:
        ValueError: The model does not take images of 1, 3 or 4 channels, or its mean and std are not finite.

    Examples:
        >>> data_config(timm.create_model('test_mlfm_resnet'))['input_size']
        (3, 64, 64)
    """
    in_chans = config_of(model).get('input_size', (3,))[0]
    if in_chans not in (1, 3, 4):
        raise ValueError(
            f'The model takes {in_chans} channels, expected images of 1, 3 or 4: a network on DCT coefficients takes '
            "images if it is built with dct_input='rgb'.")
    # given a size alone, timm takes three channels
    config = resolve_model_data_config(model, args=dict(img_size=img_size, in_chans=in_chans) if img_size else None)
    if not all(map(math.isfinite, (*config['mean'], *config['std']))):
        raise ValueError(
            f'The mean and std of the model are {config["mean"]} and {config["std"]}, expected finite numbers: correct '
            'its pretrained config.')
    return config


def usable_device(device: Union[str, torch.device]) -> torch.device:
    """Check that this machine has a device.

    Args:
        device: Name of the device.

    Returns:
        The device.

    Raises:
        ValueError: This machine has no device of that name.

    Examples:
        >>> usable_device('cpu')
        device(type='cpu')
    """
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, NotImplementedError) as error:  # torch reports a missing device in many ways
        raise ValueError(f'There is no device {device} on this machine: give another, such as cpu.') from error
