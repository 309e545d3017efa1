"""Measure what the memory costs where networks are deployed: ONNX Runtime, OpenVINO and torch's compiler, on a CPU.

    python benchmarks/deploy.py --output FOLDER [--networks mlfm_resnet18 ...] [--engines onnx openvino ...]
        [--precisions float32 int8] [--batches 1 8] [--threads 1 2] [--size 224] [--rounds 15] [--images PHOTOS]

Arms of a network take turns in one process. In each round every arm runs once, after a run that is not counted, and its
ratio to the plain trunk is that of the same round; medians and quartiles over the rounds are reported. Arms:

    plain         timm's network, memory=False
    plain folded  the same, its norms folded into its convolutions by fuse_trunk
    memory        this package's network
    fused         the same after fuse()
    fused folded  the same after fuse(trunk=True)

Engines: eager (torch as it is), compile (torch.compile), aoti (a package of AOTInductor), onnx (ONNX Runtime) and
openvino. The last two have int8 too, quantized as `mlfm-zoo export --int8` does, calibrated on the photographs of
--images, or on random images: speed does not depend on them. Weights are random.

Results are lines of FOLDER/results.csv as soon as an engine and a batch of a network are measured, and the same command
resumes: what the file has is not measured again. A folder is for one machine, one set of versions and one state of the
code, of which only you know: take a new one after a change of the networks.
"""

import argparse
import copy
import csv
import dataclasses
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import timm
import torch
from speed import compare, cpu_name, spread
from torch import nn

import mlfm_zoo
from mlfm_zoo.workflow.cost import count_cost
from mlfm_zoo.workflow.export import ENDINGS, input_size, quantize, read_photos, write_graph
from mlfm_zoo_cli.launch import KEEP_MEMORY

ENGINES = {
    'eager': 'torch', 'compile': 'torch.compile', 'aoti': 'AOTInductor', 'onnx': 'ONNX Runtime', 'openvino': 'OpenVINO'}
HAVE_INT8 = ('onnx', 'openvino')
ARMS = ('plain', 'plain folded', 'memory', 'fused', 'fused folded')

# A run that is shorter is repeated within its turn until it has taken this long.
SECONDS = 0.05

# Images that int8 is calibrated on.
CALIBRATED = 32

KEY = ('network', 'engine', 'precision', 'batch', 'threads')
COLUMNS = (
    *KEY, 'arm', 'size', 'arithmetic', 'rounds', 'ms', 'ms_low', 'ms_high',
    'to_plain', 'to_plain_low', 'to_plain_high', 'to_folded', 'to_folded_low', 'to_folded_high')

Row = Dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process measures: a network in one engine.

    Attributes:
        network: Registered name.
        engine: Key of `ENGINES`.
        batch: Images a call.
        size: Image size in pixels; the network's own if None.
        cells: Precisions, 'float32' or 'int8', each with a number of threads.
        rounds: How often each arm takes its turn.
        images: Folder of photographs to calibrate int8 on; random images if None.
    """
    network: str
    engine: str
    batch: int
    size: Optional[int]
    cells: Tuple[Tuple[str, int], ...]
    rounds: int
    images: Optional[str]


def build_arms(name: str) -> Dict[str, nn.Module]:
    """Build the networks to compare; those of one kind have the same weights."""
    torch.manual_seed(0)
    plain, memory = (settled(timm.create_model(name, memory=memory)) for memory in (False, True))
    return {
        'plain': plain, 'plain folded': mlfm_zoo.fuse_trunk(copy.deepcopy(plain)), 'memory': memory,
        'fused': copy.deepcopy(memory).fuse(), 'fused folded': copy.deepcopy(memory).fuse(trunk=True)}


@torch.no_grad()
def settled(model: nn.Module) -> nn.Module:
    """Give a new network norms as training leaves them: no branch is 0, and values neither vanish nor grow."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.train()
    for _ in range(3):
        model(torch.randn(8, 3, 64, 64))
    return model.eval()


def measure(job: Job) -> List[Row]:
    """Measure all arms of a job; runs in a process of its own.

    Args:
        job: What to measure.

    Returns:
        A row for each number of threads and arm.
    """
    arms = build_arms(job.network)
    size = input_size(arms['plain'], job.size)
    image = torch.randn(job.batch, *size)
    with torch.inference_mode():
        logits = {arm: model(image[:1]) for arm, model in arms.items()}
    for arm, reference in (('plain folded', 'plain'), ('fused', 'memory'), ('fused folded', 'memory')):
        error = ((logits[arm] - logits[reference]).abs().max() / logits[reference].abs().max()).item()
        assert error < 1e-4, f'{arm} of {job.network} differs from {reference} by {error:.1e}'
    arithmetic = count_cost(job.network, size).madds / count_cost(job.network, size, memory=False).madds
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision, threads in job.cells:
            torch.set_num_threads(threads)  # code that torch compiles is for this number
            calls = {}
            for arm, model in arms.items():
                stem = Path(folder, f'{arm} {threads}' if job.engine == 'aoti' else arm)
                calls[arm] = open_arm(job, model, stem, precision, image, threads)
            times = take_turns(calls, job.rounds)
            for arm in ARMS:
                ms = spread([1000 * t for t in times[arm]])
                row = dict(
                    network=job.network, engine=job.engine, precision=precision, batch=job.batch, threads=threads,
                    arm=arm, size=size[-1], arithmetic=f'{arithmetic:.4f}', rounds=job.rounds,
                    ms=ms['median'], ms_low=ms['low'], ms_high=ms['high'])
                for column, reference in (('to_plain', 'plain'), ('to_folded', 'plain folded')):
                    ratio, _ = compare(times[arm], times[reference])
                    row |= {
                        column: f'{ratio["median"]:.4f}', f'{column}_low': f'{ratio["low"]:.4f}',
                        f'{column}_high': f'{ratio["high"]:.4f}'}
                rows.append(row)
    return rows


def write_file(job: Job, model: nn.Module, stem: Path, precision: str) -> Path:
    """Export an arm, or quantize what was exported; what is there already is taken."""
    size = input_size(model, job.size)
    ending = ENDINGS[job.engine]
    file, quantized = stem.with_name(f'{stem.name}{ending}'), stem.with_name(f'{stem.name} int8{ending}')
    if not file.exists():
        write_graph(model, file, job.engine, size, job.batch)
    if precision == 'float32':
        return file
    if not quantized.exists():
        if job.images is None:
            images = torch.randn(CALIBRATED, *size, generator=torch.Generator().manual_seed(0))
        else:
            images = read_photos(job.images, model, CALIBRATED, job.size)
        quantize(file, quantized, [batch for batch in images.split(job.batch) if len(batch) == job.batch])
    return quantized


def open_arm(
        job: Job,
        model: nn.Module,
        stem: Path,
        precision: str,
        image: torch.Tensor,
        threads: int,
) -> Callable[[], Any]:
    """Load an arm into its engine, ready to run on the image batch."""
    file = write_file(job, model, stem, precision) if job.engine in ENDINGS else None
    if job.engine == 'onnx':
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # threads of one arm that wait in a loop for work would take the cores of the next
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
        array = image.numpy()
        return lambda: session.run(None, {'image': array})
    if job.engine == 'openvino':
        import openvino
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(file), 'CPU', {
            'INFERENCE_NUM_THREADS': threads, 'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'})
        request, array = compiled.create_infer_request(), image.numpy()
        return lambda: request.infer([array], share_inputs=True, share_outputs=True)
    if job.engine == 'aoti':
        network = torch._inductor.aoti_load_package(str(file))
    else:
        model, image = model.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
        network = torch.compile(model) if job.engine == 'compile' else model

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return network(image)
    return call


def take_turns(calls: Dict[str, Callable[[], Any]], rounds: int) -> Dict[str, List[float]]:
    """Time calls in turns: seconds of one call, for each round."""
    repeats = {}
    for arm, call in calls.items():
        call()  # compiles, and lays weights out for the engine
        start = time.perf_counter()
        call()
        repeats[arm] = max(1, round(SECONDS / (time.perf_counter() - start)))
    times: Dict[str, List[float]] = {arm: [] for arm in calls}
    for i in range(rounds):
        for arm in list(calls)[::1 if i % 2 else -1]:
            calls[arm]()  # caches are another arm's, whose threads may still wait for work
            start = time.perf_counter()
            for _ in range(repeats[arm]):
                calls[arm]()
            times[arm].append((time.perf_counter() - start) / repeats[arm])
    return times


def read_rows(folder: Path) -> List[Row]:
    """Results of a folder, a row for each arm."""
    file = folder / 'results.csv'
    if not file.exists():
        return []
    with open(file, newline='') as f:
        return list(csv.DictReader(f))


def table(rows: List[Row]) -> str:
    """Tables for docs/export.md, one for each precision, batch and number of threads.

    Args:
        rows: Results.

    Returns:
        Markdown.
    """
    found = {tuple(row[name] for name in (*KEY, 'arm')): row for row in rows}
    text = ''
    groups = {(row['precision'], int(row['batch']), int(row['threads'])) for row in rows}
    for precision, batch, threads in sorted(groups, key=lambda group: (group[0], -group[1], -group[2])):
        setting = (precision, str(batch), str(threads))
        engines = [e for e in ENGINES if any((key[1], *key[2:5]) == (e, *setting) for key in found)]
        heads = [ENGINES[engine] for engine in engines]
        if precision == 'int8':
            heads += [f'{head}, float32 / int8' for head in heads]
        text += (f'\n{precision}, batch {batch}, {threads} thread{"s" if threads > 1 else ""}:\n\n'
                 f'| network | multiply-adds | {" | ".join(heads)} | fastest |\n'
                 f'| --- | --: |{" --: |" * len(heads)} --- |\n')
        for network in dict.fromkeys(key[0] for key in found if key[2:5] == setting):
            ours = {(e, arm): row for e in engines for arm in ARMS[2:]
                    if (row := found.get((network, e, *setting, arm))) is not None}
            cells = [' / '.join(f'{float(ours[e, arm]["to_plain"]):.2f}' for arm in ARMS[2:])
                     if (e, 'memory') in ours else '' for e in engines]
            if precision == 'int8':
                cells += [speedup(found.get((network, e, 'float32', *setting[1:], 'memory')), ours.get((e, 'memory')))
                          for e in engines]
            best = min(ours.values(), key=lambda row: float(row['ms']))
            text += (f'| `{network}` | {float(best["arithmetic"]):.2f} | {" | ".join(cells)} | '
                     f'{ENGINES[best["engine"]]}, {best["arm"]}: {float(best["ms"]):.1f} ms |\n')
    return text


def speedup(before: Optional[Row], after: Optional[Row]) -> str:
    """How many times as long the first of two arms takes."""
    return f'{float(before["ms"]) / float(after["ms"]):.2f}' if before and after else ''


def docs_tables(folder: Path, picture: Path) -> str:
    """What docs/export.md shows of a folder of results; draws its picture too.

    Args:
        folder: Folder of results.csv and settings.json.
        picture: Picture to draw, beside the page.

    Returns:
        Markdown.
    """
    rows = read_rows(folder)
    if not rows:
        return 'Not measured yet.\n'
    draw(rows, picture)
    settings = json.loads((folder / 'settings.json').read_text())
    rounds = ' or '.join(sorted({r['rounds'] for r in rows}, key=int))
    versions = ', '.join(f'{name} {value}' for name, value in settings.items())
    return (
        f'Time of a network with memory as a ratio to its plain trunk: as it is, after `fuse()`, and after '
        f'`fuse(trunk=True)`. Medians of {rounds} rounds; `benchmarks/results/{folder.name}` '
        f'has quartiles, milliseconds and the ratios to the trunk folded. *Fastest* is with memory. {versions}.\n\n'
        f'![Time against multiply-adds in each engine]({picture.name})\n{table(rows)}')


def draw(rows: List[Row], file: Path) -> None:
    """Draw time against arithmetic, a panel for each engine and precision.

    Batch and number of threads are those at which most networks were measured.

    Args:
        rows: Results.
        file: Picture to write.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    [((batch, threads), _)] = Counter((r['batch'], r['threads']) for r in rows).most_common(1)
    rows = [r for r in rows if (r['batch'], r['threads']) == (batch, threads)]
    panels = [(e, p) for e in ENGINES for p in ('float32', 'int8')
              if any((r['engine'], r['precision']) == (e, p) for r in rows)]
    width = min(3, len(panels))
    height = -(-len(panels) // width)
    figure, grid = plt.subplots(
        height, width, figsize=(3.4 * width, 3.1 * height + 0.6), sharex=True, sharey=True, squeeze=False,
        layout='constrained')
    limit = max(float(r['arithmetic']) for r in rows) * 1.03
    for axes, (engine, precision) in zip(grid.flat, panels):
        shown = [r for r in rows if (r['engine'], r['precision']) == (engine, precision)]
        for arm, marker in zip(ARMS[2:], 'osD'):
            of_arm = [r for r in shown if r['arm'] == arm]
            axes.plot([float(r['arithmetic']) for r in of_arm], [float(r['to_plain']) for r in of_arm], marker,
                      alpha=0.7, label=arm)
        axes.plot([1, limit], [1, limit], 'k-', linewidth=1, label='its arithmetic')
        axes.set_title(f'{ENGINES[engine]}{", int8" if precision == "int8" else ""}')
    for axes in grid.flat[len(panels):]:
        axes.axis('off')
    figure.supylabel('time, ratio to the plain trunk')
    cores = f'{threads} thread{"" if threads == "1" else "s"}'
    figure.suptitle(f'Batch {batch}, {cores}; across: multiply-adds, ratio to the plain trunk')
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def setting() -> Dict[str, Any]:
    """What results depend on beside the columns of their rows."""
    versions = {name: importlib.metadata.version(name) for name in ('onnxruntime', 'openvino', 'nncf')}
    return dict(machine=cpu_name(), torch=torch.__version__, timm=timm.__version__, mlfm_zoo=mlfm_zoo.__version__,
                **versions)


def main() -> None:
    everything = timm.list_models('mlfm_*', exclude_filters='mlfm_filtered')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, required=True, help='folder of results.csv and settings.json')
    parser.add_argument('--networks', nargs='+', default=everything, metavar='NAME', help='networks (default: all 34)')
    parser.add_argument('--engines', nargs='+', default=['eager', 'onnx', 'openvino'], choices=ENGINES)
    parser.add_argument('--precisions', nargs='+', default=['float32', 'int8'], choices=['float32', 'int8'])
    parser.add_argument('--batches', nargs='+', type=int, default=[8, 1], metavar='N')
    parser.add_argument('--threads', nargs='+', type=int, default=[2, 1], metavar='N')
    parser.add_argument('--size', type=int, help="image size in pixels, instead of each network's own")
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--images', metavar='FOLDER', help='photographs to calibrate int8 on (default: random images)')
    args = parser.parse_args()
    if args.rounds < 6:
        parser.error('quartiles of fewer than 6 rounds say little')
    args.output.mkdir(parents=True, exist_ok=True)
    settings = args.output / 'settings.json'
    if settings.exists() and json.loads(settings.read_text()) != setting():
        sys.exit(f'{settings} is of another machine or of other versions, expected {setting()}: name another folder.')
    settings.write_text(json.dumps(setting(), indent=1) + '\n')
    os.environ.update(KEEP_MEMORY)  # for the processes that measure
    done: Set[Tuple[str, ...]] = {tuple(r[column] for column in KEY) for r in read_rows(args.output)}
    context = multiprocessing.get_context('spawn')
    for name in args.networks:
        start = time.perf_counter()
        for engine, batch in itertools.product(args.engines, args.batches):
            cells = tuple(
                (precision, threads) for precision in args.precisions for threads in args.threads
                if (precision == 'float32' or engine in HAVE_INT8)
                and (name, engine, precision, str(batch), str(threads)) not in done)
            if not cells:
                continue
            with context.Pool(1) as pool:
                rows = pool.apply(measure, (Job(name, engine, batch, args.size, cells, args.rounds, args.images),))
            append(args.output / 'results.csv', rows)
            for precision, threads in cells:
                found = [f'{r["arm"]} {r["ms"]:.1f} ms x{float(r["to_plain"]):.2f}' for r in rows
                         if (r['precision'], r['threads']) == (precision, threads)]
                print(f'{name}, {engine} {precision}, batch {batch}, {threads} threads: {", ".join(found)}', flush=True)
        print(f'{name}: {time.perf_counter() - start:.0f} s', flush=True)


def append(file: Path, rows: List[Row]) -> None:
    """Add rows to a file of results in one write."""
    with open(file, 'a', newline='') as f:
        writer = csv.DictWriter(f, COLUMNS)
        if not f.tell():
            writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
