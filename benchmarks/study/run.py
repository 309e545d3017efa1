"""Train the networks of a plan with and without memory, by timm's own train.py, and measure them on the test images.

    python benchmarks/study/run.py PLAN --data CIFAR10 --timm FOLDER --output FOLDER [--results FOLDER] [--threads 1]

PLAN is a YAML file as cifar10-cpu.yaml, CIFAR10 a folder with a folder of pictures a class for each split, --timm the
folder with the train.py of timm's repository. Each arm of each network is trained with each seed, seed by seed, so
that a study that is not finished is balanced. What the arms of a network share are all settings of train.py.

Stop it whenever you like, and give the same command to go on: finished runs are not run again, and the one that was
stopped goes on from its last epoch. Checkpoints and logs lie in --output. As each run ends its figures go to --results,
benchmarks/results/study/<plan> if not given, which report.py reads:

    runs.csv     a line a run: arguments, cost, best and last epoch, time
    curves/      a file a run: loss, accuracy and rate by epoch
    images.csv   which test images the best and the last epoch get right, a bit an image, in the order of their names
    lowpass.csv  accuracy of the last epoch on low-pass filtered test images
    sizes.csv    accuracy of the last epoch on test images of other sizes
"""

import argparse
import bisect
import csv
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import timm
import torch
import yaml
from timm.models import load_state_dict

import mlfm_zoo
from mlfm_zoo.frequency import FrequencyFilter, Probe
from mlfm_zoo.frequency.tables import write_table
from mlfm_zoo.workflow.collect import Run, RunError, read_run
from mlfm_zoo.workflow.cost import Cost, count_cost
from mlfm_zoo.workflow.launch import KEEP_MEMORY

RESULTS = Path(__file__).parents[1] / 'results' / 'study'
RUN_COLUMNS = (
    'network', 'arm', 'seed', 'model', 'kwargs', 'settings', 'params', 'madds', 'best_epoch', 'best_top1', 'epochs',
    'last_top1', 'seconds', 'cpu_seconds', 'test_images', 'device', 'threads', 'mlfm_zoo', 'torch', 'timm')
CURVE_COLUMNS = ('epoch', 'train_loss', 'eval_loss', 'eval_top1', 'lr')
NEEDED = ('epochs', 'num_classes', 'img_size', 'val_split')  # settings that this script reads too
OWN = ('model', 'model_kwargs', 'data_dir', 'seed', 'output', 'experiment', 'resume')  # and those that it gives
PREPARATION = ('crop_pct', 'mean', 'std', 'interpolation')  # of test images, where settings differ from the network's
TOLERANCE = 0.5  # points between train.py's accuracy and that of the answers here: rounding, more in half precision


class PlanError(ValueError):
    """A plan cannot be read, or cannot be carried out."""


class Job(NamedTuple):
    """One run of a plan.

    Attributes:
        network: Name of the network in the plan.
        arm: Name of the arm.
        seed: Seed of the run.
        model: Registered name.
        kwargs: Arguments of the network.
        settings: Arguments of train.py beside the network, the seed and places.
        cost: Cost of the network for one image.
    """
    network: str
    arm: str
    seed: int
    model: str
    kwargs: Dict[str, Any]
    settings: Dict[str, Any]
    cost: Cost

    @property
    def name(self) -> str:
        return f'{self.network}-{self.arm}-seed{self.seed}'

    @property
    def key(self) -> Tuple[str, str, str]:
        return self.network, self.arm, str(self.seed)

    @property
    def record(self) -> Dict[str, str]:
        """What makes a run the one that the plan means."""
        return dict(
            model=self.model, kwargs=json.dumps(self.kwargs), settings=json.dumps(self.settings, sort_keys=True))


class Tests(NamedTuple):
    """What each finished run is tested on beside the test images as they are.

    Attributes:
        radii: Radii of the low-pass filters, in cycles per image.
        sizes: Other sizes of the test images, in pixels.
    """
    radii: List[float]
    sizes: List[int]


def read_plan(path: Path) -> Tuple[List[Job], Tests]:
    """Read a plan, and search the widths that it leaves open.

    Args:
        path: YAML file.

    Returns:
        The runs in their order, and what each is tested on.

    Raises:
        PlanError: The file is no plan.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f'{path} cannot be read as a plan ({type(error).__name__}): give a YAML file.') from None
    keys = {'settings': dict, 'seeds': list, 'radii': list, 'networks': dict}
    sizes = plan.pop('sizes', []) if isinstance(plan, dict) else None
    if not isinstance(sizes, list) or {k: type(v) for k, v in plan.items()} != keys:
        raise PlanError(f'{path} is no plan, expected {", ".join(keys)}: see benchmarks/study/README.md.')
    arms: List[Tuple[str, str, str, Dict[str, Any], Dict[str, Any], Cost]] = []
    for network, entry in plan['networks'].items():
        if not isinstance(entry, dict) or not {'model', 'arms'} <= {*entry} <= {'model', 'kwargs', 'arms', 'settings'}:
            raise PlanError(f'{network} in {path} is not described, expected model and arms, and kwargs and settings.')
        settings = {**plan['settings'], **(entry.get('settings') or {})}
        missing, own = [k for k in NEEDED if k not in settings], [k for k in OWN if k in settings]
        if missing or own:
            raise PlanError(
                f'The settings of {network} in {path} lack {missing} and have {own}, which the runs are given by '
                'themselves: add the former, remove the latter.')
        found: Dict[str, Cost] = {}
        for arm, own_kwargs in entry['arms'].items():
            kwargs = {**(entry.get('kwargs') or {}), **(own_kwargs or {})}
            for name, value in kwargs.items():
                if isinstance(value, dict):
                    if {*value} != {'match', 'start'} or value['match'] not in found:
                        raise PlanError(
                            f'{name} of {network} {arm} in {path} is {value}, expected match, an arm above it, and '
                            'start, the width to begin with.')
                    kwargs[name] = match_width(entry['model'], kwargs, name, settings, found[value['match']].madds)
            found[arm] = cost_for(entry['model'], kwargs, settings)
            arms.append((network, arm, entry['model'], kwargs, settings, found[arm]))
    jobs = [Job(network, arm, seed, *rest) for seed in plan['seeds'] for network, arm, *rest in arms]
    return jobs, Tests(sorted(float(radius) for radius in plan['radii']), sorted(sizes))


def cost_for(model: str, kwargs: Dict[str, Any], settings: Dict[str, Any]) -> Cost:
    size = settings['img_size']
    return count_cost(model, (3, size, size), num_classes=settings['num_classes'], **kwargs)


def match_width(model: str, kwargs: Dict[str, Any], name: str, settings: Dict[str, Any], madds: int) -> Any:
    """The width of a network whose multiply-adds come nearest to a number, in steps of one percent from its start.

    A list of widths grows as a whole, rounded to whole channels, as a single whole number is. Networks round further,
    so that the steps in multiply-adds are those that the network can take; they never go down.
    """
    start = kwargs[name]['start']

    def width(step: int) -> Any:
        if isinstance(start, list):
            return [round(channels * step / 100) for channels in start]
        return round(start * step / 100, None if isinstance(start, int) else 4)

    def count(step: int) -> int:
        return cost_for(model, {**kwargs, name: width(step)}, settings).madds

    steps = range(100, 401)
    above = bisect.bisect_left(steps, madds, key=count)
    return width(min(steps[max(above - 1, 0):above + 1], key=lambda step: abs(count(step) - madds)))


def check_timm(folder: Path) -> None:
    """Refuse a timm beside train.py, which train.py would import, that is not of the version this process has."""
    file = folder / 'timm' / 'version.py'
    found = re.search(r"__version__ = '(.+)'", file.read_text(encoding='utf-8')) if file.exists() else None
    if found and found[1] != timm.__version__:
        raise PlanError(
            f'{folder} holds timm {found[1]} beside train.py, expected the installed {timm.__version__}: put train.py '
            'into a folder of its own, or check out that version.')


def command(job: Job, args: argparse.Namespace) -> List[str]:
    """The command that trains, but for --resume."""
    line = [
        sys.executable, '-m', 'mlfm_zoo', 'run', str(args.timm / 'train.py'), '--data-dir', str(args.data), '--model',
        job.model, '--seed', str(job.seed), '--output', str(args.output), '--experiment', job.name]
    for name, value in job.settings.items():
        if value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            line += [f'--{name.replace("_", "-")}', *map(str, values)]
    if job.kwargs:
        line += ['--model-kwargs', *(f'{name}={value}' for name, value in job.kwargs.items())]
    return line


def read_curve(folder: Path) -> List[Dict[str, str]]:
    """A line an epoch. A resumed train.py may write the header again, and an epoch once more; a killed one half a line.
    """
    rows: Dict[int, Dict[str, str]] = {}
    if (folder / 'summary.csv').exists():
        with open(folder / 'summary.csv', newline='', encoding='utf-8') as f:
            for row in csv.DictReader(f):
                if None not in row.values() and row['epoch'].isdigit():
                    rows[int(row['epoch'])] = row
    return [rows[epoch] for epoch in sorted(rows)]


def train(job: Job, args: argparse.Namespace, lock: int) -> Run:
    """Train, or go on where it was stopped.

    Args:
        job: The run.
        args: Arguments of this script.
        lock: File descriptor of the lock, which the process that trains keeps held if this one dies.

    Returns:
        The finished run.
    """
    folder = args.output / job.name
    said, times_file = folder / 'study.json', folder / 'times.json'
    if folder.is_dir() and any(folder.iterdir()) and read_json(said) != job.record:
        raise PlanError(f'{folder} is no run with the arguments that the plan has: name another output folder.')
    try:
        return read_run(folder)
    except (FileNotFoundError, RunError):
        pass  # not begun or not finished; what is wrong otherwise is said at the end
    # train.py takes the old file away a moment before the new one is in its place
    kept = sorted(folder.glob('checkpoint-*.pth.tar'), key=lambda path: path.stat().st_mtime)
    checkpoint = next((path for path in (folder / 'last.pth.tar', *kept[::-1]) if path.exists()), None)
    line = command(job, args)
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)  # stopped in its first epoch
        folder.mkdir(parents=True)
        write_text(said, json.dumps(job.record))
    else:
        line += ['--resume', str(checkpoint)]
    begun = seen = len(read_curve(folder))
    times = read_json(times_file)
    before, last = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
        process = subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock],
            env=dict(KEEP_MEMORY | os.environ, OMP_NUM_THREADS=str(args.threads)))
        try:
            while True:
                ended = process.poll() is not None
                curve = read_curve(folder)
                if len(curve) > seen:
                    seconds, last = (time.time() - last) / (len(curve) - seen), time.time()
                    if seen > begun:  # the first has the start of the process in it
                        times.setdefault('seconds', []).append(round(seconds, 2))
                        write_text(times_file, json.dumps(times))
                    print(f'{job.name}: epoch {len(curve)} of {job.settings["epochs"]}, top-1 '
                          f'{float(curve[-1]["eval_top1"]):.2f} %, {seconds:.0f} s', flush=True)
                    seen = len(curve)
                if ended:
                    break
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise PlanError(f'{job.name} ended with {process.returncode}: see {folder / "log.txt"}, mend it, go on.')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if seen > begun:
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        write_text(times_file, json.dumps(dict(times, cpu_seconds=round(cpu / (seen - begun), 2))))
    return read_run(folder)


@torch.inference_mode()
def examine(job: Job, run: Run, args: argparse.Namespace, tests: Tests) -> Tuple[
        Dict[str, np.ndarray], Dict[float, float], Dict[int, float]]:
    """Answers on the test images.

    Args:
        job: The run.
        run: Its outputs.
        args: Arguments of this script.
        tests: What it is tested on beside the images as they are.

    Returns:
        For 'best' and 'last' whether each image is answered right, and the last epoch's accuracy in percent by radius
        and by size.
    """
    epochs = {'last': run.last, 'best': run.best}
    if run.best.number == run.last.number:
        del epochs['best']
    models = {}
    for which, epoch in epochs.items():
        overlay = {k: job.settings[k] for k in PREPARATION if k in job.settings}
        models[which] = timm.create_model(
            job.model, num_classes=job.settings['num_classes'], pretrained_cfg_overlay=overlay, **job.kwargs)
        models[which].load_state_dict(load_state_dict(str(epoch.checkpoint), weights_only=True))
        models[which].to(memory_format=torch.channels_last)
    def batches(size: int) -> Iterator[Tuple[Probe, torch.Tensor, torch.Tensor]]:
        probe = Probe(
            models, args.data / job.settings['val_split'], img_size=size, batch_size=100,
            num_workers=job.settings.get('workers', 0), device=job.settings.get('device', 'cuda'))
        for batch in probe.batches():
            if batch.skipped:
                raise PlanError(f'{batch.skipped[0][0]} of the test images cannot be decoded: get the data again.')
            [images] = batch.images
            yield probe, images, batch.labels

    filters = {radius: FrequencyFilter('lowpass', radius) for radius in tests.radii}
    right: Dict[str, List[np.ndarray]] = {which: [] for which in models}
    filtered = dict.fromkeys(tests.radii, 0)
    for probe, images, labels in batches(job.settings['img_size']):
        for which, model in probe.models.items():
            right[which].append((model(images).argmax(1) == labels).cpu().numpy())
        spectrum = torch.fft.rfft2(images)
        for radius, lowpass in filters.items():
            answers = probe.models['last'](lowpass(images, spectrum)).argmax(1)
            filtered[radius] += int((answers == labels).sum())
    resized = dict.fromkeys(tests.sizes, 0)
    for size in tests.sizes:
        for probe, images, labels in batches(size):
            resized[size] += int((probe.models['last'](images).argmax(1) == labels).sum())
    bits = {which: np.concatenate(parts) for which, parts in right.items()}
    for which, epoch in epochs.items():
        top1 = 100 * bits[which].mean()
        if abs(top1 - epoch.top1) > TOLERANCE:
            raise PlanError(
                f'{job.name} has {top1:.2f} % on {args.data / job.settings["val_split"]} and train.py says '
                f'{epoch.top1:.2f} %: give the data that it was trained with, and {", ".join(PREPARATION)} in the plan '
                'where images are prepared in another way.')
    bits.setdefault('best', bits['last'])
    lowpass, sizes = (
        {key: 100 * count / len(bits['last']) for key, count in counts.items()} for counts in (filtered, resized))
    return bits, lowpass, sizes


def pack(right: np.ndarray) -> str:
    """One bit an image, the first the highest of its byte, as hexadecimal digits."""
    return np.packbits(right).tobytes().hex()


def write_text(path: Path, text: str) -> None:
    unfinished = path.with_suffix('.tmp')
    unfinished.write_text(text, encoding='utf-8')
    unfinished.replace(path)


def read_json(path: Path) -> Dict[str, Any]:
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}


def read_rows(file: Path) -> List[Dict[str, str]]:
    if not file.exists():
        return []
    with open(file, newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))


def put(file: Path, columns: Sequence[str], job: Job, rows: Sequence[Sequence[Any]]) -> None:
    """Write the rows of a run, which follow its network, arm and seed, in place of those that are there."""
    others = [list(row.values()) for row in read_rows(file) if (row['network'], row['arm'], row['seed']) != job.key]
    write_table(file, ('network', 'arm', 'seed', *columns), [*others, *([*job.key, *row] for row in rows)])


def keep(job: Job, run: Run, args: argparse.Namespace, tests: Tests) -> None:
    """Measure a finished run, and write its figures; runs.csv comes last and says that they are whole."""
    bits, lowpass, sizes = examine(job, run, args, tests)
    curve = read_curve(run.folder)
    columns = [name for name in CURVE_COLUMNS if name in curve[0]]
    (args.results / 'curves').mkdir(parents=True, exist_ok=True)
    write_table(
        args.results / 'curves' / f'{job.name}.csv', columns, [[row[name] for name in columns] for row in curve])
    put(args.results / 'images.csv', ('epoch', 'images', 'right'), job, [
        (which, len(bits[which]), pack(bits[which])) for which in ('best', 'last')])
    put(args.results / 'lowpass.csv', ('radius', 'top1'), job, [
        (f'{radius:g}', f'{top1:.2f}') for radius, top1 in lowpass.items()])
    if sizes:
        put(args.results / 'sizes.csv', ('size', 'top1'), job, [
            (str(size), f'{top1:.2f}') for size, top1 in sizes.items()])
    times = read_json(run.folder / 'times.json')
    seconds = f'{statistics.median(times["seconds"]):.2f}' if 'seconds' in times else ''
    device = job.settings.get('device', 'cuda')
    row = dict(
        job.record, params=job.cost.params, madds=job.cost.madds, best_epoch=run.best.number,
        best_top1=f'{run.best.top1:.4f}', epochs=run.last.number + 1, last_top1=f'{run.last.top1:.4f}',
        seconds=seconds, cpu_seconds=times.get('cpu_seconds', ''), test_images=len(bits['last']),
        device='cpu' if device == 'cpu' else torch.cuda.get_device_name(), threads=args.threads,
        mlfm_zoo=mlfm_zoo.__version__, torch=torch.__version__, timm=timm.__version__)
    put(args.results / 'runs.csv', RUN_COLUMNS[3:], job, [[row[name] for name in RUN_COLUMNS[3:]]])


def missing(jobs: Sequence[Job], results: Path) -> List[Job]:
    """The runs that are not finished.

    Args:
        jobs: The runs of the plan.
        results: Folder of results.

    Returns:
        Those that are not in runs.csv.

    Raises:
        PlanError: One was made with other arguments.
    """
    rows = {(row['network'], row['arm'], row['seed']): row for row in read_rows(results / 'runs.csv')}
    for job in jobs:
        row = rows.get(job.key)
        if row and {name: row[name] for name in job.record} != job.record:
            raise PlanError(f'{job.name} in {results} was run with other arguments: name another folder for results.')
    return [job for job in jobs if job.key not in rows]


def describe(jobs: Sequence[Job]) -> Iterator[str]:
    """Say what each arm costs."""
    for job in jobs:
        if job.seed == jobs[0].seed:
            yield (f'{job.network} {job.arm}: {job.model} {job.kwargs}, {job.cost.madds / 1e6:.2f} M multiply-adds, '
                   f'{job.cost.params / 1e6:.2f} M parameters')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', type=Path, help='YAML file')
    parser.add_argument('--data', type=Path, help='folder of the data, with a folder for each split')
    parser.add_argument('--timm', type=Path, help="folder of timm's train.py")
    parser.add_argument('--output', type=Path, help='folder for checkpoints and logs')
    parser.add_argument('--results', type=Path, help='folder for figures, benchmarks/results/study/<plan> if not given')
    parser.add_argument('--threads', type=int, default=1, help='threads that compute, beside those that read images')
    parser.add_argument('--list', action='store_true', help='print the arms and how much is done, and run nothing')
    args = parser.parse_args()
    args.results = args.results or RESULTS / args.plan.stem
    try:
        jobs, tests = read_plan(args.plan)
        todo = missing(jobs, args.results)
        if args.list:
            print(*describe(jobs), f'{len(jobs) - len(todo)} of {len(jobs)} runs are finished', sep='\n')
            return
        if not (args.data and args.timm and args.output):
            parser.error('runs need --data, --timm and --output')
        for path in (args.timm / 'train.py', *(args.data / job.settings['val_split'] for job in jobs)):
            if not path.exists():
                raise PlanError(f"There is no {path}: give the folders of timm's train.py and of the data.")
        check_timm(args.timm)
        args.output.mkdir(parents=True, exist_ok=True)
        lock = os.open(args.output / 'lock', os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PlanError(f'Another process works in {args.output}: wait for it, or end it.') from None
        signal.signal(signal.SIGTERM, lambda *_: sys.exit('Stopped: give the same command to go on.'))
        torch.set_num_threads(args.threads)
        print(*describe(jobs), sep='\n', flush=True)
        for job in todo:
            number = jobs.index(job) + 1
            print(f'[{number}/{len(jobs)}] {job.name}', flush=True)
            run = train(job, args, lock)
            keep(job, run, args, tests)
            print(f'[{number}/{len(jobs)}] {job.name}: best {run.best.top1:.2f} %, last {run.last.top1:.2f} %',
                  flush=True)
    except KeyboardInterrupt:
        sys.exit('Stopped: give the same command to go on.')
    except (PlanError, RunError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
