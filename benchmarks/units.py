"""Time every unit of a network's memory, as it runs in the network, on a CPU.

    python benchmarks/units.py mlfm_resnet50 [--batch-size 8] [--size 224] [--rounds 15] [--compile]

Columns: the unit before fuse() and after it, and its convolutions alone, which no fusion takes away. The first row is
the cost of the image's bands. Columns take turns, three runs each; medians. With --compile, a profile of the compiled
network without memory and with, fused: milliseconds in convolutions and in all else, the loops of torch.compile.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections import defaultdict
from typing import Dict, List

import timm
import torch
from speed import cpu_name

from mlfm_zoo.memory import LowFrequencyMemoryUnit
from mlfm_zoo_cli.launch import KEEP_MEMORY

WAYS = ('memory', 'fused')


def milliseconds(function, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return 1e3 * (time.perf_counter() - start)


@torch.inference_mode()
def measure(name: str, batch_size: int, size: int, rounds: int) -> Dict[str, Dict[str, float]]:
    torch.manual_seed(0)
    plain = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    models = {'memory': plain, 'fused': copy.deepcopy(plain).fuse()}
    image = torch.randn(batch_size, 3, size, size).to(memory_format=torch.channels_last)
    times: Dict[str, Dict[str, List[float]]] = defaultdict(lambda: defaultdict(list))
    way = WAYS[0]

    def watch(label: str, module: torch.nn.Module, method: str = 'forward') -> None:
        run = getattr(module, method)

        def timed(*args):
            start = time.perf_counter()
            output = run(*args)
            times[label][way].append(1e3 * (time.perf_counter() - start))
            return output
        setattr(module, method, timed)

    units = {}
    inputs = {}
    for key, model in models.items():
        watch('bands', model.memory, 'image_bands')
        for label, module in model.memory.named_modules():
            if isinstance(module, LowFrequencyMemoryUnit):
                watch(label, module)
                if key == 'fused':
                    units[label] = module
                    module.register_forward_pre_hook(
                        lambda module, args, label=label: inputs.__setitem__(label, (args[1], args[2])))
    for i in range(rounds + 1):
        if i == 1:
            times.clear()  # the first round warms up
        for way in WAYS:
            for _ in range(3):
                models[way](image)
        way = 'convolutions alone'
        for label, unit in units.items():
            memory, bands = inputs[label]
            gates = [(unit.input_gate.conv, memory)]
            if unit.supplement_gate is not None:
                gates.append((unit.supplement_gate.conv, bands[unit.level]))
            times[label][way].append(sum(milliseconds(conv, x) for conv, x in gates))
    return {label: {way: statistics.median(t) for way, t in ways.items()} for label, ways in times.items()}


@torch.inference_mode()
def profile_compiled(name: str, batch_size: int, size: int, rounds: int) -> None:
    image = torch.randn(batch_size, 3, size, size).to(memory_format=torch.channels_last)
    for variant in ('plain', 'fused'):
        model = timm.create_model(name, memory=variant != 'plain').eval().to(memory_format=torch.channels_last)
        network = torch.compile(model.fuse() if variant == 'fused' else model)
        for _ in range(3):
            network(image)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(rounds):
                network(image)
        spent = {event.key: event.self_cpu_time_total / 1e3 / rounds for event in profile.key_averages()}
        convolutions = sum(ms for key, ms in spent.items() if 'mkldnn_convolution' in key)
        rest = sum(spent.values()) - convolutions
        print(f'{variant:12}{convolutions:12.1f} ms in convolutions{rest:12.1f} ms in all else')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--compile', action='store_true', help='a profile of the compiled network instead')
    args = parser.parse_args()
    if any(os.environ.get(k) != v for k, v in KEEP_MEMORY.items()):  # an allocator reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    print(f'{args.model}, {torch.get_num_threads()} cores of {cpu_name()}, torch {torch.__version__}')
    if args.compile:
        profile_compiled(args.model, args.batch_size, args.size, args.rounds)
        return
    columns = [*WAYS, 'convolutions alone']
    print(f'{"ms":12}' + ''.join(f'{c:>20}' for c in columns))
    found = measure(args.model, args.batch_size, args.size, args.rounds)
    found['sum'] = {c: sum(ways.get(c, 0) for ways in found.values()) for c in columns}
    for label, ways in found.items():
        print(f'{label:12}' + ''.join(f'{ways[c]:20.2f}' if c in ways else f'{"":20}' for c in columns))


if __name__ == '__main__':
    main()
