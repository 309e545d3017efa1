"""The settings of a training run."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from .records import CheckedRecord

__all__ = ['AMP', 'TrainSettings']

AMP = ('none', 'bfloat16', 'float16')


@dataclass(frozen=True)
class TrainSettings(CheckedRecord):
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
        ValueError: A value is of another type or out of range.

    Example:
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
        super().__post_init__()
        for name in ('in_chans', 'epochs', 'batch_size', 'val_every', 'crop_size', 'img_size'):
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f'{name} is {value}, expected more than 0.')
        if self.amp not in AMP:
            raise ValueError(f'amp is {self.amp!r}, expected {" or ".join(AMP)}.')
