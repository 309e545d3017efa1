"""Train a small U-Net with memory to find digits on photographs, and draw results.

    python scripts/segmentation_pictures.py [--output docs/segmentation] [--work FOLDER] [--epochs 10]

Digits and photographs are scikit-learn's. The photographs are cut to pieces of 128 x 96 pixels, the left parts for
training and the right parts for evaluation. Each piece gets three to six digits, held-out ones for evaluation. Writes
predictions.png (image, truth, prediction, error) and memory.png, prints the mean IoU, and keeps it in
benchmarks/results/segmentation-pictures.csv, or the file of --figures. Takes minutes on one core.
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import List, Tuple

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import tv_tensors

from digits import Digits, load_split
from mlfm_zoo.memory import LowFrequencyMemoryUnit
from mlfm_zoo.segmentation import (
    SegmentationNetwork,
    TrainSettings,
    load_run,
    predict_labels,
    predict_probabilities,
    train,
)
from mlfm_zoo.segmentation.data import SegmentationDataset, eval_transform, read_image, read_labels
from mlfm_zoo.segmentation.pictures import draw_prediction

HEIGHT, WIDTH = 96, 128
LABELS = dict(names=['photograph', 'digit'], colors=[[40, 40, 40], [240, 200, 60]])


def scene(photo: np.ndarray, digits: Digits, random: np.random.Generator) -> Tuple[Image.Image, Image.Image]:
    """A piece of a photograph with digits on it, and its mask."""
    top, left = random.integers(photo.shape[0] - HEIGHT), random.integers(photo.shape[1] - WIDTH)
    image = photo[top:top + HEIGHT, left:left + WIDTH].astype(np.float64)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(random.integers(3, 7)):
        i, side = random.integers(len(digits.images)), int(random.integers(28, 45))
        ink = np.asarray(digits.images[i].convert('L').resize((side, side), Image.Resampling.BICUBIC)) / 255.0
        y, x = random.integers(HEIGHT - side), random.integers(WIDTH - side)
        part = (slice(y, y + side), slice(x, x + side))
        if mask[part].any():
            continue
        image[part] = (1 - ink[..., None]) * image[part] + ink[..., None] * random.integers(0, 256, 3)
        mask[part][ink > 0.4] = 1
    return Image.fromarray(image.astype(np.uint8)), Image.fromarray(mask)


def write_scenes(folder: Path) -> None:
    """Write scenes as CamVid's layout has them."""
    photos = [np.asarray(photo) for photo in load_sample_images().images]
    for split, digits, count in zip(('train', 'val'), load_split(), (480, 40)):
        random = np.random.default_rng(count)
        for name in (split, f'{split}annot'):
            (folder / name).mkdir(parents=True)
        for i in range(count):
            photo, middle = photos[i % 2], photos[i % 2].shape[1] * 2 // 3
            image, mask = scene(photo[:, :middle] if split == 'train' else photo[:, middle:], digits, random)
            image.save(folder / split / f'{i:03}.png')
            mask.save(folder / f'{split}annot' / f'{i:03}.png')
    (folder / 'labels.json').write_text(json.dumps(LABELS))


def record_memory(model: torch.nn.Module, image: torch.Tensor) -> List[torch.Tensor]:
    """Run a network on an image batch; returns the memory that each unit reads."""
    read: List[torch.Tensor] = []
    handles = [
        unit.register_forward_pre_hook(lambda _, args: read.append(args[1]))
        for unit in model.modules() if isinstance(unit, LowFrequencyMemoryUnit)]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return read


def side_by_side(parts: List[np.ndarray], axis: int) -> np.ndarray:
    """Join pictures, with a white gap between them."""
    shape = list(parts[0].shape)
    shape[axis] = 4
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([x for part in parts for x in (part, gap)][:-1], axis)


def draw_memory(model: SegmentationNetwork, images: List[torch.Tensor], file: Path) -> None:
    """Draw a row per image: the image, and the mean memory that each unit reads."""
    rows = []
    for pixels in images:
        cells = [pixels.permute(1, 2, 0).numpy()]
        for memory in record_memory(model, eval_transform(model.mean, model.std)(tv_tensors.Image(pixels))[None]):
            mean = memory[0].mean(0)
            painted = colormaps['viridis'](((mean - mean.min()) / (mean.max() - mean.min())).numpy(), bytes=True)
            cells.append(np.asarray(
                Image.fromarray(painted[..., :3]).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)))
        rows.append(side_by_side(cells, 1))
    Image.fromarray(side_by_side(rows, 0)).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path('docs/segmentation'), help='folder of pictures')
    parser.add_argument('--work', type=Path, help='folder of scenes and the run, a temporary one by default')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--figures', type=Path, default=Path('benchmarks/results/segmentation-pictures.csv'),
                        help='CSV file for the mean IoU')
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    if not (work / 'scenes' / 'labels.json').exists():
        write_scenes(work / 'scenes')
    settings = TrainSettings(
        data=str(work / 'scenes'), labels=str(work / 'scenes' / 'labels.json'), model='unet', encoder=None,
        model_kwargs=dict(base_width=12), crop_size=(HEIGHT, WIDTH), scale=(0.8, 1.25), epochs=args.epochs, lr=3e-3,
        batch_size=8, channels_last=True, val_every=5)
    best = train(settings, work / 'run')
    print(f'mean IoU on {args.epochs} epochs: {best["miou"]:.1f} %')
    with open(args.figures, 'w', newline='', encoding='utf-8') as f:
        table = csv.writer(f, lineterminator='\n')
        table.writerows([('network', 'epochs', 'images', 'miou', 'torch'),
                         ('unet, base_width=12, memory', args.epochs, 40, f'{best["miou"]:.2f}', torch.__version__)])
    model, labels, _ = load_run(work / 'run' / 'best')
    dataset = SegmentationDataset(work / 'scenes', 'val', labels, eval_transform(model.mean, model.std))
    args.output.mkdir(parents=True, exist_ok=True)
    strips = []
    for i in range(4):
        sample = dataset.samples[i]
        predicted = predict_labels(predict_probabilities(model, dataset[i][0][None]))[0]
        file = work / f'prediction{i}.png'
        draw_prediction(file, read_image(sample.image), predicted, labels, read_labels(sample.mask, labels))
        strips.append(np.asarray(Image.open(file)))
    Image.fromarray(side_by_side(strips, 0)).save(args.output / 'predictions.png', optimize=True)
    photos = [torch.from_numpy(np.array(photo)[150:150 + HEIGHT, 250:250 + WIDTH]).permute(2, 0, 1)
              for photo in load_sample_images().images]
    draw_memory(model, [read_image(dataset.samples[0].image), *photos], args.output / 'memory.png')


if __name__ == '__main__':
    main()
