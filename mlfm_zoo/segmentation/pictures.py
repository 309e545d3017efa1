"""Pictures of predicted classes, and masks to save."""

from pathlib import Path
from typing import Optional

import numpy as np
import torch
from PIL import Image

from .._files import written_whole
from .data import IGNORE_INDEX, Labels

__all__ = ['color_labels', 'draw_prediction', 'mask_of']

GAP = 4  # pixels between the parts of a picture
RIGHT, WRONG, VOID = (235, 235, 235), (200, 30, 30), (120, 120, 120)


def color_labels(labels: torch.Tensor, meaning: Labels) -> np.ndarray:
    """Paint labels (H, W) in the colors of their classes: uint8 (H, W, 3)."""
    palette = np.zeros((IGNORE_INDEX + 1, 3), np.uint8)
    palette[:len(meaning.colors)] = meaning.colors
    palette[IGNORE_INDEX] = meaning.void_colors[0] if meaning.void_colors else VOID
    return palette[labels.cpu().numpy()]


def mask_of(labels: torch.Tensor, meaning: Labels) -> Image.Image:
    """Make a mask of one channel, which `read_labels` reads as the same labels (H, W).

    Colors are its palette if the values are below 256.
    """
    values = np.array(meaning.values)[labels.cpu().numpy()]
    if max(meaning.values) > 255:
        return Image.fromarray(values.astype(np.uint16))
    mask = Image.fromarray(values.astype(np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    palette[list(meaning.values)] = meaning.colors
    mask.putpalette(palette.tobytes())
    return mask


def draw_prediction(
        file: Path,
        image: torch.Tensor,
        predicted: torch.Tensor,
        meaning: Labels,
        truth: Optional[torch.Tensor] = None,
) -> None:
    """Draw image, truth, prediction and error side by side.

    Without a truth: image, prediction and both overlaid.

    Args:
        file: File to write.
        image: uint8 (1, 3 or 4, H, W).
        predicted: Predicted class of each pixel (H, W).
        meaning: The labels' colors.
        truth: True class of each pixel, `IGNORE_INDEX` where it is void (H, W).
    """
    pixels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    photo = pixels.permute(1, 2, 0).cpu().numpy()
    painted = color_labels(predicted, meaning)
    if truth is None:
        parts = [photo, painted, ((photo.astype(np.uint16) + painted) // 2).astype(np.uint8)]
    else:
        error = np.array([RIGHT, WRONG], np.uint8)[(predicted != truth).long().cpu().numpy()]
        error[(truth == IGNORE_INDEX).cpu().numpy()] = VOID
        parts = [photo, color_labels(truth, meaning), painted, error]
    gap = np.full((photo.shape[0], GAP, 3), 255, np.uint8)
    strip = np.hstack([x for part in parts for x in (part, gap)][:-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as unfinished:
        Image.fromarray(strip).save(unfinished, format='PNG', optimize=True)
