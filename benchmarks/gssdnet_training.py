"""Train GSSDNet x0.5 (both orders) and VanillaNet x0.5 on CIFAR-10, on one core.

    python benchmarks/gssdnet_training.py CIFAR10 --output FOLDER [--images-per-class 2000] [--epochs 2] [--seeds 0 1 2]

CIFAR10 has the folders train/<class> and test/<class> of pictures, 32 x 32. Runs of one seed see the same pictures in
the same order, flipped and shifted in the same way. Settings are those of the CIFAR recipe, except the number of
epochs, the batch and its rate, one epoch of warm-up, and no random erasing. The rate was the best of 0.02, 0.05 and
0.15 for gssdnet_o2_050 and for gssdnet_vanilla_050, after one epoch of 10,000 pictures. The accuracy is that of the
last epoch on all pictures in test.

A finished run is a line of FOLDER/results.csv. Runs that are there already with the same settings are not run again, so
that an interrupted command resumes.
"""

import argparse
import csv
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.optim import create_optimizer_v2

import mlfm_zoo
from mlfm_zoo.frequency.tables import write_table

NETWORKS = ('gssdnet_o2_050', 'gssdnet_o1_050', 'gssdnet_vanilla_050')
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training pictures, as commonly given
PADDING = 4


def read_images(folder: Path, per_class: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The first pictures of each class as integers (N, 3, 32, 32), and labels (N,)."""
    classes = sorted(path for path in folder.glob('*') if path.is_dir())
    files = [(file, label) for label, path in enumerate(classes) for file in sorted(path.iterdir())[:per_class]]
    if not files:
        sys.exit(
            f'{folder} has no folder of pictures for each class: give the folder of CIFAR-10, with train and test.')
    pixels = np.stack([np.asarray(Image.open(file).convert('RGB')) for file, _ in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([label for _, label in files])


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Pictures as networks take them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip half of the pictures, and shift each by up to 4 pixels."""
    height, width = images.shape[-2:]
    flip = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, [PADDING] * 4)
    shifts = torch.randint(2 * PADDING + 1, (len(images), 2), generator=generator).tolist()
    shifted = [image[:, y:y + height, x:x + width] for image, (y, x) in zip(padded, shifts)]
    return torch.stack(shifted).contiguous(memory_format=torch.channels_last)


def train(
        name: str, seed: int, images: torch.Tensor, labels: torch.Tensor, args: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, thumbnail=True, num_classes=int(labels.max()) + 1)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt='momentum', lr=args.lr, weight_decay=5e-4, momentum=0.9)
    steps_per_epoch = len(images) // args.batch_size
    warmup, steps = steps_per_epoch // 2 if args.epochs == 1 else steps_per_epoch, steps_per_epoch * args.epochs
    generator = torch.Generator().manual_seed(seed)
    progress = sys.stderr.isatty()
    step = 0
    for _ in range(args.epochs):
        order = torch.randperm(len(images), generator=generator)
        for batch in order.split(args.batch_size)[:steps_per_epoch]:
            cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (steps - warmup)))
            for group in optimizer.param_groups:
                group['lr'] = args.lr * min((step + 1) / warmup, cosine)
            x = augment(normalize(images[batch]), generator)
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            step += 1
            if progress:
                print(f'\r{name} seed {seed}: step {step} of {steps}', end='', file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    return model.eval()


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 in percent."""
    right = sum((model(normalize(x)).argmax(1) == y).sum().item() for x, y in zip(images.split(100), labels.split(100)))
    return 100 * right / len(images)


def summary(rows: List[Dict[str, str]]) -> str:
    lines = []
    for name in NETWORKS:
        top1 = [float(row['top1']) for row in rows if row['network'] == name]
        if top1:
            spread = f' +- {statistics.stdev(top1):.2f}' if len(top1) > 1 else ''
            lines.append(f'{name}: {statistics.fmean(top1):.2f}{spread} % over {len(top1)} runs')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder of CIFAR-10')
    parser.add_argument('--output', type=Path, required=True, help='folder for results.csv')
    parser.add_argument('--images-per-class', type=int, default=2000, help='pictures to train on')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--lr', type=float, default=0.15)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    settings = {k: str(v) for k, v in vars(args).items() if k in ('images_per_class', 'epochs', 'batch_size', 'lr')}
    settings['torch'] = torch.__version__
    file = args.output / 'results.csv'
    rows = list(csv.DictReader(file.open(newline=''))) if file.exists() else []
    if any({k: row[k] for k in settings} != settings for row in rows):
        sys.exit(f'{file} was measured with other settings, expected {settings}: name another folder.')
    done = {(row['network'], int(row['seed'])) for row in rows}
    wanted = [(name, seed) for seed in args.seeds for name in NETWORKS if (name, seed) not in done]
    if wanted:
        train_set = read_images(args.data / 'train', args.images_per_class)
        test_set = read_images(args.data / 'test', sys.maxsize)
    print(f'mlfm_zoo {mlfm_zoo.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads')
    for name, seed in wanted:
        start = time.perf_counter()
        model = train(name, seed, *train_set, args)
        top1 = accuracy(model, *test_set)
        rows.append(dict(
            network=name, seed=str(seed), top1=f'{top1:.2f}', test_images=str(len(test_set[0])),
            seconds=f'{time.perf_counter() - start:.0f}', **settings))
        args.output.mkdir(parents=True, exist_ok=True)
        write_table(file, list(rows[-1]), [[row[name] for name in rows[-1]] for row in rows])
        print(f'{name} seed {seed}: {top1:.2f} %', flush=True)
    print(summary(rows))


if __name__ == '__main__':
    main()
