"""What the page computes: the networks, and a pair's answers on a filtered photo."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from PIL import Image
from timm.data import create_transform

from ..data.filters import FrequencyFilter, full_radius
from ..data.folders import data_config, image_mode
from ..data.images import convert_pixels, open_image
from ..hub.loading import find_checkpoint
from ..hub.manifest import Checkpoint
from ..memory import LowFrequencyMemoryUnit
from ..workflow.build import build_network
from ..workflow.predict import class_labels, is_here, trained_checkpoints

__all__ = [
    'HIGH', 'LOW', 'Curves', 'Memory', 'Pair', 'answer', 'curves', 'first_network', 'load_pair', 'memories',
    'open_photo', 'take_away', 'without_memory',
]

HIGH, LOW = 'high', 'low'  # frequencies to take away


@dataclass(frozen=True)
class Pair:
    """A network with memory, and the same one that was trained without.

    Attributes:
        checkpoint: The weights with memory.
        memory: The network with memory.
        trunk: The network without memory; None if it has no weights.
        labels: Class of each output, in words.
        config: How images are prepared, see `mlfm_zoo.data.folders.data_config`.
    """
    checkpoint: Checkpoint
    memory: nn.Module
    trunk: Optional[nn.Module]
    labels: List[str]
    config: Dict[str, Any]

    @property
    def full_radius(self) -> int:
        """The radius that reaches all frequencies of this network's images."""
        return full_radius(*self.config['input_size'][1:])

    def prepare(self, photo: Image.Image) -> torch.Tensor:
        """The photograph as the networks take it (3, H, W)."""
        return create_transform(**self.config)(photo)

    def pixels(self, image: torch.Tensor) -> Image.Image:
        """What `prepare` returned, or a filter of it, as a picture."""
        mean, std = (torch.tensor(self.config[key])[:, None, None] for key in ('mean', 'std'))
        values = ((image * std + mean).clamp(0, 1) * 255).round().byte()
        return Image.fromarray(values.permute(1, 2, 0).squeeze(-1).numpy())


class Curves(NamedTuple):
    """Probability of one class over the radius.

    Attributes:
        label: The class: what the network with memory answers on the whole photograph.
        radii: Radii in cycles per image, ascending.
        memory: Probability with memory at each radius.
        trunk: Probability without memory; empty if there is no such network.
    """
    label: str
    radii: List[int]
    memory: List[float]
    trunk: List[float]


class Memory(NamedTuple):
    """One unit's memory: the layer before it, its shape, and its channel mean (H, W)."""
    layer: str
    shape: Tuple[int, ...]
    mean: torch.Tensor


def without_memory(checkpoint: Checkpoint) -> Optional[Checkpoint]:
    """The same network and tag, trained without memory; None if there is none."""
    other = find_checkpoint(checkpoint.model, checkpoint.tag, memory=False)
    return None if other.memory else other


def first_network() -> Checkpoint:
    """The best local checkpoint with a counterpart without memory, or the best of all."""
    found = trained_checkpoints()
    return next((c for c in found if is_here(c) and without_memory(c)), found[0])


@functools.lru_cache(maxsize=4)
def load_pair(name: str) -> Pair:
    """Load one of `trained_checkpoints` and its counterpart, downloading what is missing.

    A CheckpointError says that the weights cannot be fetched.
    """
    checkpoint = next(c for c in trained_checkpoints() if c.name == name)
    memory = build_network(name, pretrained=True).eval()
    trunk = build_network(name, dict(memory=False), pretrained=True).eval() if without_memory(checkpoint) else None
    labels = [label.partition(',')[0] for label in class_labels(memory)]  # the first of several names
    return Pair(checkpoint, memory, trunk, labels, data_config(memory))


def open_photo(file: Path, pair: Pair) -> Tuple[Image.Image, str]:
    """Open a photograph, upright as its camera was held.

    Returns it, and a sentence if its pixels had to be converted, else ''. An UnreadableImage says that the file cannot
    be decoded, or has no form that networks take.
    """
    mode = image_mode(pair.config)
    photo = open_image(file, None, file.name, upright=True)
    converted = convert_pixels(photo, mode, file.name)
    plain = photo.mode in ('L', 'P', 'RGB', 'RGBA')
    return converted, '' if plain else f'{file.name} has pixels of mode {photo.mode}; they were converted to 8-bit RGB.'


def take_away(image: torch.Tensor, removed: str, radius: float) -> torch.Tensor:
    """Take the high or the low frequencies of one image or of a batch away.

    `HIGH` removes those above the radius, in cycles per image, and `LOW` those up to it; with `LOW`, 0 removes nothing,
    not even the mean.
    """
    if removed == LOW:
        return image if radius == 0 else FrequencyFilter('highpass', radius)(image)
    return FrequencyFilter('lowpass', radius)(image)


@torch.inference_mode()
def answer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Probability of each class on a batch of images (N, classes)."""
    return model(images).float().softmax(dim=1)


def curves(pair: Pair, image: torch.Tensor, removed: str) -> Curves:
    """Measure how both networks' answers on a prepared photograph change with the radius."""
    # denser near 0, where most of a photograph's energy lies
    radii = sorted({round(pair.full_radius * (i / 15) ** 1.5) for i in range(16)})
    images = torch.stack([take_away(image, removed, radius) for radius in radii])
    whole = int(answer(pair.memory, image[None])[0].argmax())
    memory, trunk = (answer(model, images)[:, whole].tolist() if model else [] for model in (pair.memory, pair.trunk))
    return Curves(pair.labels[whole], radii, memory, trunk)


def memories(model: nn.Module, image: torch.Tensor) -> Tuple[torch.Tensor, List[Memory]]:
    """The probability of each class on one image, and what each unit writes, in order."""
    written: List[Memory] = []

    def keep(name: str, output: Tuple[torch.Tensor, torch.Tensor]) -> None:
        written.append(Memory(name.removeprefix('memory.'), tuple(output[1].shape[1:]), output[1][0].mean(0)))

    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: keep(name, output))
        for name, module in model.named_modules() if isinstance(module, LowFrequencyMemoryUnit)]
    try:
        return answer(model, image[None])[0], written
    finally:
        for hook in hooks:
            hook.remove()
