"""Time to read JPEG coefficients, against decoding, and bytes sent to the device.

    python benchmarks/jpeg.py IMAGES --output FOLDER [--size 448] [--rounds 7]

IMAGES is a folder of photos, in any folders. They are stored once at the size of timm's evaluation transform before its
crop, at quality 95 without subsampling and 75 with, in a temporary folder. Each round reads all of them in all ways,
one after the other, in one process, forwards and backwards by turns; a ratio is the median over rounds of the ratio to
decode + resize. Files are in the system's cache. Writes results.json, and jpeglib.csv: the share of each way's CPU time
that is spent inside jpeglib, by a profile of one more round. --shares makes that file alone.
"""

import argparse
import cProfile
import csv
import json
import os
import platform
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import PIL
import timm
import torch
from timm.data import ImageDataset, create_transform

import mlfm_zoo
from mlfm_zoo._files import written_whole
from mlfm_zoo.dct import JPEGCoefficients, store_jpegs

CHANNELS = '24s'


def rgb_dataset(root: Path, size: int, crop_pct: float, raw: bool) -> ImageDataset:
    """timm's evaluation dataset; `raw` keeps integers, which timm's prefetcher takes."""
    transform = create_transform((3, size, size), crop_pct=crop_pct, interpolation='bilinear', use_prefetcher=raw)
    return ImageDataset(str(root), transform=transform)


def ways(original: Path, stored: Dict[str, Path], size: int, crop_pct: float) -> Dict[str, Any]:
    """Data sets that return a network's input, by name."""
    datasets: Dict[str, Any] = {
        'decode original + resize + normalize': rgb_dataset(original, size, crop_pct, raw=False)}
    for name, root in stored.items():
        datasets[f'decode {name} + crop + normalize'] = rgb_dataset(root, size, crop_pct, raw=False)
        datasets[f'decode {name} + crop'] = rgb_dataset(root, size, crop_pct, raw=True)
        datasets[f'coefficients of {name}, normalized'] = JPEGCoefficients(root, CHANNELS, size)
        datasets[f'coefficients of {name}, int16'] = JPEGCoefficients(root, CHANNELS, size, normalize=False)
    return datasets


def seconds(read: Callable[[int], Any], count: int) -> float:
    start = time.perf_counter()
    for i in range(count):
        read(i)
    return time.perf_counter() - start


def write_shares(datasets: Dict[str, Any], count: int, file: Path) -> None:
    """Write the share of each dataset's CPU time that is spent inside jpeglib."""
    rows = [('way', 'images', 'jpeglib_share')]
    for name, dataset in datasets.items():
        profile = cProfile.Profile(time.process_time)
        profile.runcall(seconds, dataset.__getitem__, count)
        stats = pstats.Stats(profile)
        own = sum(figures[2] for (path, *_), figures in stats.stats.items() if 'jpeglib' in Path(path).parts)
        rows.append((name, str(count), f'{own / stats.total_tt:.2f}'))
    with open(file, 'w', newline='', encoding='utf-8') as f:
        csv.writer(f, lineterminator='\n').writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path, help='folder of photos')
    parser.add_argument('--output', type=Path, required=True, help='folder for results.json and jpeglib.csv')
    parser.add_argument('--size', type=int, default=448)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--shares', action='store_true', help='write jpeglib.csv alone')
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    before_crop = round(args.size / 0.875 / 8) * 8
    with tempfile.TemporaryDirectory() as folder:
        stored = {'q95 4:4:4': Path(folder) / '444', 'q75 4:2:0': Path(folder) / '420'}
        for root, quality, subsampling in zip(stored.values(), (95, 75), (0, 2)):
            store_jpegs(args.images, root, before_crop, quality=quality, subsampling=subsampling)
        datasets = ways(args.images, stored, args.size, args.size / before_crop)
        count = len(next(iter(datasets.values())))
        write_shares(datasets, count, args.output / 'jpeglib.csv')
        if args.shares:
            return
        times: Dict[str, List[float]] = {name: [] for name in datasets}
        for i in range(args.rounds + 1):
            for name in list(datasets)[::1 if i % 2 else -1]:
                taken = seconds(datasets[name].__getitem__, count)
                if i:  # the first warms up
                    times[name].append(taken)
            if sys.stderr.isatty():
                print(f'\rround {i} of {args.rounds}', end='', file=sys.stderr, flush=True)
        first = next(iter(times))
        rows = []
        for name, taken in times.items():
            item = datasets[name][0][0]
            item = item if torch.is_tensor(item) else torch.from_numpy(item)
            rows.append(dict(
                way=name, images_per_second=round(count / statistics.median(taken), 1),
                ratio=round(statistics.median(a / b for a, b in zip(times[first], taken)), 2),
                bytes=item.numel() * item.element_size()))
        kilobytes = {name: round(sum(f.stat().st_size for f in root.rglob('*.jpg')) / count / 1000, 1)
                     for name, root in stored.items()}
    for row in rows:
        print(f'{row["way"]:45} {row["images_per_second"]:8} images/s  x {row["ratio"]:5}  {row["bytes"]:8} bytes')
    result = dict(
        mlfm_zoo=mlfm_zoo.__version__, torch=torch.__version__, timm=timm.__version__, pillow=PIL.__version__,
        machine=platform.machine(), cores=os.cpu_count(), images=count, size=args.size, channels=CHANNELS,
        rounds=args.rounds, kilobytes_per_file=kilobytes, rows=rows)
    with written_whole(args.output / 'results.json') as unfinished:
        unfinished.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
