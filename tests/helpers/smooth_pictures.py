"""Smooth pictures, for what depends on frequencies."""

import timm
import torch
from PIL import Image

MEAN, STD = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD


def pixels(*shape):
    """Smooth images (N, 3, H, W) from 0 to 255, and normalized."""
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(shape[0], 3, 9, 9), shape[-2:], mode='bicubic').clamp(0, 1)
    return 255 * image, (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def write_smooth(folder):
    """A folder of two classes of smooth pictures."""
    for i, image in enumerate(pixels(4, 3, 60, 80)[0].permute(0, 2, 3, 1).byte().numpy()):
        (folder / f'class{i % 2}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f'class{i % 2}' / f'{i}.png')
    return folder
