"""Read outputs of timm's train.py: compare accuracies, choose what to publish."""

import csv
import math
import statistics
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import timm
import torch
import yaml

from .._files import read_pickle
from .._types import fits, type_name
from ..convert import read_checkpoint
from ..models._network import weight_faults
from .build import build_network

__all__ = [
    'Epoch', 'Run', 'RunError', 'compare', 'difference_interval', 'find_runs', 'half_interval', 'num_classes_of',
    'publish_args', 'read_args', 'read_run',
]

# Arguments of train.py that this package reads, and their types; each may be None.
ARGUMENTS = dict(
    model=str, epochs=int, cooldown_epochs=int, warmup_epochs=int, eval_metric=str, dataset=str, data_dir=str,
    model_kwargs=dict, img_size=int, input_size=tuple[int, int, int], seed=int)

Z95 = statistics.NormalDist().inv_cdf(0.975)  # a normal variable lies within this many deviations in 95 of 100 cases


class RunError(ValueError):
    """A training run is unfinished, damaged, or not one of this package's networks."""


class Epoch(NamedTuple):
    """An epoch of a run: number from 0, validation top-1 in percent, and checkpoint."""
    number: int
    top1: float
    checkpoint: Path


class Run(NamedTuple):
    """A finished training run.

    Attributes:
        folder: Output folder of train.py.
        model: Registered name.
        memory: Whether the network has its memory; without, it is the baseline.
        model_args: Arguments that build the network, beside the registered ones and `memory`.
        args: All arguments of the run.
        best: The epoch of the best accuracy, the first of equals.
        last: The last epoch.
    """
    folder: Path
    model: str
    memory: bool
    model_args: Dict[str, Any]
    args: Dict[str, Any]
    best: Epoch
    last: Epoch


def read_run(folder: Union[str, Path]) -> Run:
    """Read and check the output folder of a training run.

    Args:
        folder: Folder with args.yaml, summary.csv and checkpoints, as timm's train.py writes it.

    Returns:
        The run.

    Raises:
        FileNotFoundError: The folder, or a file in it, is not there.
        RunError: The run is not finished, its files do not belong together, or its weights do not fit the network.
    """
    folder = Path(folder)
    for name in ('args.yaml', 'summary.csv'):  # a run has both from its first epoch on
        if not (folder / name).is_file():
            raise FileNotFoundError(f"There is no {name} in {folder}: give an output folder of timm's train.py, whole.")
    args = read_args(folder / 'args.yaml')
    if args.get('model') is None or args.get('epochs') is None:
        raise RunError(f"{folder / 'args.yaml'} is not what timm's train.py writes: give its output folder.")
    if 'mlfm_' not in args['model'] or not timm.is_model(args['model']):
        raise RunError(f'{folder} is a run of {args["model"]}, expected a network of this package.')
    if args.get('eval_metric', 'top1') != 'top1':
        raise RunError(f'{folder} was run with --eval-metric {args["eval_metric"]}, expected top1.')
    model_args = dict(args.get('model_kwargs') or {})
    memory = model_args.pop('memory', True)
    top1 = _read_summary(folder / 'summary.csv')
    epochs = args['epochs'] + (args.get('cooldown_epochs') or 0)
    epochs += (args.get('warmup_epochs') or 0) if args.get('warmup_prefix') else 0
    if max(top1) < epochs - 1:
        raise RunError(
            f'{folder} is not finished, it has {max(top1) + 1} of {epochs} epochs: resume it with --resume '
            f'{folder / "last.pth.tar"}.')
    last = Epoch(max(top1), top1[max(top1)], folder / 'last.pth.tar')
    number = max(top1, key=lambda epoch: (top1[epoch], -epoch))
    kept = [folder / 'model_best.pth.tar', folder / f'checkpoint-{number}.pth.tar']
    checkpoint = next((path for path in kept if path.is_file() and _epoch_of(path) == number), None)
    if checkpoint is None:
        raise RunError(
            f'{folder} lacks the checkpoint of its best epoch, {number}, neither {kept[0].name} nor {kept[1].name} is '
            'it: keep the files that train.py writes.')
    best = Epoch(number, top1[number], checkpoint)
    for epoch in {best, last}:
        _check_checkpoint(epoch, args['model'], dict(model_args, memory=memory))
    return Run(folder, args['model'], memory, model_args, args, best, last)


def find_runs(folder: Union[str, Path]) -> Tuple[List[Run], List[str]]:
    """Find the finished runs in a folder of runs, such as that of a study.

    Args:
        folder: Folder that holds output folders of train.py.

    Returns:
        The finished runs in the order of their names, and a sentence about each folder that is not one.

    Raises:
        FileNotFoundError: The folder is not there.
    """
    runs, faults = [], []
    for path in sorted(Path(folder).iterdir()):
        if path.is_dir():
            try:
                runs.append(read_run(path))
            except (OSError, ValueError) as error:
                faults.append(str(error))
    return runs, faults


def publish_args(run: Run, tag: Optional[str] = None, data: Optional[Union[str, Path]] = None) -> Dict[str, Any]:
    """Make the arguments that publish the best epoch of a run.

    Args:
        run: The run.
        tag: Tag of the weights; that of the run's data set if None, 'in100' if the run does not name one.
        data: Validation images; those of the run if None.

    Returns:
        Arguments of `publish.build_repository`: name, weights, top1, data, origin and model_args.
    """
    data_set = str(run.args.get('dataset') or '').rpartition('/')[2].lower()  # of timm's form torch/cifar100
    return dict(
        name=f'{run.model}.{tag or data_set or "in100"}',
        weights=run.best.checkpoint,
        top1=round(run.best.top1, 2),
        data=data or Path(run.args.get('data_dir') or 'DATA') / 'val',
        origin=f"trained with timm's train.py, seed {run.args.get('seed')}, epoch {run.best.number + 1} of "
               f'{run.last.number + 1}, the best on the validation images',
        model_args=run.model_args)


def half_interval(top1: float, num_images: int) -> float:
    """Half the 95 % confidence interval of an accuracy.

    Args:
        top1: Accuracy in percent.
        num_images: Images that it was measured on.

    Returns:
        Half the width of the interval, in points.

    Examples:
        >>> round(half_interval(80, num_images=5000), 2)
        1.11
    """
    p = top1 / 100
    return 100 * Z95 * math.sqrt(p * (1 - p) / num_images)


def difference_interval(a: float, b: float, num_images: int) -> Tuple[float, float]:
    """95 % confidence interval of the difference b - a of independent accuracies.

    Args:
        a: Accuracy in percent.
        b: Accuracy in percent.
        num_images: Images that each was measured on.

    Returns:
        Low and high end of the interval, in points.

    Examples:
        >>> [round(end, 2) for end in difference_interval(80, 82, num_images=5000)]
        [0.46, 3.54]
    """
    half = math.hypot(half_interval(a, num_images), half_interval(b, num_images))
    return b - a - half, b - a + half


def compare(runs: Sequence[Run], num_images: int = 5000) -> List[Dict[str, Any]]:
    """Compare baseline and memory, at their best and at their last epochs.

    Args:
        runs: Runs of any networks; those that differ only by the seed are grouped.
        num_images: Images of the validation set.

    Returns:
        A dict for each network and each of 'best' and 'last'. It has 'model', 'model_args' and 'epoch'. For 'baseline'
        and 'memory' it has the accuracies, their mean, deviation (None for one run) and half interval, or None without
        runs. 'difference' and 'interval' are those of the means (None unless there are runs of both).
    """
    networks: Dict[Tuple[str, str], List[Run]] = {}
    for run in runs:
        networks.setdefault((run.model, repr(sorted(run.model_args.items()))), []).append(run)
    rows = []
    for group in networks.values():
        for which in ('best', 'last'):
            row: Dict[str, Any] = dict(model=group[0].model, model_args=group[0].model_args, epoch=which)
            for name, memory in (('baseline', False), ('memory', True)):
                row[name] = _summary([getattr(r, which).top1 for r in group if r.memory == memory], num_images)
            both = row['baseline'] and row['memory']
            a, b = (row['baseline']['mean'], row['memory']['mean']) if both else (0.0, 0.0)
            row['difference'] = b - a if both else None
            row['interval'] = difference_interval(a, b, num_images) if both else None
            rows.append(row)
    return rows


def _summary(top1: List[float], num_images: int) -> Optional[Dict[str, Any]]:
    if not top1:
        return None
    mean = statistics.fmean(top1)
    return dict(
        top1=top1, mean=mean, deviation=statistics.stdev(top1) if len(top1) > 1 else None,
        half_interval=half_interval(mean, num_images))


def read_args(path: Path) -> Dict[str, Any]:
    """Read args.yaml, the arguments of a training run.

    Args:
        path: The file.

    Returns:
        The arguments by name.

    Raises:
        RunError: It is damaged, or holds something else.
    """
    try:
        args = yaml.load(path.read_text(encoding='utf-8'), _PlainLoader)
    except OSError:
        raise
    except Exception as error:  # of any kind, for malformed numbers and dates
        raise RunError(f"{path} is not what timm's train.py writes: copy the run again.") from error
    if not isinstance(args, dict) or not all(isinstance(name, str) for name in args):
        raise RunError(f"{path} is not what timm's train.py writes, expected its arguments by name: correct it.")
    for name, kind in ARGUMENTS.items():
        value = tuple(args[name]) if isinstance(args.get(name), list) else args.get(name)
        if not fits(value, Optional[kind]):
            raise RunError(f'{path} gives {name} as {args[name]!r}, expected {type_name(kind)}: correct it.')
    return args


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a small file could fill the memory."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError('aliases are not read')
        return super().compose_node(parent, index)


def num_classes_of(model: str, weights: Mapping[str, torch.Tensor], model_args: Mapping[str, Any]) -> int:
    """Read the number of classes from the shape of a classifier.

    Args:
        model: Registered name.
        weights: Weights of the network.
        model_args: Arguments of the network. That of `mlfm_filtered` names the network behind the filter.

    Returns:
        Outputs of the classifier.

    Raises:
        ValueError: The weights have no classifier.

    Examples:
        >>> num_classes_of('mlfm_resnet18', {'fc.weight': torch.zeros(100, 512)}, {})
        100
    """
    name = f'{timm.get_pretrained_cfg_value(model_args.get("network", model), "classifier")}.weight'
    if name not in weights or weights[name].ndim != 2:
        raise ValueError(f'The weights have no classifier {name}: give those of the whole network.')
    return len(weights[name])


def _read_summary(path: Path) -> Dict[int, float]:
    """Validation top-1 by epoch. A resumed run may repeat the header and an epoch."""
    top1 = {}
    with open(path, newline='', encoding='utf-8') as f:
        try:
            rows = list(csv.DictReader(f))
            for row in rows:
                if row.get('epoch') != 'epoch':
                    top1[int(row['epoch'])] = float(row['eval_top1'])
        except (KeyError, TypeError, ValueError, csv.Error):
            top1 = {}
    if not top1 or not all(0 <= value <= 100 for value in top1.values()):
        raise RunError(f"{path} is damaged or empty, expected a line of train.py's for each epoch, with eval_top1.")
    return top1


def _load(path: Path) -> Dict[str, Any]:
    try:
        checkpoint = read_pickle(path, mmap=True)
    except FileNotFoundError:
        raise RunError(f'{path} is missing: keep the files that train.py writes.') from None
    except Exception as error:  # of any kind for a damaged file
        raise RunError(f'{path} is damaged ({type(error).__name__}): copy the run again.') from None
    if not isinstance(checkpoint, dict):
        raise RunError(f"{path} is not what timm's train.py writes: copy the run again.")
    return checkpoint


def _epoch_of(path: Path) -> Optional[int]:
    return _load(path).get('epoch')


def _check_checkpoint(epoch: Epoch, model: str, model_args: Dict[str, Any]) -> None:
    checkpoint = _load(epoch.checkpoint)
    number, metric = checkpoint.get('epoch'), checkpoint.get('metric')
    if number != epoch.number or not isinstance(metric, float) or abs(metric - epoch.top1) > 1e-3:
        raise RunError(
            f'{epoch.checkpoint} is of epoch {number} with accuracy {metric}, and summary.csv says epoch '
            f'{epoch.number} and {epoch.top1}: they are not of one run.')
    try:
        weights = read_checkpoint(epoch.checkpoint)
    except ValueError as error:
        raise RunError(str(error)) from error
    num_classes = num_classes_of(model, weights, model_args)
    network = build_network(model, {**model_args, 'num_classes': num_classes, 'device': 'meta'})
    if weight_faults(network.state_dict(), weights):
        raise RunError(f'{epoch.checkpoint} has weights of another network than {model} with {model_args}.')
