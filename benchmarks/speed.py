"""Measure what the memory costs in time and space, against the plain trunk.

    python benchmarks/speed.py mlfm_resnet50 mlfm_mobilenetv2_100 [--train] [--compile] [--output FOLDER]
    python benchmarks/speed.py all --output FOLDER
    python benchmarks/speed.py mlfm_resnet50 mlfm_mobilenetv2_100 --folded
    python benchmarks/speed.py gssdnet_o2_100 [--compile]

Variants take turns: in each round every one runs once, and its ratio to the plain trunk is that of the same round. A
compiled variant is set against the compiled trunk. The median over the rounds is reported with the quartiles, and
called noise where its 95 % interval is wider than the ratio's distance from 1. On CPUs each variant has a process of
its own, since what one leaves behind in memory changes the speed of the next, and its allocator keeps freed memory, as
jemalloc and tcmalloc do. With --system-malloc it gives memory back to the system as glibc's does by default: how much
of it a network then has to get again in every step differs from process to process, by luck. On a machine that others
use too, --cpu-time with OMP_NUM_THREADS=1 counts what a variant computes and not what it waits for. Variants:

    plain         timm's network, memory=False
    memory        this package's network
    fused         the same after fuse() (inference)
    plain folded  timm's network, its norms folded into its convolutions by fuse_trunk (--folded, inference)
    fused folded  this package's after fuse(trunk=True), which folds them in the same way (--folded, inference)
    saving        the same with gradient checkpointing, against the trunk with it (training)
    wavelets      the unit written on pytorch_wavelets after its equations
    graph         fused and plain in a CUDA graph (CUDA, inference)

With --folded every variant has a second ratio, to the plain trunk folded, beside the one to the trunk as it is; with
--compile too, compiled variants to compiled trunks.

GSSDNet has no memory: its plain variant is timm's mobilenetv1_100, 'network' stands in the place of 'memory', and
'literal' is the network with its channels split, filtered and concatenated as the paper has it.

With --output, results.json and a picture, cost against multiply-adds, are written there; results of networks that
lie there already are replaced, and others kept, if machine, versions and setting are the same.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import timm
import torch
import torch.nn.functional as F
from torch import nn

import mlfm_zoo
from mlfm_zoo._files import written_whole
from mlfm_zoo.workflow.cost import count_cost
from mlfm_zoo_cli.launch import KEEP_MEMORY

# What GSSDNet is set against, whatever its width.
MOBILENETV1 = 'mobilenetv1_100'

# What the second ratio of --folded is to.
FOLDED = 'plain folded'

REFERENCES = {'compiled': 'plain compiled', 'saving': 'plain saving', 'graph': 'plain graph'}


def reference_of(variant: str) -> str:
    """The plain variant that a variant is set against."""
    return next((plain for word, plain in REFERENCES.items() if word in variant), 'plain')


def folded_of(variant: str) -> str:
    """The plain variant with its norms folded that a variant is set against beside."""
    return f'{FOLDED} compiled' if 'compiled' in variant else FOLDED


def is_gssdnet(name: str) -> bool:
    return name.startswith('gssdnet')


def variants_of(name: str, args: argparse.Namespace) -> List[str]:
    network = 'network' if is_gssdnet(name) else 'memory'
    ours = [network] if args.train else [network, 'fused']
    variants = ['plain', *ours]
    if is_gssdnet(name) and 'vanilla' not in name:
        variants.append('literal')
    if args.wavelets and not is_gssdnet(name):
        variants.append('wavelets')
    if args.folded and not args.train:  # a fused GSSDNet has no norms left to fold
        variants += [FOLDED] if is_gssdnet(name) else [FOLDED, 'fused folded']
    if args.train and args.saving:
        variants += ['plain saving', f'{network} saving']
    if args.compile:
        variants += ['plain compiled', f'{ours[-1]} compiled']
        variants += [f'{variant} compiled' for variant in variants if 'folded' in variant]
    if args.device == 'cuda' and not args.train:
        variants += ['plain graph', 'fused graph']
    return variants


def build(name: str, variant: str, args: argparse.Namespace) -> nn.Module:
    """Build one variant of a network, on its device and in its mode."""
    if is_gssdnet(name):
        model = timm.create_model(MOBILENETV1 if 'plain' in variant else name)
    else:
        model = timm.create_model(name, memory='plain' not in variant)
    model = model.to(args.device, getattr(torch, args.model_dtype)).train(args.train)
    if 'folded' in variant:
        mlfm_zoo.fuse_trunk(model)
    elif 'fused' in variant:
        model.fuse()
    if 'wavelets' in variant:
        from wavelet_unit import use_wavelet_units
        model = use_wavelet_units(model).to(args.device)
    if 'literal' in variant:
        from literal_gssdnet import use_literal_operators
        model = use_literal_operators(model)
    if 'saving' in variant:
        model.set_grad_checkpointing()
    return model


class Step:
    """A network and one batch of images of a size for it, ready to run."""

    def __init__(self, make: Callable[[], nn.Module], size: int, args: argparse.Namespace, compiled: bool = False):
        torch.manual_seed(0)
        self.device = args.device
        self.clock = time.process_time if args.cpu_time else time.perf_counter
        self.image = torch.randn(args.batch_size, 3, size, size).to(args.device, getattr(torch, args.model_dtype))
        self.model = make().to(args.device).train(args.train)
        if args.channels_last:
            self.image = self.image.to(memory_format=torch.channels_last)
            self.model = self.model.to(memory_format=torch.channels_last)
        network = torch.compile(self.model) if compiled else self.model
        autocast = torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.amp)
        if args.train:
            optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
            target = torch.arange(args.batch_size, device=args.device) % self.model.num_classes

            def step():
                optimizer.zero_grad()
                with autocast:
                    loss = F.cross_entropy(network(self.image), target)
                loss.backward()
                optimizer.step()
        else:
            @torch.inference_mode()
            def step():
                with autocast:
                    network(self.image)
        self.step = step

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        return self.model(self.image[:1]).cpu()

    def warm(self) -> None:
        for _ in range(3):
            self.step()

    def record(self) -> None:
        """Put the step into a CUDA graph."""
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            self.warm()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.step = graph.replay

    def seconds(self) -> float:
        """Run one step."""
        if self.device == 'cuda':
            torch.cuda.synchronize()
        start = self.clock()
        self.step()
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return self.clock() - start

    def page_faults(self) -> Optional[int]:
        """Pages that one step asks the system for; None where it cannot be known."""
        if self.device == 'cuda' or sys.platform == 'win32':
            return None
        import resource
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self.step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def peak_mib(self) -> Optional[float]:
        """Peak memory of a step in MiB, beyond what was in use before; None if unknown."""
        if self.device == 'cuda':
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            torch.cuda.synchronize()
            return round((torch.cuda.max_memory_allocated() - before) / 2 ** 20, 1)
        if sys.platform != 'linux':
            return None
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts again

        def read(field: str) -> int:
            return int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith(field)))
        before = read('VmRSS')
        self.step()
        return round((read('VmHWM') - before) / 1024, 1)


class RemoteStep:
    """A step in its own process, where the allocator is as a user has it.

    It takes the arguments of `Step`, and has its methods.
    """

    def __init__(self, *args: Any):
        has_fork = 'forkserver' in multiprocessing.get_all_start_methods()  # Windows has not
        context = multiprocessing.get_context('forkserver' if has_fork else 'spawn')
        context.set_forkserver_preload(['timm', 'mlfm_zoo'])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=self._serve, args=(theirs, args), daemon=True)
        self.process.start()
        theirs.close()

    @staticmethod
    def _serve(connection: Connection, args: Tuple) -> None:
        step = Step(*args)
        while method := connection.recv():
            connection.send(getattr(step, method)())

    def __getattr__(self, method: str) -> Callable[[], Any]:
        def call() -> Any:
            self.connection.send(method)
            return self.connection.recv()
        return call

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()


def spread(values: List[float]) -> Dict[str, float]:
    """Median, quartiles, and a distribution-free 95 % interval of the median."""
    low, median, high = statistics.quantiles(values, n=4)
    ordered = sorted(values)
    n = len(ordered)
    rank, tail = 0, 0.5 ** n  # chance that the true median lies below the value of this rank
    while tail <= 0.025:
        rank += 1
        tail += math.comb(n, rank) * 0.5 ** n
    rank = max(rank - 1, 0)
    found = dict(median=median, low=low, high=high, sure_low=ordered[rank], sure_high=ordered[n - 1 - rank])
    return {k: round(v, 5) for k, v in found.items()}


def compare(times: List[float], reference: List[float]) -> Tuple[Dict[str, float], bool]:
    """Ratio of times in the same rounds, and whether it is nearer to 1 than its noise."""
    ratio = spread([t / r for t, r in zip(times, reference)])
    return ratio, ratio['sure_high'] - ratio['sure_low'] > abs(ratio['median'] - 1)


def check_outputs(variants: Dict[str, Any]) -> None:
    """What is compared must compute the same."""
    logits = {name: variant.logits() for name, variant in variants.items()}
    for plain in (True, False):
        names = [v for v in variants if ('plain' in v) == plain]
        reference = names[0]
        for name in names:
            error = ((logits[name] - logits[reference]).abs().max() / logits[reference].abs().max()).item()
            assert error < 1e-4, f'{name} differs from {reference} by {error:.1e}'


def measure(name: str, args: argparse.Namespace) -> Dict[str, Any]:
    size = args.size or timm.get_pretrained_cfg_value(name, 'input_size')[-1]
    progress = partial(print, end='', file=sys.stderr, flush=True) if sys.stderr.isatty() else lambda text: None
    kind = Step if args.device == 'cuda' else RemoteStep
    variants = {
        v: kind(partial(build, name, v, args), size, args, 'compiled' in v) for v in variants_of(name, args)}
    if not (args.train or args.amp) and args.model_dtype == 'float32':
        check_outputs(variants)
    for i, (label, variant) in enumerate(variants.items(), start=1):
        variant.record() if 'graph' in label else variant.warm()
        progress(f'\r{name}: warmed {i} of {len(variants)}')
    times: Dict[str, List[float]] = {v: [] for v in variants}
    for i in range(args.rounds):
        for label in list(variants)[::1 if i % 2 else -1]:
            times[label].append(variants[label].seconds())
        progress(f'\r{name}: round {i + 1} of {args.rounds}   ')
    progress('\n')
    shape = (3, size, size)
    plain_cost = count_cost(MOBILENETV1, shape) if is_gssdnet(name) else count_cost(name, shape, memory=False)
    arithmetic = count_cost(name, shape).madds / plain_cost.madds
    rows = {}
    for label, variant in variants.items():
        ratio, noise = compare(times[label], times[reference_of(label)])
        rows[label] = dict(
            seconds=spread(times[label]),
            images_per_second=round(args.batch_size / statistics.median(times[label]), 2),
            ratio=ratio, noise=noise, page_faults=variant.page_faults(), peak_mib=variant.peak_mib())
        if folded_of(label) in variants and 'graph' not in label:
            rows[label]['ratio_to_folded'], rows[label]['noise_to_folded'] = compare(
                times[label], times[folded_of(label)])
        if kind is RemoteStep:
            variant.close()
    words = sys.argv[1:]
    if '--output' in words:  # where the results lie does not change them
        place = words.index('--output')
        del words[place:place + 2]
    command = ' '.join(['python benchmarks/speed.py', *words])
    return dict(
        model=name, size=size, arithmetic=round(arithmetic, 4), rounds=args.rounds, command=command, variants=rows)


def cost_text(ratio: Dict[str, float], noise: bool) -> str:
    quartiles = f'{ratio["low"]:.2f} to {ratio["high"]:.2f}'
    return f'noise: {quartiles}' if noise else f'x{ratio["median"]:.2f} ({quartiles})'


def table(result: Dict[str, Any]) -> str:
    lines = [
        f'{result["model"]} at {result["size"]}: multiply-adds x{result["arithmetic"]:.2f} of the plain network\'s']
    for variant, row in result['variants'].items():
        peak = row['peak_mib']
        cost = '' if variant == reference_of(variant) else cost_text(row['ratio'], row['noise'])
        if 'ratio_to_folded' in row and variant != folded_of(variant):
            cost = f'{cost:26} {cost_text(row["ratio_to_folded"], row["noise_to_folded"])} of {folded_of(variant)}'
        space = '' if peak is None else f'{peak:8.0f} MiB'
        if row['page_faults'] is not None:
            space += f'{row["page_faults"]:8} faults'
        speed = f'{1000 * row["seconds"]["median"]:9.1f} ms {row["images_per_second"]:9.1f} images/s'
        lines.append(f'  {variant:22} {speed} {space}  {cost}')
    return '\n'.join(lines)


def draw(results: List[Dict[str, Any]], file: Path, title: str) -> None:
    """Draw time against arithmetic cost, a point per network; hollow points are noise."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 5.5), layout='constrained')
    shown = list(dict.fromkeys(v for r in results for v in r['variants'] if not v.startswith('plain')))
    for i, (variant, marker) in enumerate(zip(shown, 'osD^vPX')):
        for noise in (False, True):
            rows = [r for r in results if variant in r['variants'] and r['variants'][variant]['noise'] == noise]
            axes.plot(
                [r['arithmetic'] for r in rows], [r['variants'][variant]['ratio']['median'] for r in rows], marker,
                color=f'C{i}', alpha=0.7, markerfacecolor='none' if noise else None, label=None if noise else variant)
    axes.plot([], [], 'ko', markerfacecolor='none', label='hollow: nearer to 1 than its noise')
    limits = [1, max(r['arithmetic'] for r in results) * 1.05]
    axes.plot(limits, limits, 'k-', linewidth=1, label='its arithmetic')
    axes.plot(limits, [1.5 * x for x in limits], 'k:', linewidth=1, label='1.5 times its arithmetic')
    axes.set(xlabel='multiply-adds, ratio to the plain trunk', ylabel='time, ratio to the plain trunk', title=title)
    axes.set_ylim(bottom=0.9)
    figure.legend(loc='outside lower center', ncols=3)
    figure.savefig(file, dpi=120)


def cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    file = Path('/proc/cpuinfo')
    names = [line.partition(':')[2].strip() for line in file.read_text().splitlines() if line.startswith('model name')
             ] if file.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='+', help="networks, or 'all'")
    parser.add_argument('--train', action='store_true', help='a training step instead of inference')
    parser.add_argument('--compile', action='store_true', help='compiled variants too')
    parser.add_argument('--no-wavelets', dest='wavelets', action='store_false', help='without pytorch_wavelets')
    parser.add_argument('--no-saving', dest='saving', action='store_false', help='without gradient checkpointing')
    parser.add_argument('--folded', action='store_true', help="variants with the trunk's norms folded too")
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument(
        '--model-dtype', default='float32', choices=['float32', 'bfloat16'], help='type of the weights, as in timm')
    parser.add_argument('--no-channels-last', dest='channels_last', action='store_false')
    parser.add_argument('--system-malloc', action='store_true', help='return freed memory to the system (CPU)')
    parser.add_argument('--cpu-time', action='store_true', help='CPU time of one thread instead of time on the clock')
    parser.add_argument('--batch-size', type=int, default=8, help='images a step; 1 for latency')
    parser.add_argument('--size', type=int, help="image size, instead of each network's own")
    parser.add_argument('--rounds', type=int, default=21)
    parser.add_argument('--output', type=Path, help='folder for results.json and cost.png')
    args = parser.parse_args()
    if args.rounds < 6:
        parser.error('the interval of a median needs at least 6 rounds')
    if args.cpu_time and (args.device != 'cpu' or torch.get_num_threads() > 1):
        parser.error('CPU time is counted on a CPU with one thread: set OMP_NUM_THREADS=1')
    if not args.system_malloc:
        os.environ.update(KEEP_MEMORY)  # for the variants' processes
    names = timm.list_models('mlfm_*', exclude_filters='mlfm_filtered') if args.models == ['all'] else args.models
    setting = dict(
        machine=torch.cuda.get_device_name() if args.device == 'cuda' else cpu_name(),
        threads=torch.get_num_threads(), torch=torch.__version__, timm=timm.__version__, mlfm_zoo=mlfm_zoo.__version__,
        train=args.train, device=args.device, amp=args.amp, channels_last=args.channels_last,
        system_malloc=args.system_malloc, cpu_time=args.cpu_time, model_dtype=args.model_dtype,
        batch_size=args.batch_size, size=args.size)
    print(', '.join(f'{k} {v}' for k, v in setting.items()))
    results = read_results(args.output, setting) if args.output else {}
    for name in names:
        results[name] = measure(name, args)
        print(table(results[name]), flush=True)
        torch.compiler.reset()
        if args.output:  # what is there so far outlives an interruption
            args.output.mkdir(parents=True, exist_ok=True)
            with written_whole(args.output / 'results.json') as unfinished:
                unfinished.write_text(json.dumps(dict(setting, results=list(results.values())), indent=1) + '\n')
    if args.output:
        kind = 'training step' if args.train else 'inference'
        draw(list(results.values()), args.output / 'cost.png', f'{kind}, {args.device}, batch {args.batch_size}')


def read_results(folder: Path, setting: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Results that lie in a folder, by network."""
    file = folder / 'results.json'
    if not file.exists():
        return {}
    there = {'cpu_time': False, 'model_dtype': 'float32'} | json.loads(file.read_text())  # what older files leave out
    results = there.pop('results')
    if there != setting:
        sys.exit(f'{file} was measured in another setting, expected {setting}: name another folder.')
    return {r['model']: r for r in results}


if __name__ == '__main__':
    main()
