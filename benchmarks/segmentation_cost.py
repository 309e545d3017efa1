"""Multiply-adds and time of segmentation networks, with memory against without.

    python benchmarks/segmentation_cost.py [--size 512] [--rounds 7] [--device cpu] [--output FOLDER]

FCN-8s on ResNet50 and the classic U-Net, 21 classes, batch 1. In each round every variant takes a turn, in an order
that changes from round to round, and each ratio is to the network without memory in the same round. On a CPU one
thread is used and its CPU time is counted, which other programs on the machine hardly disturb. Writes
FOLDER/results.json.
"""

import argparse
import json
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any, Dict

import torch

import mlfm_zoo
from mlfm_zoo._files import written_whole
from mlfm_zoo.segmentation import create_model
from mlfm_zoo.workflow.cost import cost_of

RESULTS = Path(__file__).parent / 'results' / 'segmentation-cost'
FCN, UNET = dict(name='fcn8s', encoder='mlfm_resnet50'), dict(name='unet', encoder=None)
NETWORKS: Dict[str, Dict[str, Any]] = {
    'FCN-8s ResNet50': {'none': dict(FCN, memory=False), 'memory': FCN},
    'U-Net': {'none': dict(UNET, memory=False), 'memory': UNET, 'memory and decoder': dict(UNET, memory_decoder=True)},
}


def seconds(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Time of one forward pass."""
    clock = time.perf_counter if image.is_cuda else time.process_time
    if image.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    with torch.inference_mode():
        model(image)
    if image.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure(variants: Dict[str, Dict[str, Any]], size: int, rounds: int, device: str) -> Dict[str, Any]:
    """Cost and time of the variants of one network."""
    rows: Dict[str, Any] = {}
    models = {}
    for name, kwargs in variants.items():
        with torch.device('meta'):
            cost = cost_of(create_model(**kwargs), (3, size, size))
        rows[name] = dict(params=cost.params, madds=cost.madds, activations=cost.activations, seconds=[])
        models[name] = create_model(**kwargs).eval().to(device).to(memory_format=torch.channels_last)
        if name != 'none':
            fused = create_model(**kwargs).eval().fuse()
            models[f'{name}, fused'] = fused.to(device).to(memory_format=torch.channels_last)
            rows[f'{name}, fused'] = dict(rows[name], seconds=[])
    image = torch.randn(1, 3, size, size, device=device).to(memory_format=torch.channels_last)
    for i in range(rounds + 1):
        for name in random.Random(i).sample(list(models), len(models)):
            taken = seconds(models[name], image)
            if i:  # the first round warms up
                rows[name]['seconds'].append(taken)
        print(f'round {i} of {rounds}', flush=True)
    for row in rows.values():
        ratios = [a / b for a, b in zip(row['seconds'], rows['none']['seconds'])]
        row['ratio'] = dict(zip(('low', 'median', 'high'), statistics.quantiles(ratios, n=4, method='inclusive')))
        row['madds_ratio'] = row['madds'] / rows['none']['madds']
    return rows


def table(results: Dict[str, Any]) -> str:
    lines = [
        '| network | memory | params (M) | MAdds (G) | ratio | seconds | ratio of times |',
        '| --- | --- | --: | --: | --: | --: | --: |']
    for network, rows in results.items():
        for name, row in rows.items():
            ratio = row['ratio']
            lines.append(
                f'| {network} | {name} | {row["params"] / 1e6:.2f} | {row["madds"] / 1e9:.1f} | '
                f'{row["madds_ratio"]:.3f} | {statistics.median(row["seconds"]):.2f} | '
                f'{ratio["median"]:.2f} ({ratio["low"]:.2f} to {ratio["high"]:.2f}) |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=int, default=512, help='height and width of the image')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', type=Path, default=RESULTS, help='folder of results.json')
    parser.add_argument('--table', action='store_true', help='print the table of what was measured, and run nothing')
    args = parser.parse_args()
    file = args.output / 'results.json'
    if args.table:
        print(table(json.loads(file.read_text(encoding='utf-8'))['networks']))
        return
    torch.manual_seed(0)
    if args.device == 'cpu':
        torch.set_num_threads(1)
    results = {name: measure(variants, args.size, args.rounds, args.device) for name, variants in NETWORKS.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if args.device.startswith('cuda') else platform.machine()
    said = dict(
        mlfm_zoo=mlfm_zoo.__version__, torch=torch.__version__, machine=machine, threads=torch.get_num_threads(),
        size=args.size, rounds=args.rounds, networks=results)
    with written_whole(file) as unfinished:
        unfinished.write_text(json.dumps(said, indent=1), encoding='utf-8')
    print(table(results))


if __name__ == '__main__':
    main()
