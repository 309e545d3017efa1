"""Time networks on DCT coefficients and their stem, against timm's networks.

    python benchmarks/dct.py [--rounds 11] [--batch-size 4] [--threads 2] [--output FOLDER]

Everything takes turns: in each round every one runs once, and its ratio is to the first of its group in the same
round: the stem of timm's resnet50 (convolution, norm, ReLU, pooling), timm's resnet50, and mobilenetv2_100, each at
224. Medians and quartiles over the rounds. float32, channels_last, eval mode, in one process that keeps freed memory.
With --output, results.json is written there.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import timm
import torch

import mlfm_zoo
from mlfm_zoo._files import written_whole
from mlfm_zoo.workflow.cost import count_cost
from mlfm_zoo_cli.launch import KEEP_MEMORY

# By group: network, image size, arguments. The first is what the others are set against.
NETWORKS: Dict[str, List[Tuple[str, int, Dict[str, Any]]]] = {
    'ResNet50': [
        ('resnet50', 224, {}),
        ('resnet50', 448, {}),
        ('dct_resnet50_24s', 448, {}),
        ('dct_resnet50_24s', 448, dict(layer2_stride=2)),
        ('dct_resnet50_64s', 448, dict(layer2_stride=2)),
        ('dct_resnet50_192_gate', 448, dict(layer2_stride=2)),
        ('dct_resnet50_24s', 448, dict(layer2_stride=2, dct_input='coefficients')),
        ('dct_resnet50_ycbcr', 224, {}),
    ],
    'MobileNetV2': [
        ('mobilenetv2_100', 224, {}),
        ('dct_mobilenetv2_100_6s', 896, {}),
        ('dct_mobilenetv2_100_24s', 896, {}),
    ],
}


def on_batch(model: torch.nn.Module, *shape: int) -> Callable[[], Any]:
    """A run of a network or stem on a random batch of its own."""
    model, x = model.eval().to(memory_format=torch.channels_last), torch.randn(shape)
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: model(x)


def network(name: str, size: int, arguments: Dict[str, Any], batch_size: int) -> Callable[[], Any]:
    model = timm.create_model(name, **arguments)
    if arguments.get('dct_input') == 'coefficients':
        return on_batch(model, batch_size, model.in_chans, size // 8, size // 8)
    return on_batch(model, batch_size, 3, size, size)


def stems(batch_size: int) -> Dict[str, Tuple[Callable[[], Any], float]]:
    """Runs of resnet50's stem and of DCT stems by name, each with its multiply-adds."""
    made: Dict[str, Tuple[Callable[[], Any], float]] = {}
    for size in (224, 448):
        trunk = timm.create_model('resnet50')
        stem = torch.nn.Sequential(trunk.conv1, trunk.bn1, trunk.act1, trunk.maxpool)
        made[f'stem of resnet50 at {size}'] = (
            on_batch(stem, batch_size, 3, size, size), 7 * 7 * 3 * 64 * (size / 2) ** 2)
    for channels in ('24s', '64s', '192'):
        stem = mlfm_zoo.dct.DCTStem(channels)
        made[f'DCT stem, {channels}, at 448'] = (
            on_batch(stem, batch_size, 3, 448, 448), 3 * len(stem.channels) * 448 ** 2)
    return made


def measure(group: Dict[str, Callable[[], Any]], rounds: int) -> Dict[str, Dict[str, float]]:
    """Milliseconds of each, and its ratio to the first: median and quartiles."""
    times: Dict[str, List[float]] = {name: [] for name in group}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, run in group.items():
                start = time.perf_counter()
                run()
                if turn:  # the first is warm-up
                    times[name].append(1000 * (time.perf_counter() - start))
            print(f'\r{turn}/{rounds} rounds', end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)
    first = next(iter(times.values()))
    results = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles([a / b for a, b in zip(values, first)], n=4)
        results[name] = dict(ms=statistics.median(values), low=low, ratio=median, high=high)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--output', type=Path, metavar='FOLDER')
    args = parser.parse_args()
    if platform.system() == 'Linux' and any(os.environ.get(k) != v for k, v in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(args.threads)
    rows: List[Dict[str, Any]] = []
    for group, members in {'stem': [], **NETWORKS}.items():
        runs: Dict[str, Callable[[], Any]] = {}
        madds: Dict[str, float] = {}
        if group == 'stem':
            for label, (run, cost) in stems(args.batch_size).items():
                runs[label], madds[label] = run, cost
        for name, size, arguments in members:
            label = ', '.join([f'{name} at {size}', *(f'{k}={v}' for k, v in arguments.items())])
            runs[label] = network(name, size, arguments, args.batch_size)
            shape = (3, size, size)
            if arguments.get('dct_input') == 'coefficients':
                shape = (24, size // 8, size // 8)
            madds[label] = count_cost(name, shape, **arguments).madds
        for label, figures in measure(runs, args.rounds).items():
            rows.append(dict(group=group, what=label, madds=madds[label], **figures))
            print(f'{label:65} {madds[label] / 1e9:8.3f} G  {figures["ms"]:8.1f} ms  '
                  f'{figures["ratio"]:.2f} ({figures["low"]:.2f} to {figures["high"]:.2f})')
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        found = dict(
            machine=platform.processor() or platform.machine(), torch=torch.__version__, timm=timm.__version__,
            threads=args.threads, batch_size=args.batch_size, rounds=args.rounds, results=rows)
        with written_whole(args.output / 'results.json') as unfinished:
            unfinished.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
