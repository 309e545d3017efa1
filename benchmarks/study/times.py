"""Measure a training step and a forward pass of each arm of a plan, arms in turns.

    OMP_NUM_THREADS=1 python benchmarks/study/times.py PLAN [--networks NAME ...] [--rounds 21] [--results FOLDER]

The clock of a study measures whatever else the machine does. Here the arms of a network take turns at the plan's batch
and image size, each in a process of its own that keeps freed memory, as benchmarks/speed.py does it; run it on a quiet
machine. times.csv in --results, benchmarks/results/study/<plan> if not given, has a line an arm: medians in
milliseconds a batch, and ratios to the baseline of the same round with their quartiles. report.py reads it.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

import timm
import torch
from plan import Job, read_plan
from run import RESULTS, read_rows

from mlfm_zoo.frequency.tables import write_table
from mlfm_zoo_cli.launch import KEEP_MEMORY

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import RemoteStep, compare, cpu_name, spread

COLUMNS = (
    'network', 'arm', 'model', 'kwargs', 'batch_size', 'img_size', 'train_ms', 'train_ratio', 'train_low', 'train_high',
    'infer_ms', 'infer_ratio', 'infer_low', 'infer_high', 'rounds', 'threads', 'machine', 'torch')


def measure(jobs: List[Job], train: bool, rounds: int) -> List[List[str]]:
    """Time the arms of one network, in a training step or a forward pass in eval mode.

    Returns for each arm the median in milliseconds, and the median and the quartiles of its ratio to the baseline.
    """
    settings = jobs[0].settings
    args = argparse.Namespace(
        device='cpu', batch_size=settings['batch_size'], model_dtype='float32', cpu_time=False, train=train, amp=False,
        channels_last=settings.get('channels_last', False))
    steps = [
        RemoteStep(
            partial(timm.create_model, job.model, num_classes=settings['num_classes'], **job.kwargs),
            settings['img_size'], args)
        for job in jobs]
    for step in steps:
        step.warm()
    times: List[List[float]] = [[] for _ in steps]
    for i in range(rounds):
        for j in range(len(steps))[::1 if i % 2 else -1]:
            times[j].append(steps[j].seconds())
    for step in steps:
        step.close()
    baseline = times[[job.arm for job in jobs].index('baseline')]
    rows = []
    for own in times:
        ratio, _ = compare(own, baseline)
        rows.append([f'{1000 * spread(own)["median"]:.1f}', *(f'{ratio[k]:.3f}' for k in ('median', 'low', 'high'))])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', type=Path, help='YAML file')
    parser.add_argument('--networks', nargs='+', help='networks of the plan, all if not given')
    parser.add_argument('--rounds', type=int, default=21)
    parser.add_argument('--results', type=Path, help='folder for times.csv')
    args = parser.parse_args()
    os.environ.update(KEEP_MEMORY)  # for the processes of the arms
    file = (args.results or RESULTS / args.plan.stem) / 'times.csv'
    file.parent.mkdir(parents=True, exist_ok=True)
    networks: Dict[str, List[Job]] = {}
    for job in read_plan(args.plan).jobs:
        if job.arm not in [other.arm for other in networks.setdefault(job.network, [])]:
            networks[job.network].append(job)
    for network in args.networks or networks:
        jobs = networks[network]
        found = zip(jobs, measure(jobs, True, args.rounds), measure(jobs, False, args.rounds))
        rows: List[List[Any]] = [list(row.values()) for row in read_rows(file) if row['network'] != network]
        for job, train, infer in found:
            print(f'{network} {job.arm}: training step {train[0]} ms, x{train[1]} ({train[2]} to {train[3]}); forward '
                  f'{infer[0]} ms, x{infer[1]} ({infer[2]} to {infer[3]})', flush=True)
            rows.append([
                network, job.arm, job.model, job.record['kwargs'], job.settings['batch_size'],
                job.settings['img_size'], *train, *infer, args.rounds, torch.get_num_threads(), cpu_name(),
                torch.__version__])
        write_table(file, COLUMNS, rows)


if __name__ == '__main__':
    main()
