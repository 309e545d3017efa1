"""scikit-learn's handwritten digits as the images that the embedded model sees, and the split it is trained on."""

from typing import List, NamedTuple, Tuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import create_transform, resolve_model_data_config


class Digits(NamedTuple):
    """Images of 8x8 pixels in RGB, and the digits that they show."""
    images: List[Image.Image]
    labels: torch.Tensor


def load_split() -> Tuple[Digits, Digits]:
    """The 1,797 digits, 1,437 to train on and 360 held out, in a split that is always the same."""
    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(pixels, data.target, test_size=360, random_state=0, stratify=data.target)
    train_pixels, test_pixels, train_labels, test_labels = parts
    return _digits(train_pixels, train_labels), _digits(test_pixels, test_labels)


def to_batch(images: List[Image.Image], model: torch.nn.Module) -> torch.Tensor:
    """Images as the model's pretrained config wants them, through timm's own transform: (N, 3, H, W)."""
    transform = create_transform(**resolve_model_data_config(model))
    return torch.stack([transform(image) for image in images])


def _digits(pixels: np.ndarray, labels: np.ndarray) -> Digits:
    return Digits([Image.fromarray(p).convert('RGB') for p in pixels], torch.from_numpy(labels))
