"""scikit-learn's digits as images for the embedded model, in its training split.

    python scripts/digits.py FOLDER

writes them into FOLDER/train/<digit> and FOLDER/val/<digit>.
"""

import argparse
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

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
    """The 1,797 digits in a fixed split: 1,437 to train on and 360 held out."""
    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(pixels, data.target, test_size=360, random_state=0, stratify=data.target)
    train_pixels, test_pixels, train_labels, test_labels = parts
    return _digits(train_pixels, train_labels), _digits(test_pixels, test_labels)


def to_batch(images: List[Image.Image], model: torch.nn.Module) -> torch.Tensor:
    """Batch of images (N, 3, H, W), prepared by the model's own timm transform."""
    transform = create_transform(**resolve_model_data_config(model))
    return torch.stack([transform(image) for image in images])


def _digits(pixels: np.ndarray, labels: np.ndarray) -> Digits:
    return Digits([Image.fromarray(p).convert('RGB') for p in pixels], torch.from_numpy(labels))


def write_digits(root: Path, num_train: Optional[int] = None, num_val: Optional[int] = None) -> Path:
    """Write digits as PNG files into `root/train/<digit>` and `root/val/<digit>`: the first of each split, or all."""
    for split, digits, count in zip(('train', 'val'), load_split(), (num_train, num_val)):
        for i, (image, label) in enumerate(zip(digits.images[:count], digits.labels.tolist())):
            (root / split / str(label)).mkdir(parents=True, exist_ok=True)
            image.save(root / split / str(label) / f'{i:04}.png')
    return root


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder to write, made if it is missing')
    write_digits(parser.parse_args().folder)
