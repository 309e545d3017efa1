"""Turn the figures of a study into tables and pictures.

    python benchmarks/study/report.py FOLDER [--pictures FOLDER]

FOLDER is what run.py wrote, as benchmarks/results/study/cifar10-cpu, whether it is finished or not. A difference is
that of the means over the seeds that both arms have. It has two 95 % intervals: Student's t over the differences of the
same seed, which says what other seeds would give, and a paired bootstrap over the test images, averaged over seeds,
which says what other images would give to these very networks. The best epoch was chosen by the test images: the last
is the one to believe.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlfm_zoo._extras import require_matplotlib
from mlfm_zoo.workflow.collect import Epoch, Run, compare

RESAMPLES = 10000
EPOCHS = ('last', 'best')


class Difference(NamedTuple):
    """Memory minus another arm, in points.

    Attributes:
        mean: Mean over seeds.
        seeds: Number of seeds.
        over_seeds: 95 % interval by Student's t, None for one seed.
        over_images: 95 % interval by the bootstrap.
    """
    mean: float
    seeds: int
    over_seeds: Optional[Tuple[float, float]]
    over_images: Tuple[float, float]


class Study(NamedTuple):
    """What run.py wrote.

    Attributes:
        runs: Rows of runs.csv by network, arm and seed.
        right: Whether each test image is answered right, by network, arm, seed and epoch, 'best' or 'last'.
        lowpass: Accuracy by network, arm, seed and radius.
        curves: Accuracy of each epoch by network, arm and seed.
        sizes: Accuracy by network, arm, seed and size of the test images.
        times: Rows of times.csv by network and arm; empty if nothing was timed.
    """
    runs: Dict[Tuple[str, str, str], Dict[str, str]]
    right: Dict[Tuple[str, str, str, str], np.ndarray]
    lowpass: Dict[Tuple[str, str, str], Dict[float, float]]
    curves: Dict[Tuple[str, str, str], List[float]]
    sizes: Dict[Tuple[str, str, str], Dict[float, float]]
    times: Dict[Tuple[str, str], Dict[str, str]]

    @property
    def arms(self) -> Dict[str, List[str]]:
        """The arms of each network, in the order in which they were run."""
        found: Dict[str, List[str]] = {}
        for network, arm, _ in self.runs:
            if arm not in found.setdefault(network, []):
                found[network].append(arm)
        return found

    def seeds(self, network: str, *arms: str) -> List[str]:
        """The seeds with which all of these arms were run."""
        found = [[s for n, a, s in self.runs if (n, a) == (network, arm)] for arm in arms]
        return [seed for seed in found[0] if all(seed in others for others in found)]


def read_study(folder: Path) -> Study:
    """Read what run.py wrote.

    Args:
        folder: The folder.

    Returns:
        The finished runs; what belongs to a run that runs.csv does not have is left out.
    """
    def rows(name: str) -> List[Dict[str, str]]:
        if name in ('sizes.csv', 'times.csv') and not (folder / name).exists():
            return []
        with open(folder / name, newline='', encoding='utf-8') as f:
            return list(csv.DictReader(f))

    runs = {(row['network'], row['arm'], row['seed']): row for row in rows('runs.csv')}
    right, curves = {}, {}
    lowpass: Dict[Tuple[str, str, str], Dict[float, float]] = {}
    sizes: Dict[Tuple[str, str, str], Dict[float, float]] = {}
    for row in rows('images.csv'):
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(row['right']), np.uint8), count=int(row['images']))
        right[row['network'], row['arm'], row['seed'], row['epoch']] = bits
    for found, name, column in ((lowpass, 'lowpass.csv', 'radius'), (sizes, 'sizes.csv', 'size')):
        for row in rows(name):
            found.setdefault((row['network'], row['arm'], row['seed']), {})[float(row[column])] = float(row['top1'])
    for key in runs:
        curves[key] = [float(row['eval_top1']) for row in rows(f'curves/{"-".join(key[:2])}-seed{key[2]}.csv')]
    times = {(row['network'], row['arm']): row for row in rows('times.csv')}
    return Study(runs, right, lowpass, curves, sizes, times)


def student_interval(differences: Sequence[float]) -> Optional[Tuple[float, float]]:
    """95 % interval of the mean of differences, by Student's t; None for one."""
    from scipy.stats import t  # of the extra [bench]

    if len(differences) < 2:
        return None
    mean = statistics.fmean(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean - half, mean + half


def bootstrap_interval(differences: np.ndarray, resamples: int = RESAMPLES) -> Tuple[float, float]:
    """95 % interval of the mean over images, in points, by the percentiles of a bootstrap.

    Args:
        differences: What each image adds to the difference (images,): a mean over seeds of -1, 0 and 1.
        resamples: Samples of as many images, drawn with replacement.

    Returns:
        Lower and upper end.
    """
    # images are drawn by the few values that they have: of each as many as a multinomial law gives
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), counts / len(differences), resamples)
    low, high = np.percentile(100 * (drawn @ values) / len(differences), [2.5, 97.5])
    return float(low), float(high)


def difference(study: Study, network: str, arm: str, other: str, epoch: str) -> Optional[Difference]:
    """Accuracy of an arm minus another's, None if they have no seed in common."""
    seeds = study.seeds(network, arm, other)
    if not seeds:
        return None
    images = np.stack([
        study.right[network, arm, s, epoch].astype(int) - study.right[network, other, s, epoch] for s in seeds])
    by_seed = [100 * float(row.mean()) for row in images]
    # sums over seeds are whole numbers, so that equal ones are equal
    low, high = bootstrap_interval(images.sum(0))
    return Difference(
        statistics.fmean(by_seed), len(seeds), student_interval(by_seed), (low / len(seeds), high / len(seeds)))


def summaries(study: Study, network: str, arm: str) -> Dict[str, Dict[str, Any]]:
    """Mean and deviation of an arm's accuracy for the best and the last epoch, as `collect` reports them."""
    runs = []
    for row in (study.runs[network, arm, seed] for seed in study.seeds(network, arm)):
        best = Epoch(int(row['best_epoch']), float(row['best_top1']), Path())
        last = Epoch(int(row['epochs']) - 1, float(row['last_top1']), Path())
        runs.append(Run(Path(), row['model'], True, {}, {}, best, last))
    return {row['epoch']: row['memory'] for row in compare(runs, int(row['test_images']))}


def table(study: Study) -> str:
    """Each arm: cost, accuracy and time, by times.csv if it is there, else by the clock of the study."""
    times = ('training step ms', 'forward ms') if study.times else ('s an epoch', 'CPU s an epoch')
    lines = [
        '| network | arm | multiply-adds (M) | parameters (M) | seeds | last epoch % | best epoch % | '
        f'{times[0]} | to baseline | {times[1]} | to baseline |', '| --- | --- |' + ' --: |' * 9]
    for network, arms in study.arms.items():
        for arm in arms:
            rows = [study.runs[network, arm, seed] for seed in study.seeds(network, arm)]
            found = summaries(study, network, arm)
            cells = [f'`{network}`', arm, f'{int(rows[0]["madds"]) / 1e6:.2f}', f'{int(rows[0]["params"]) / 1e6:.2f}',
                     str(len(rows))]
            for epoch in EPOCHS:
                deviation = found[epoch]['deviation']
                cells.append(f'{found[epoch]["mean"]:.2f}' + ('' if deviation is None else f' ± {deviation:.2f}'))
            if study.times:
                row = study.times[network, arm]
                cells += [row['train_ms'], row['train_ratio'], row['infer_ms'], row['infer_ratio']]
            else:
                for name in ('seconds', 'cpu_seconds'):
                    values = [float(row[name]) for row in rows if row[name]]
                    cells.append(f'{statistics.fmean(values):.1f}' if values else '')
                    cells.append(time_ratio(study, network, arm, name))
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def time_ratio(study: Study, network: str, arm: str, name: str) -> str:
    """Time of an arm over the baseline's, over the seeds that both have times of."""
    pairs = [(study.runs[network, arm, s][name], study.runs[network, 'baseline', s][name])
             for s in (study.seeds(network, arm, 'baseline') if 'baseline' in study.arms[network] else ())]
    pairs = [(float(a), float(b)) for a, b in pairs if a and b]
    return f'{sum(a for a, _ in pairs) / sum(b for _, b in pairs):.2f}' if pairs else ''


def difference_table(study: Study) -> str:
    """Memory minus each other arm."""
    lines = ['| network | memory minus | epoch | seeds | points | 95 % over seeds | 95 % over images |',
             '| --- | --- | --- |' + ' --: |' * 4]
    for network, arms in study.arms.items():
        for other in (arm for arm in arms if 'memory' in arms and arm != 'memory'):
            for epoch in EPOCHS:
                found = difference(study, network, 'memory', other, epoch)
                if found:
                    ends = [f'{ends[0]:+.2f} to {ends[1]:+.2f}' if ends else 'one seed'
                            for ends in (found.over_seeds, found.over_images)]
                    lines.append(f'| `{network}` | {other} | {epoch} | {found.seeds} | {found.mean:+.2f} | '
                                 f'{" | ".join(ends)} |')
    return '\n'.join(lines) + '\n'


def condition_table(study: Study, accuracy: Dict[Tuple[str, str, str], Dict[float, float]]) -> str:
    """Accuracy under each condition, a radius or a size, and memory minus each other arm there.

    Args:
        study: What run.py wrote.
        accuracy: Accuracy by run and condition: `study.lowpass` or `study.sizes`.

    Returns:
        The table, as Markdown.
    """
    conditions = sorted({condition for row in accuracy.values() for condition in row})
    lines = [f'| network | arm | {" | ".join(f"{c:g}" for c in conditions)} |',
             '| --- | --- |' + ' --: |' * len(conditions)]
    for network, arms in study.arms.items():
        for arm in arms:
            rows = [accuracy[network, arm, seed] for seed in study.seeds(network, arm)]
            cells = [f'{statistics.fmean(row[c] for row in rows):.2f}' for c in conditions]
            lines.append(f'| `{network}` | {arm} | {" | ".join(cells)} |')
        for other in (arm for arm in arms if 'memory' in arms and arm != 'memory'):
            seeds, cells = study.seeds(network, 'memory', other), []
            for condition in conditions if seeds else ():
                values = [accuracy[network, 'memory', s][condition] - accuracy[network, other, s][condition]
                          for s in seeds]
                ends = student_interval(values)
                interval = f' ({ends[0]:+.2f} to {ends[1]:+.2f})' if ends else ''
                cells.append(f'{statistics.fmean(values):+.2f}{interval}')
            if seeds:
                lines.append(f'| `{network}` | memory minus {other} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def report(folder: Path) -> str:
    """The tables, as Markdown.

    Args:
        folder: What run.py wrote.

    Returns:
        The text.
    """
    study = read_study(folder)
    row = next(iter(study.runs.values()))
    threads = f', {row["threads"]} thread' if row['device'] == 'cpu' else ''
    text = (
        f'{len(study.runs)} finished runs, {row["device"]}{threads}, torch {row["torch"]}, timm {row["timm"]}: top-1 '
        f'in percent on {int(row["test_images"]):,} test images, mean ± standard deviation over seeds.\n\n'
        f'{table(study)}\n')
    if study.times:
        timed = next(iter(study.times.values()))
        text += (
            f'Times are milliseconds a batch of {timed["batch_size"]} at {timed["img_size"]} x {timed["img_size"]}, '
            f'{timed["threads"]} thread of {timed["machine"]}, medians of {timed["rounds"]} rounds in which the arms '
            'take turns.\n\n')
    text += (
        "Memory minus each other arm, in points, with 95 % intervals: Student's t over seeds, and a paired bootstrap "
        'over images, averaged over seeds. The best epoch is chosen by the test images.\n\n'
        f'{difference_table(study)}\nOn low-pass filtered test images, by radius in cycles per image, last epoch; '
        f'differences with their interval over seeds:\n\n{condition_table(study, study.lowpass)}')
    if study.sizes:
        text += f'\nOn test images of other sizes, in pixels, last epoch:\n\n{condition_table(study, study.sizes)}'
    return text


def draw(study: Study, folder: Path) -> List[Path]:
    """Draw curves.png, accuracy by epoch, and lowpass.png, accuracy by radius, with the range of seeds shaded.

    If the arms were timed, times.png shows the accuracy of each against the milliseconds of its training step.

    Args:
        study: What run.py wrote.
        folder: Folder of the pictures.

    Returns:
        The files.
    """
    plt = require_matplotlib()
    files = []
    for name, label in (('curves', 'epoch'), ('lowpass', 'radius of the low-pass filter, cycles per image')):
        figure, axes = plt.subplots(
            1, len(study.arms), figsize=(5 * len(study.arms), 4), layout='constrained', squeeze=False)
        for panel, (network, arms) in zip(axes[0], study.arms.items()):
            for i, arm in enumerate(arms):
                keys = [(network, arm, seed) for seed in study.seeds(network, arm)]
                if name == 'curves':
                    x: List[float] = list(range(1, min(len(study.curves[key]) for key in keys) + 1))
                    y = np.array([study.curves[key][:len(x)] for key in keys])
                else:
                    x = sorted(study.lowpass[keys[0]])
                    y = np.array([[study.lowpass[key][radius] for radius in x] for key in keys])
                panel.plot(x, y.mean(0), f'C{i}.-', markersize=4, label=f'{arm}, {len(keys)} seeds')
                panel.fill_between(x, y.min(0), y.max(0), color=f'C{i}', alpha=0.15)
            panel.set(title=network, xlabel=label, ylabel='top-1 accuracy on the test images, %')
            panel.grid(alpha=0.3)
            panel.legend(fontsize='small')
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f'{name}.png')
        figure.savefig(files[-1], dpi=110)
        plt.close(figure)
    if study.times:
        figure, axes = plt.subplots(
            1, len(study.arms), figsize=(5 * len(study.arms), 4), layout='constrained', squeeze=False)
        for panel, (network, arms) in zip(axes[0], study.arms.items()):
            for i, arm in enumerate(arms):
                seeds = study.seeds(network, arm)
                y = [float(study.runs[network, arm, seed]['last_top1']) for seed in seeds]
                x = float(study.times[network, arm]['train_ms'])
                panel.plot([x] * len(y), y, f'C{i}o', alpha=0.4)
                panel.plot(x, statistics.fmean(y), f'C{i}_', markersize=18, label=f'{arm}, {len(seeds)} seeds')
            panel.set(title=network, xlabel='training step, ms a batch', ylabel='top-1 accuracy of the last epoch, %')
            panel.grid(alpha=0.3)
            panel.legend(fontsize='small')
        files.append(folder / 'times.png')
        figure.savefig(files[-1], dpi=110)
        plt.close(figure)
    return files


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
