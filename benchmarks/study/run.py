"""Train a plan's networks with timm's train.py, and measure them on test images.

    python benchmarks/study/run.py PLAN --data DATA --timm FOLDER --output FOLDER [--shard 1/8]

PLAN is a YAML file, as README.md describes; DATA a folder with a folder of pictures a class for each split; --timm the
folder with the train.py of timm's repository. Runs go seed by seed, so that an unfinished study is balanced.

Stop it whenever you like, and give the same command to resume: finished runs are not run again, and the one that was
stopped resumes from its last epoch. --shard i/n takes the i-th of n parts of the runs, and any number of processes can
share the same folders. Checkpoints and logs are in --output, a folder for each run. When a run ends, its figures are
written to --results, benchmarks/results/study/<plan> by default, which report.py reads:

    runs.csv     a line for each run: arguments, cost, best and last epoch, time
    curves/      a file for each run: loss, accuracy and rate by epoch
    images.csv   which test images the best and the last epoch get right, one bit an image, in the order of their names
    lowpass.csv  accuracy of the last epoch on low-pass filtered test images
    sizes.csv    accuracy of the last epoch on test images of other sizes
"""

import argparse
import contextlib
import csv
import fcntl
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from plan import Job, Plan, read_plan, share
from timm.models import load_state_dict

import mlfm_zoo
from mlfm_zoo._files import written_whole
from mlfm_zoo.frequency import FrequencyFilter, Probe
from mlfm_zoo.frequency.tables import write_table
from mlfm_zoo.workflow.collect import Epoch, Run, RunError, read_run
from mlfm_zoo_cli.launch import KEEP_MEMORY

RESULTS = Path(__file__).parents[1] / 'results' / 'study'
RUN_COLUMNS = (
    'network', 'arm', 'seed', 'model', 'kwargs', 'settings', 'params', 'madds', 'best_epoch', 'best_top1', 'epochs',
    'last_top1', 'seconds', 'cpu_seconds', 'test_images', 'device', 'threads', 'mlfm_zoo', 'torch', 'timm')
CURVE_COLUMNS = ('epoch', 'train_loss', 'eval_loss', 'eval_top1', 'lr')
PREPARATION = ('crop_pct', 'mean', 'std', 'interpolation')  # settings that change how test images are prepared
TOLERANCE = 0.5  # points between train.py's accuracy and the one measured here: rounding, more in half precision


class PlanError(ValueError):
    """A plan cannot be carried out."""


class Figures(NamedTuple):
    """What a finished run gets right."""
    right: Dict[str, np.ndarray]  # for 'last' and 'best', whether each test image is answered right
    lowpass: Dict[float, float]  # accuracy of the last epoch in percent by radius
    sizes: Dict[int, float]  # and by image size


def check_timm(folder: Path) -> None:
    """Refuse a timm of another version beside train.py, which would import it."""
    file = folder / 'timm' / 'version.py'
    found = re.search(r"__version__ = '(.+)'", file.read_text(encoding='utf-8')) if file.exists() else None
    if found and found[1] != timm.__version__:
        raise PlanError(
            f'{folder} holds timm {found[1]} beside train.py, expected the installed {timm.__version__}: put train.py '
            'into a folder of its own, or check out that version.')


@contextlib.contextmanager
def held(lock: Path, wait: bool = False) -> Iterator[Optional[int]]:
    """Hold a lock against other processes, also on machines that share the folder.

    Yields the lock's file descriptor: a child process that inherits it holds the lock too. Yields None if another
    process holds the lock, unless this one waits for it.
    """
    with open(lock, 'ab') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def option(name: str, value: Any) -> List[str]:
    """An argument of train.py as it stands on a command line."""
    values = [f'{k}={v}' for k, v in value.items()] if isinstance(value, dict) else value
    values = values if isinstance(values, list) else [] if values is True else [values]
    return [] if value is False else [f'--{name.replace("_", "-")}', *map(str, values)]


def training_command(job: Job, args: argparse.Namespace) -> List[str]:
    """The command that trains, without --resume."""
    given = dict(
        data_dir=args.data, model=job.model, seed=job.seed, output=args.output, experiment=job.name, **job.settings)
    if job.kwargs:
        given['model_kwargs'] = job.kwargs
    options = [part for name, value in given.items() for part in option(name, value)]
    return [sys.executable, '-m', 'mlfm_zoo', 'run', str(args.timm / 'train.py'), *options]


def read_curve(folder: Path) -> List[Dict[str, str]]:
    """The lines of train.py's summary.csv, one for each epoch.

    A resumed train.py may write the header again, and an epoch twice; a killed one may write half a line.
    """
    rows = {
        int(row['epoch']): row for row in read_rows(folder / 'summary.csv')
        if None not in row.values() and row['epoch'].isdigit()}
    return [rows[epoch] for epoch in sorted(rows)]


def train(job: Job, args: argparse.Namespace, lock: int) -> Run:
    """Train, or resume a training that was stopped; train.py inherits the lock, should this process be killed."""
    folder = args.output / job.name
    if (folder / 'args.yaml').exists() and read_json(folder / 'study.json') != job.record:
        raise PlanError(f'{folder} was run with other arguments than the plan has: name another output folder.')
    with contextlib.suppress(FileNotFoundError, RunError):  # neither begun nor finished
        return read_run(folder)
    write_json(folder / 'study.json', job.record)
    line = training_command(job, args)
    # train.py removes last.pth.tar a moment before it puts the new one there
    kept = sorted(folder.glob('checkpoint-*.pth.tar'), key=lambda path: path.stat().st_mtime, reverse=True)
    checkpoint = next((path for path in (folder / 'last.pth.tar', *kept) if path.exists()), None)
    if checkpoint:
        line += ['--resume', str(checkpoint)]
    else:
        (folder / 'summary.csv').unlink(missing_ok=True)  # of a run that was stopped before its first checkpoint
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
        process = subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock],
            env=dict(KEEP_MEMORY | os.environ, OMP_NUM_THREADS=str(args.threads)))
        try:
            epochs = follow(process, job, folder)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        raise PlanError(f'{job.name} ended with {process.returncode}: see {folder / "log.txt"}, then resume.')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if epochs:
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        write_json(folder / 'times.json', dict(read_json(folder / 'times.json'), cpu_seconds=round(cpu / epochs, 2)))
    return read_run(folder)


def follow(process: subprocess.Popen, job: Job, folder: Path) -> int:
    """Print each epoch and keep its seconds in times.json; returns how many epochs ended with the process."""
    begun = seen = len(read_curve(folder))
    times, last, running = read_json(folder / 'times.json'), time.time(), True
    while running:
        time.sleep(0.2)
        running = process.poll() is None  # asked before the curve is read, so that the last epoch is not missed
        curve = read_curve(folder)
        if len(curve) > seen:
            seconds, last = (time.time() - last) / (len(curve) - seen), time.time()
            if seen > begun:  # the first epoch includes the start of the process
                times.setdefault('seconds', []).append(round(seconds, 2))
                write_json(folder / 'times.json', times)
            seen = len(curve)
            print(f'{job.name}: epoch {seen} of {job.settings["epochs"]}, top-1 {float(curve[-1]["eval_top1"]):.2f} %, '
                  f'{seconds:.0f} s', flush=True)
    return seen - begun


@torch.inference_mode()
def examine(job: Job, run: Run, data: Path, plan: Plan) -> Figures:
    """Test a run on the test images: as they are, low-pass filtered, of other sizes."""
    epochs = {'last': run.last, 'best': run.best}
    if run.best.number == run.last.number:
        del epochs['best']
    images_of = data / job.settings['val_split']
    models = {which: load_model(job, epoch) for which, epoch in epochs.items()}

    def batches(size: int) -> Iterator[Tuple[Probe, torch.Tensor, torch.Tensor]]:
        probe = Probe(
            models, images_of, img_size=size, batch_size=100, num_workers=job.settings.get('workers', 0),
            device=job.settings.get('device', 'cuda'))
        for batch in probe.batches():
            if batch.skipped:
                raise PlanError(f'A test image cannot be decoded, {": ".join(batch.skipped[0])}: get the data again.')
            yield probe, batch.images[0], batch.labels

    right: Dict[str, List[np.ndarray]] = {which: [] for which in models}
    filters = {radius: FrequencyFilter('lowpass', radius) for radius in plan.radii}
    lowpass, sizes = dict.fromkeys(plan.radii, 0), dict.fromkeys(plan.sizes, 0)
    for probe, images, labels in batches(job.settings['img_size']):
        for which, model in probe.models.items():
            right[which].append((model(images).argmax(1) == labels).cpu().numpy())
        spectrum = torch.fft.rfft2(images)
        for radius, keep_low in filters.items():
            lowpass[radius] += int((probe.models['last'](keep_low(images, spectrum)).argmax(1) == labels).sum())
    for size in sizes:
        for probe, images, labels in batches(size):
            sizes[size] += int((probe.models['last'](images).argmax(1) == labels).sum())

    answers = {which: np.concatenate(parts) for which, parts in right.items()}
    for which, epoch in epochs.items():
        top1 = 100 * answers[which].mean()
        if abs(top1 - epoch.top1) > TOLERANCE:
            raise PlanError(
                f'{job.name} has {top1:.2f} % on {images_of}, but train.py reported {epoch.top1:.2f} %: give the data '
                f'that it was trained with, and {", ".join(PREPARATION)} in the plan if images are prepared otherwise.')
    percent = 100 / len(answers['last'])
    return Figures(
        {'last': answers['last'], 'best': answers.get('best', answers['last'])},
        {radius: percent * count for radius, count in lowpass.items()},
        {size: percent * count for size, count in sizes.items()})


def load_model(job: Job, epoch: Epoch) -> torch.nn.Module:
    """A run's network with an epoch's weights; averaged if train.py averaged them."""
    preparation = {name: job.settings[name] for name in PREPARATION if name in job.settings}
    model = timm.create_model(
        job.model, num_classes=job.settings['num_classes'], pretrained_cfg_overlay=preparation, **job.kwargs)
    model.load_state_dict(load_state_dict(str(epoch.checkpoint), weights_only=True))
    return model.to(memory_format=torch.channels_last)


def pack(right: np.ndarray) -> str:
    """One bit an image, the first the highest of its byte, as hexadecimal digits."""
    return np.packbits(right).tobytes().hex()


def write_json(path: Path, value: Dict[str, Any]) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(value), encoding='utf-8')


def read_json(path: Path) -> Dict[str, Any]:
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}


def read_rows(file: Path) -> List[Dict[str, str]]:
    if not file.exists():
        return []
    with open(file, newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))


def put(file: Path, plan: Plan, job: Job, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a run's rows into a table in place of its old ones, in the plan's order."""
    columns = ('network', 'arm', 'seed', *columns)
    all_rows = [[row[name] for name in columns] for row in read_rows(file)]
    all_rows = [row for row in all_rows if tuple(row[:3]) != job.key] + [[*job.key, *row] for row in rows]
    order = {other.key: i for i, other in enumerate(plan.jobs)}
    write_table(file, columns, sorted(all_rows, key=lambda row: order.get(tuple(row[:3]), len(order))))


def keep(job: Job, run: Run, figures: Figures, plan: Plan, args: argparse.Namespace) -> None:
    """Write a finished run's figures; its line in runs.csv comes last."""
    curve = read_curve(run.folder)
    columns = [name for name in CURVE_COLUMNS if name in curve[0]]
    times = read_json(run.folder / 'times.json')
    device = job.settings.get('device', 'cuda')
    row = dict(
        job.record, params=job.cost.params, madds=job.cost.madds, best_epoch=run.best.number,
        best_top1=f'{run.best.top1:.4f}', epochs=run.last.number + 1, last_top1=f'{run.last.top1:.4f}',
        seconds=f'{statistics.median(times["seconds"]):.2f}' if 'seconds' in times else '',
        cpu_seconds=times.get('cpu_seconds', ''), test_images=len(figures.right['last']),
        device='cpu' if device == 'cpu' else torch.cuda.get_device_name(), threads=args.threads,
        mlfm_zoo=mlfm_zoo.__version__, torch=torch.__version__, timm=timm.__version__)
    (args.results / 'curves').mkdir(parents=True, exist_ok=True)
    write_table(args.results / 'curves' / f'{job.name}.csv', columns, [[r[name] for name in columns] for r in curve])
    with held(args.results / '.lock', wait=True):  # two processes that read and write a table would lose lines
        put(args.results / 'images.csv', plan, job, ('epoch', 'images', 'right'), [
            (which, len(figures.right[which]), pack(figures.right[which])) for which in ('best', 'last')])
        put(args.results / 'lowpass.csv', plan, job, ('radius', 'top1'), [
            (f'{radius:g}', f'{top1:.2f}') for radius, top1 in figures.lowpass.items()])
        if plan.sizes:
            put(args.results / 'sizes.csv', plan, job, ('size', 'top1'), [
                (size, f'{top1:.2f}') for size, top1 in figures.sizes.items()])
        put(args.results / 'runs.csv', plan, job, RUN_COLUMNS[3:], [[row[name] for name in RUN_COLUMNS[3:]]])


def missing(jobs: Sequence[Job], results: Path) -> List[Job]:
    """The runs that are not in runs.csv; a PlanError if one was made with other arguments."""
    rows = {(row['network'], row['arm'], row['seed']): row for row in read_rows(results / 'runs.csv')}
    for job in jobs:
        row = rows.get(job.key)
        if row and {name: row[name] for name in job.record} != job.record:
            raise PlanError(f'{job.name} in {results} was run with other arguments: name another folder for results.')
    return [job for job in jobs if job.key not in rows]


def run_jobs(jobs: Sequence[Job], plan: Plan, args: argparse.Namespace) -> List[str]:
    """Train and measure runs, past failures; returns a sentence for each that is not finished."""
    left = []
    for number, job in enumerate(jobs, 1):
        folder = args.output / job.name
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / 'lock') as lock:
            if lock is None:
                left.append(f'Another process works in {folder}.')
            elif missing([job], args.results):  # not finished by another process in the meantime
                print(f'[{number}/{len(jobs)}] {job.name}', flush=True)
                try:
                    run = train(job, args, lock)
                    keep(job, run, examine(job, run, args.data, plan), plan, args)
                except (PlanError, RunError, FileNotFoundError) as error:
                    left.append(str(error))
                else:
                    print(f'[{number}/{len(jobs)}] {job.name}: best {run.best.top1:.2f} %, last {run.last.top1:.2f} %',
                          flush=True)
    return left


def describe(jobs: Sequence[Job], images: Optional[int]) -> Iterator[str]:
    """Report what each arm costs and, given the number of images, estimate the hours."""
    seen = set()
    for job in jobs:
        if (job.network, job.arm) not in seen:
            seen.add((job.network, job.arm))
            hours = f', about {job.estimate_hours(images):.1f} hours a run' if images else ''
            yield (f'{job.network} {job.arm}: {job.model} {job.kwargs}, {job.cost.madds / 1e6:.2f} M multiply-adds, '
                   f'{job.cost.params / 1e6:.2f} M parameters{hours}')
    if images:
        hours = sum(job.estimate_hours(images) for job in jobs)
        yield (f'An estimate, not a measurement: {hours:,.0f} hours for {len(jobs)} runs of {images:,} training images '
               'on one RTX 3090 in mixed precision. It is computed from multiply-adds and activations, by rates that '
               'fit the training speeds that timm has published. RegNets may take twice as long; validation and slow '
               'disks come on top.')


def parse_shard(text: str) -> Tuple[int, int]:
    """Read i/n, both from 1."""
    number, _, of = text.partition('/')
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f'{text!r} is no part, expected i/n with i from 1 to n, like 1/8')
    return int(number), int(of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', type=Path, help='YAML file')
    parser.add_argument('--data', type=Path, help='folder of the data, with a folder for each split')
    parser.add_argument('--timm', type=Path, help="folder of timm's train.py")
    parser.add_argument('--output', type=Path, help='folder for checkpoints and logs')
    parser.add_argument('--results', type=Path, help='folder for figures (default: benchmarks/results/study/<plan>)')
    parser.add_argument('--shard', type=parse_shard, default=(1, 1), metavar='I/N',
                        help='run the I-th of N parts of the plan, with about the same work in each')
    parser.add_argument('--threads', type=int, default=1, help='threads that compute, beside those that read images')
    parser.add_argument('--list', action='store_true', help='print the arms and how much is done, and run nothing')
    parser.add_argument('--estimate', type=int, metavar='IMAGES',
                        help='estimate the GPU hours for that many training images, and run nothing')
    args = parser.parse_args()
    args.results = args.results or RESULTS / args.plan.stem
    try:
        plan = read_plan(args.plan)
        jobs = share(plan.jobs, *args.shard)
        todo = missing(jobs, args.results)
        print(*describe(jobs, args.estimate), f'{len(jobs) - len(todo)} of {len(jobs)} runs are finished', sep='\n',
              flush=True)
        if args.list or args.estimate:
            return
        if not (args.data and args.timm and args.output):
            parser.error('runs need --data, --timm and --output')
        for path in (args.timm / 'train.py', *(args.data / job.settings['val_split'] for job in jobs)):
            if not path.exists():
                raise PlanError(f"There is no {path}: give the folders of timm's train.py and of the data.")
        check_timm(args.timm)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit('Stopped: give the same command to resume.'))
        torch.set_num_threads(args.threads)
        left = run_jobs(todo, plan, args)
    except KeyboardInterrupt:
        sys.exit('Stopped: give the same command to resume.')
    except (PlanError, FileNotFoundError) as error:
        sys.exit(str(error))
    if left:
        sys.exit('\n'.join([*left, 'Not all runs are finished: give the same command to resume.']))


if __name__ == '__main__':
    main()
