"""The settings of a training run, and records read from JSON.

The command line runs this file without the package around it to list the settings as options: it imports no torch.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple, Type, TypeVar, get_type_hints

__all__ = ['AMP', 'JSONRecord', 'TrainSettings', 'read_json']

AMP = ('none', 'bfloat16', 'float16')

T = TypeVar('T')


class JSONRecord:
    """Base of dataclasses that are stored as JSON objects."""

    @classmethod
    def from_json(cls: Type[T], fields: Dict[str, Any]) -> T:
        """Make a record from a JSON object, which has lists for tuples; a ValueError names a value of another type."""
        from .._types import fits, type_name
        values, kinds = {name: _as_tuple(value) for name, value in fields.items()}, get_type_hints(cls)
        for name, value in values.items():
            if not fits(value, kinds.get(name, Any)):
                raise ValueError(f'{name} is {fields[name]!r}, expected {type_name(kinds[name])}')
        return cls(**values)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def read_json(file: Path, make: Callable[[Any], T]) -> T:
    """Read a JSON file and make something of it; a ValueError names the file if either fails."""
    try:
        return make(json.loads(file.read_text(encoding='utf-8-sig')))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f'{file} cannot be used ({type(error).__name__}: {error}): correct it.') from error


@dataclass(frozen=True)
class TrainSettings(JSONRecord):
    """Settings that determine the result of a run.

    Attributes:
        data: Folder of images and masks, see `find_samples`.
        labels: Labels of the masks: camvid, voc, ade20k, membrane, or a JSON file.
        model: Name of the network, see `create_model`.
        encoder: Name of the backbone, None for the classic U-Net.
        in_chans: Channels of the images.
        pretrained: Whether the backbone starts from its pretrained weights.
        model_kwargs: Arguments of the network.
        img_size: Height and width that images are resized to, their own if None.
        crop_size: Height and width of the crops to train on.
        scale: Range of random scales.
        vflip: Probability of an upside-down flip.
        color_jitter: Range of random brightness, contrast and saturation.
        epochs: Epochs.
        batch_size: Images per step and process.
        opt: Optimizer, by timm's name.
        lr: Learning rate, which falls to 0 as (1 - progress) ** 0.9.
        warmup: Steps of linear warm-up.
        weight_decay: Weight decay, except for biases and norms.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        aux_weight: Weight of the auxiliary loss.
        label_smoothing: Label smoothing.
        ema_decay: Decay of the average of the weights that is evaluated and saved; 0 for none.
        amp: Dtype of autocast: bfloat16, float16 (GPUs only) or none.
        channels_last: Whether to use the channels_last memory format.
        grad_checkpointing: Whether to recompute activations in the backward pass, which saves memory.
        freeze_encoder: Whether to freeze the backbone except its memory.
        train_split: Name of the split to train on.
        val_split: Name of the split to evaluate on.
        val_every: Epochs between evaluations; the last epoch is always evaluated.
        seed: Seed.

    Raises:
        ValueError: A value is out of range.

    Examples:
        >>> TrainSettings(data='shapes', epochs=10).crop_size
        (352, 480)
    """
    data: str
    labels: str = 'camvid'
    model: str = 'fcn8s'
    encoder: Optional[str] = 'mlfm_resnet34'
    in_chans: int = 3
    pretrained: bool = False
    model_kwargs: Dict[str, Any] = field(default_factory=dict)
    img_size: Optional[Tuple[int, int]] = None
    crop_size: Tuple[int, int] = (352, 480)
    scale: Tuple[float, float] = (0.5, 2.0)
    vflip: float = 0.
    color_jitter: float = 0.3
    epochs: int = 100
    batch_size: int = 8
    opt: str = 'adamw'
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip_grad: float = 0.
    aux_weight: float = 0.4
    label_smoothing: float = 0.
    ema_decay: float = 0.
    amp: str = 'none'
    channels_last: bool = False
    grad_checkpointing: bool = False
    freeze_encoder: bool = False
    train_split: str = 'train'
    val_split: str = 'val'
    val_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ('in_chans', 'epochs', 'batch_size', 'val_every'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is {getattr(self, name)}, expected more than 0.')
        if self.amp not in AMP:
            raise ValueError(f'amp is {self.amp!r}, expected {" or ".join(AMP)}.')
