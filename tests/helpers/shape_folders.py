"""A data set that takes seconds to learn: discs and squares on noise, in any of the layouts."""

import numpy as np
from PIL import Image

LABELS = dict(names=['ground', 'disc', 'square'], values=[0, 1, 2], void=[255],
              colors=[[0, 0, 0], [200, 0, 0], [0, 0, 200]], void_colors=[[255, 255, 255]])


def shapes(seed, size=(48, 64)):
    """An image and its mask."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size[0], :size[1]]
    mask = np.zeros(size, np.uint8)
    for label in (1, 2):
        cy, cx, r = random.integers(10, size[0] - 10), random.integers(10, size[1] - 10), random.integers(6, 10)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < r * r if label == 1 else (abs(y - cy) < r) & (abs(x - cx) < r)
        mask[inside] = label
    colors = np.array([[90, 90, 90], [180, 90, 60], [60, 90, 180]])
    image = (colors[mask] + random.normal(0, 12, (*size, 3))).clip(0, 255).astype(np.uint8)
    mask[:2] = 255
    return Image.fromarray(image), Image.fromarray(mask)


def write_shapes(root, counts=None, size=(48, 64)):
    """Writes train and val as CamVid has them; returns the folder."""
    seed = 0
    for split, count in (counts or {'train': 16, 'val': 4}).items():
        for folder in (split, f'{split}annot'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, mask = shapes(seed, size)
            image.save(root / split / f'{i:03}.png')
            mask.save(root / f'{split}annot' / f'{i:03}.png')
            seed += 1
    return root
