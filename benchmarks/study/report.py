"""Turn the figures of a study into tables and pictures.

    python benchmarks/study/report.py FOLDER [--pictures FOLDER]

FOLDER is what run.py wrote, such as benchmarks/results/study/cifar10-cpu, finished or not. A difference is that of the
means over the seeds that both arms have. It has two 95 % intervals. Student's t over the differences of the same seed
says what other seeds would give; a paired bootstrap over the test images, averaged over seeds, says what other images
would give to these very networks. The best epoch was chosen by the test images: the last is the one to believe.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlfm_zoo._extras import require_matplotlib

RESAMPLES = 10000
EPOCHS = ('last', 'best')
COLUMNS = 4  # panels of a picture in one row, at the most

Key = Tuple[str, str, str]  # network, arm and seed
Interval = Tuple[float, float]


class Difference(NamedTuple):
    """Memory minus another arm, in points."""
    mean: float  # over seeds
    seeds: int
    over_seeds: Optional[Interval]  # by Student's t, None for one seed
    over_images: Interval  # by the bootstrap


class Study(NamedTuple):
    """What run.py wrote: accuracies in percent."""
    runs: Dict[Key, Dict[str, str]]  # lines of runs.csv
    right: Dict[Tuple[str, str, str, str], np.ndarray]  # each test image, by run and epoch, 'best' or 'last'
    lowpass: Dict[Key, Dict[float, float]]  # by run, then by radius
    curves: Dict[Key, List[float]]  # of each epoch
    sizes: Dict[Key, Dict[float, float]]  # by run, then by size of the test images
    times: Dict[Tuple[str, str], Dict[str, str]]  # lines of times.csv by network and arm; empty if nothing was timed

    @property
    def arms(self) -> Dict[str, List[str]]:
        """The arms of each network."""
        found: Dict[str, List[str]] = {}
        for network, arm, _ in self.runs:
            if arm not in found.setdefault(network, []):
                found[network].append(arm)
        return found

    @property
    def pairs(self) -> List[Tuple[str, str]]:
        """Each network that has the arm 'memory', with each of its other arms."""
        return [(network, arm) for network, arms in self.arms.items() if 'memory' in arms
                for arm in arms if arm != 'memory']

    def seeds(self, network: str, *arms: str) -> List[str]:
        """The seeds that all of these arms were run with."""
        found = [[seed for n, a, seed in self.runs if (n, a) == (network, arm)] for arm in arms]
        return [seed for seed in found[0] if all(seed in others for others in found)]


def read_study(folder: Path) -> Study:
    """Read what run.py wrote."""
    def rows(name: str) -> List[Dict[str, str]]:
        if not (folder / name).exists():
            return []
        with open(folder / name, newline='', encoding='utf-8') as f:
            return list(csv.DictReader(f))

    def by_condition(name: str, column: str) -> Dict[Key, Dict[float, float]]:
        found: Dict[Key, Dict[float, float]] = {}
        for row in rows(name):
            found.setdefault((row['network'], row['arm'], row['seed']), {})[float(row[column])] = float(row['top1'])
        return found

    runs = {(row['network'], row['arm'], row['seed']): row for row in rows('runs.csv')}
    right = {
        (row['network'], row['arm'], row['seed'], row['epoch']):
        np.unpackbits(np.frombuffer(bytes.fromhex(row['right']), np.uint8), count=int(row['images']))
        for row in rows('images.csv')}
    curves = {
        (network, arm, seed): [float(row['eval_top1']) for row in rows(f'curves/{network}-{arm}-seed{seed}.csv')]
        for network, arm, seed in runs}
    times = {(row['network'], row['arm']): row for row in rows('times.csv')}
    return Study(
        runs, right, by_condition('lowpass.csv', 'radius'), curves, by_condition('sizes.csv', 'size'), times)


def student_interval(differences: Sequence[float]) -> Optional[Interval]:
    """95 % interval of the mean of differences, by Student's t; None for one."""
    from scipy.stats import t  # of the extra [bench]

    if len(differences) < 2:
        return None
    mean = statistics.fmean(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean - half, mean + half


def with_deviation(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    deviation = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.2f}{deviation}'


def with_interval(differences: Sequence[float]) -> str:
    """Mean of differences (its interval by Student's t); '' for none."""
    ends = student_interval(differences)
    interval = f' ({ends[0]:+.2f} to {ends[1]:+.2f})' if ends else ''
    return f'{statistics.fmean(differences):+.2f}{interval}' if differences else ''


def bootstrap_interval(differences: np.ndarray) -> Interval:
    """95 % interval of the mean over images, in points, by bootstrap percentiles.

    `differences` (images,) are sums over seeds of -1, 0 and 1.
    """
    # images have a few values only, so how often each value is drawn follows a multinomial law
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), counts / len(differences), RESAMPLES)
    low, high = np.percentile(100 * (drawn @ values) / len(differences), [2.5, 97.5])
    return float(low), float(high)


def difference(study: Study, network: str, other: str, epoch: str) -> Optional[Difference]:
    """Accuracy of arm 'memory' minus another's; None if they have no seed in common."""
    seeds = study.seeds(network, 'memory', other)
    if not seeds:
        return None
    images = np.stack([
        study.right[network, 'memory', s, epoch].astype(int) - study.right[network, other, s, epoch] for s in seeds])
    by_seed = [100 * float(row.mean()) for row in images]
    low, high = bootstrap_interval(images.sum(0))
    return Difference(
        statistics.fmean(by_seed), len(seeds), student_interval(by_seed), (low / len(seeds), high / len(seeds)))


def markdown(columns: Sequence[str], texts: int, rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown: the first columns are text, the others numbers."""
    rule = ['---'] * texts + ['--:'] * (len(columns) - texts)
    return ''.join(f'| {" | ".join(line)} |\n' for line in [columns, rule, *rows])


def arm_table(study: Study) -> str:
    """Cost, accuracy and time of each arm, by times.csv or else the study's own clock."""
    times = ('training step ms', 'forward ms') if study.times else ('s an epoch', 'CPU s an epoch')
    lines = []
    for network, arms in study.arms.items():
        for arm in arms:
            rows = [study.runs[network, arm, seed] for seed in study.seeds(network, arm)]
            line = [f'`{network}`', arm, f'{int(rows[0]["madds"]) / 1e6:.2f}', f'{int(rows[0]["params"]) / 1e6:.2f}',
                    str(len(rows))]
            for epoch in EPOCHS:
                line.append(with_deviation([float(row[f'{epoch}_top1']) for row in rows]))
            if study.times:
                row = study.times[network, arm]
                line += [row['train_ms'], row['train_ratio'], row['infer_ms'], row['infer_ratio']]
            else:
                for name in ('seconds', 'cpu_seconds'):
                    values = [float(row[name]) for row in rows if row[name]]
                    line += [f'{statistics.fmean(values):.1f}' if values else '', time_ratio(study, network, arm, name)]
            lines.append(line)
    return markdown(
        ('network', 'arm', 'multiply-adds (M)', 'parameters (M)', 'seeds', 'last epoch %', 'best epoch %', times[0],
         'to baseline', times[1], 'to baseline'), 2, lines)


def time_ratio(study: Study, network: str, arm: str, name: str) -> str:
    """Time of an arm over the baseline's, over the seeds that both have times of."""
    pairs = [(study.runs[network, arm, s][name], study.runs[network, 'baseline', s][name])
             for s in study.seeds(network, arm, 'baseline')]
    both = [(float(a), float(b)) for a, b in pairs if a and b]
    return f'{sum(a for a, _ in both) / sum(b for _, b in both):.2f}' if both else ''


def difference_table(study: Study) -> str:
    """Memory minus each other arm."""
    lines = []
    for network, other in study.pairs:
        for epoch in EPOCHS:
            found = difference(study, network, other, epoch)
            if found:
                ends = [f'{ends[0]:+.2f} to {ends[1]:+.2f}' if ends else 'one seed'
                        for ends in (found.over_seeds, found.over_images)]
                lines.append([f'`{network}`', other, epoch, str(found.seeds), f'{found.mean:+.2f}', *ends])
    return markdown(
        ('network', 'memory minus', 'epoch', 'seeds', 'points', '95 % over seeds', '95 % over images'), 3, lines)


def condition_table(study: Study, accuracy: Dict[Key, Dict[float, float]]) -> str:
    """Accuracy by condition, a radius or size, and memory minus each other arm there."""
    conditions = sorted({condition for row in accuracy.values() for condition in row})
    lines = []
    for network, arms in study.arms.items():
        for arm in arms:
            rows = [accuracy[network, arm, seed] for seed in study.seeds(network, arm)]
            means = [f'{statistics.fmean(row[c] for row in rows):.2f}' for c in conditions]
            lines.append([f'`{network}`', arm, *means])
        for _, other in (pair for pair in study.pairs if pair[0] == network):
            seeds = study.seeds(network, 'memory', other)
            cells = [with_interval([accuracy[network, 'memory', s][c] - accuracy[network, other, s][c] for s in seeds])
                     for c in conditions]
            if seeds:
                lines.append([f'`{network}`', f'memory minus {other}', *cells])
    return markdown(('network', 'arm', *(f'{c:g}' for c in conditions)), 2, lines)


def report(folder: Path) -> str:
    """The tables of a study that run.py wrote into a folder, as Markdown."""
    study = read_study(folder)
    row = next(iter(study.runs.values()))
    threads = f', {row["threads"]} thread' if row['device'] == 'cpu' else ''
    plural = 's' if len(study.runs) > 1 else ''
    parts = [
        f'{len(study.runs)} finished run{plural}, {row["device"]}{threads}, torch {row["torch"]}, timm {row["timm"]}: '
        f'top-1 in percent on {int(row["test_images"]):,} test images, mean ± standard deviation over seeds.\n\n'
        f'{arm_table(study)}']
    if study.times:
        timed = next(iter(study.times.values()))
        parts.append(
            f'Times are milliseconds a batch of {timed["batch_size"]} at {timed["img_size"]} x {timed["img_size"]}, '
            f'{timed["threads"]} thread of {timed["machine"]}, medians of {timed["rounds"]} rounds in which the arms '
            'take turns.\n')
    if study.pairs:
        parts.append(
            "Memory minus each other arm, in points, with 95 % intervals: Student's t over seeds, and a paired "
            'bootstrap over images, averaged over seeds. The best epoch is chosen by the test images.\n\n'
            f'{difference_table(study)}')
    if study.lowpass:
        parts.append(
            'On low-pass filtered test images, by radius in cycles per image, last epoch; differences with their '
            f'interval over seeds:\n\n{condition_table(study, study.lowpass)}')
    if study.sizes:
        parts.append(
            f'On test images of other sizes, in pixels, last epoch:\n\n{condition_table(study, study.sizes)}')
    return '\n'.join(parts)


def draw(study: Study, folder: Path) -> List[Path]:
    """Draw the accuracy of each arm, a panel for each network: by epoch, and by radius and time if there are such.

    The range of seeds is shaded.
    """
    def plot_range(panel: Any, color: str, label: str, x: Sequence[float], y: np.ndarray) -> None:
        panel.plot(x, y.mean(0), f'{color}.-', markersize=4, label=label)
        panel.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15)

    def plot_curves(panel: Any, color: str, label: str, network: str, arm: str) -> None:
        curves = [study.curves[network, arm, seed] for seed in study.seeds(network, arm)]
        epochs = min(map(len, curves))
        plot_range(panel, color, label, range(1, epochs + 1), np.array([curve[:epochs] for curve in curves]))

    def plot_lowpass(panel: Any, color: str, label: str, network: str, arm: str) -> None:
        rows = [study.lowpass[network, arm, seed] for seed in study.seeds(network, arm)]
        radii = sorted(rows[0])
        plot_range(panel, color, label, radii, np.array([[row[radius] for radius in radii] for row in rows]))

    def plot_times(panel: Any, color: str, label: str, network: str, arm: str) -> None:
        y = [float(study.runs[network, arm, seed]['last_top1']) for seed in study.seeds(network, arm)]
        x = float(study.times[network, arm]['train_ms'])
        panel.plot([x] * len(y), y, f'{color}o', alpha=0.4)
        panel.plot(x, statistics.fmean(y), f'{color}_', markersize=18, label=label)

    accuracy = 'top-1 accuracy on the test images, %'
    pictures = {'curves.png': (plot_curves, 'epoch', accuracy)}
    if study.lowpass:
        pictures['lowpass.png'] = (plot_lowpass, 'radius of the low-pass filter, cycles per image', accuracy)
    if study.times:
        pictures['times.png'] = (plot_times, 'training step, ms a batch', 'top-1 accuracy of the last epoch, %')
    plt = require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    columns = min(len(study.arms), COLUMNS)
    rows = -(-len(study.arms) // columns)
    for name, (plot, xlabel, ylabel) in pictures.items():
        figure, axes = plt.subplots(
            rows, columns, figsize=(5 * columns, 4 * rows), layout='constrained', squeeze=False)
        for panel in axes.flat[len(study.arms):]:
            panel.remove()
        for panel, (network, arms) in zip(axes.flat, study.arms.items()):
            for i, arm in enumerate(arms):
                seeds = len(study.seeds(network, arm))
                plot(panel, f'C{i}', f'{arm}, {seeds} seed{"s" if seeds > 1 else ""}', network, arm)
            panel.set(title=network, xlabel=xlabel, ylabel=ylabel)
            panel.grid(alpha=0.3)
            panel.legend(fontsize='small')
        figure.savefig(folder / name, dpi=110)
        plt.close(figure)
    return [folder / name for name in pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='what run.py wrote')
    parser.add_argument('--pictures', type=Path, help='folder for the pictures, FOLDER if not given')
    args = parser.parse_args()
    if not (args.folder / 'runs.csv').is_file():
        sys.exit(f'There is no runs.csv in {args.folder}, no run is finished: give the folder that run.py wrote to.')
    print(report(args.folder))
    print(*draw(read_study(args.folder), args.pictures or args.folder), sep='\n')


if __name__ == '__main__':
    main()
