"""Measure what the memory costs in time and space, against the plain trunk in the same run.

    python benchmarks/speed.py mlfm_resnet50 mlfm_mobilenetv2_100 [--train] [--compile] [--output FOLDER]
    python benchmarks/speed.py all --output FOLDER

Variants take turns: in each round every one runs once, and its ratio to the plain trunk is that of the same round. A
compiled variant is set against the compiled trunk. The median over the rounds is reported with the quartiles, and
called noise where the quartiles lie farther apart than the ratio from 1. Variants:

    plain      timm's network, memory=False
    memory     this package's network
    fused      the same after fuse() (inference)
    saving     the same with gradient checkpointing, against the trunk with it (training)
    wavelets   the unit written on pytorch_wavelets after its equations
    graph      fused and plain in a CUDA graph (CUDA, inference)

With --output, results.json and a picture, cost against multiply-adds, are written there.
"""

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import timm
import torch
import torch.nn.functional as F

import mlfm_zoo
from mlfm_zoo.cost import count_cost

REFERENCES = {'compiled': 'plain compiled', 'saving': 'plain saving', 'graph': 'plain graph'}


def reference_of(variant: str) -> str:
    """The plain variant that a variant is set against."""
    return next((plain for word, plain in REFERENCES.items() if word in variant), 'plain')


def build(name: str, variant: str, args: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, memory='plain' not in variant).to(args.device)
    model.train(args.train)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if 'fused' in variant:
        model.fuse()
    if 'wavelets' in variant:
        from wavelet_unit import use_wavelet_units
        model = use_wavelet_units(model).to(args.device)
    if 'saving' in variant:
        model.set_grad_checkpointing()
    return model


def variants_of(args: argparse.Namespace) -> List[str]:
    ours = ['memory'] if args.train else ['memory', 'fused']
    variants = ['plain', *ours]
    if args.wavelets:
        variants.append('wavelets')
    if args.train:
        variants += ['plain saving', 'memory saving']
    if args.compile:
        variants += ['plain compiled', f'{ours[-1]} compiled']
    if args.device == 'cuda' and not args.train:
        variants += ['plain graph', 'fused graph']
    return variants


def make_step(model: torch.nn.Module, variant: str, image: torch.Tensor, args: argparse.Namespace) -> Callable[[], None]:
    """One inference or one training step, without input and output."""
    if 'compiled' in variant:
        model = torch.compile(model)
    autocast = torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.amp)
    if args.train:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        target = torch.arange(len(image), device=args.device) % 100

        def step():
            optimizer.zero_grad()
            with autocast:
                loss = F.cross_entropy(model(image), target)
            loss.backward()
            optimizer.step()
        return step

    @torch.inference_mode()
    def infer():
        with autocast:
            model(image)
    if 'graph' in variant:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                infer()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            infer()
        return graph.replay
    return infer


def seconds(step: Callable[[], None], device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib(step: Callable[[], None], device: str) -> Optional[float]:
    """Memory that one step takes at its peak beyond what is there before, in MiB; None where it cannot be known."""
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    if sys.platform != 'linux':
        return None
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew

    def read(field: str) -> int:
        return int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith(field)))
    before = read('VmRSS')
    step()
    return (read('VmHWM') - before) / 1024


def quartiles(values: List[float]) -> Dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return dict(median=median, low=low, high=high)


@torch.no_grad()
def check_outputs(models: Dict[str, torch.nn.Module], image: torch.Tensor, args: argparse.Namespace) -> None:
    """What is compared must compute the same; in training mode the norms' statistics are left as they were."""
    if args.train or args.amp:
        return
    logits = {v: model(image[:1]) for v, model in models.items()}
    for plain, name in ((True, 'plain'), (False, 'memory')):
        for variant in (v for v in models if ('plain' in v) == plain):
            error = ((logits[variant] - logits[name]).abs().max() / logits[name].abs().max()).item()
            assert error < 1e-4, f'{variant} differs from {name} by {error:.1e}'


def measure(name: str, args: argparse.Namespace) -> Dict[str, Any]:
    size = args.size or timm.get_pretrained_cfg_value(name, 'input_size')[-1]
    image = torch.randn(args.batch_size, 3, size, size, device=args.device)
    if args.channels_last:
        image = image.to(memory_format=torch.channels_last)
    variants = variants_of(args)
    models = {v: build(name, v, args) for v in variants}
    check_outputs(models, image, args)
    steps = {v: make_step(models[v], v, image, args) for v in variants}
    for i, step in enumerate(steps.values(), start=1):
        for _ in range(2):
            step()
        if sys.stderr.isatty():
            print(f'\r{name}: warmed {i} of {len(steps)}', end='', file=sys.stderr, flush=True)
    times: Dict[str, List[float]] = {v: [] for v in variants}
    for i in range(args.rounds):
        order = variants if i % 2 else variants[::-1]
        for variant in order:
            times[variant].append(seconds(steps[variant], args.device))
        if sys.stderr.isatty():
            print(f'\r{name}: round {i + 1} of {args.rounds}   ', end='', file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    shape = (3, size, size)
    arithmetic = count_cost(name, shape).madds / count_cost(name, shape, memory=False).madds
    rows = {}
    for variant in variants:
        plain = times[reference_of(variant)]
        ratio = quartiles([t / p for t, p in zip(times[variant], plain)])
        rows[variant] = dict(
            seconds=quartiles(times[variant]), images_per_second=args.batch_size / statistics.median(times[variant]),
            ratio=ratio, noise=ratio['high'] - ratio['low'] > abs(ratio['median'] - 1),
            peak_mib=peak_mib(steps[variant], args.device))
    return dict(model=name, size=size, arithmetic=arithmetic, variants=rows)


def table(result: Dict[str, Any]) -> str:
    lines = [f'{result["model"]} at {result["size"]}: multiply-adds x{result["arithmetic"]:.2f} of the trunk\'s']
    for variant, row in result['variants'].items():
        ratio, peak = row['ratio'], row['peak_mib']
        cost = f'x{ratio["median"]:.2f} ({ratio["low"]:.2f} to {ratio["high"]:.2f})'
        if variant.startswith('plain'):
            cost = ''
        elif row['noise']:
            cost = f'noise: {ratio["low"]:.2f} to {ratio["high"]:.2f}'
        space = '' if peak is None else f'{peak:8.0f} MiB'
        lines.append(f'  {variant:16} {1000 * row["seconds"]["median"]:9.1f} ms {row["images_per_second"]:9.1f} images/s '
                     f'{space}  {cost}')
    return '\n'.join(lines)


def draw(results: List[Dict[str, Any]], file: Path, title: str) -> None:
    """Cost in time against cost in arithmetic, a point a network; what is noise is left out."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 5), layout='constrained')
    shown = [v for v in results[0]['variants'] if not v.startswith('plain')]
    for variant, marker in zip(shown, 'osD^vPX'):
        quoted = [r for r in results if not r['variants'][variant]['noise']]
        axes.plot([r['arithmetic'] for r in quoted], [r['variants'][variant]['ratio']['median'] for r in quoted],
                  marker, label=variant, alpha=0.7)
    limits = [1, max(r['arithmetic'] for r in results) * 1.05]
    axes.plot(limits, limits, 'k-', linewidth=1, label='its arithmetic')
    axes.plot(limits, [1.5 * x for x in limits], 'k:', linewidth=1, label='1.5 times its arithmetic')
    axes.set(xlabel='multiply-adds, ratio to the plain trunk', ylabel='time, ratio to the plain trunk', title=title)
    axes.set_ylim(bottom=0.9)
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='+', help="networks, or 'all'")
    parser.add_argument('--train', action='store_true', help='a training step instead of inference')
    parser.add_argument('--compile', action='store_true', help='compiled variants too')
    parser.add_argument('--no-wavelets', dest='wavelets', action='store_false', help='without pytorch_wavelets')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument('--no-channels-last', dest='channels_last', action='store_false')
    parser.add_argument('--batch-size', type=int, default=8, help='images a step; 1 for latency')
    parser.add_argument('--size', type=int, help="image size, instead of each network's own")
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--output', type=Path, help='folder for results.json and cost.png')
    args = parser.parse_args()
    if args.rounds < 4:
        parser.error('quartiles need at least 4 rounds')
    names = timm.list_models('mlfm_*') if args.models == ['all'] else args.models
    machine = dict(
        machine=torch.cuda.get_device_name() if args.device == 'cuda' else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(), torch=torch.__version__, timm=timm.__version__, mlfm_zoo=mlfm_zoo.__version__,
        command=' '.join(['python benchmarks/speed.py', *sys.argv[1:]]))
    print(', '.join(f'{k} {v}' for k, v in machine.items()))
    results = []
    for name in names:
        results.append(measure(name, args))
        print(table(results[-1]), flush=True)
        torch.compiler.reset()
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / 'results.json').write_text(json.dumps(dict(machine, results=results), indent=1))
        kind = 'training step' if args.train else 'inference'
        draw(results, args.output / 'cost.png', f'{kind}, {args.device}, batch {args.batch_size}')


if __name__ == '__main__':
    main()
