"""Every result of this project as CSV files in results/, one for each kind, as timm keeps its own.

`python scripts/make_tables.py` writes them, from weights_manifest.yaml, from benchmarks/results and from the papers'
figures below. results/README.md describes the columns.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import timm

from mlfm_zoo.hub.manifest import manifest_path, paper_accuracies, read_manifest
from mlfm_zoo.workflow.card import IMAGENET100, README, dataset_of, measured_figures
from mlfm_zoo.workflow.cost import count_cost

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'results'
MEASURED = ROOT / 'benchmarks' / 'results'

Row = Dict[str, Any]

# Top-1 on MNIST, CIFAR-100 and ImageNet that the paper of GSSDNet reports (arXiv 2302.12477).
GSSDNET_PAPER = {
    'gssdnet_vanilla_100': (99.68, 76.1, 71.8),
    'gssdnet_vanilla_075': (99.67, 75.1, 69.2),
    'gssdnet_vanilla_050': (99.68, 72.4, 64.2),
    'gssdnet_o1_100': (99.69, 74.4, 68.5),
    'gssdnet_o1_075': (99.68, 73.4, 65.5),
    'gssdnet_o1_050': (99.64, 70.4, 60.4),
    'gssdnet_o2_100': (99.72, 77.1, 71.2),
    'gssdnet_o2_075': (99.69, 76.0, 68.4),
    'gssdnet_o2_050': (99.71, 73.7, 63.0),
}

# Top-1 on ImageNet that the paper of the DCT networks reports (CVPR 2020); it has none of the gated networks.
DCT_PAPER = {
    'dct_resnet50_ycbcr': 75.234,
    'dct_resnet50_24s': 77.196,
    'dct_resnet50_24t': 77.148,
    'dct_resnet50_24d': 77.166,
    'dct_resnet50_48s': 77.384,
    'dct_resnet50_48t': 77.338,
    'dct_resnet50_64s': 77.232,
    'dct_resnet50_64t': 77.280,
    'dct_resnet50_192': 77.194,
    'dct_mobilenetv2_100_6s': 71.776,
    'dct_mobilenetv2_100_12s': 72.156,
    'dct_mobilenetv2_100_24s': 72.364,
    'dct_mobilenetv2_100_32s': 72.282,
}


def read_csv(file: Path) -> List[Dict[str, str]]:
    """The lines of a CSV file, none if it is not there."""
    if not file.exists():
        return []
    with open(file, newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))


def as_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A CSV file's text; what a row does not have stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def networks(recount: bool = False) -> List[Row]:
    """Cost of each registered network, as registered and with the options that the tables show.

    Args:
        recount: Whether to count all networks again, which takes a minute; otherwise only those that networks.csv does
            not have.

    Returns:
        The rows of networks.csv.
    """
    known = {} if recount else {(row['model'], row['options']): row for row in read_csv(RESULTS / 'networks.csv')}
    rows: List[Row] = []
    for model in timm.list_models(['*mlfm_*', 'gssdnet_*', 'dct_*'], exclude_filters='mlfm_filtered'):
        variants: List[Dict[str, Any]] = [{}]
        if 'mlfm_' in model:
            variants.append({'memory': False})
        if model.startswith('dct_resnet') and 'ycbcr' not in model:
            variants.append({'layer2_stride': 2})
        for kwargs in variants:
            options = ' '.join(f'{name}={value}' for name, value in kwargs.items())
            row = known.get((model, options))
            if row is None:
                cost = count_cost(model, **kwargs)
                row = dict(
                    model=model, options=options, input_size=cost.input_size[-1], params=cost.params, madds=cost.madds,
                    activations=cost.activations)
            rows.append({name: value if name in ('model', 'options') else int(value) for name, value in row.items()})
    return rows


def accuracies(costs: Sequence[Row]) -> List[Row]:
    """Accuracies on validation images: those that papers and logs report, and those measured by this project.

    Args:
        costs: The rows of networks.csv.

    Returns:
        The rows of accuracy.csv.
    """
    cost_of = {(row['model'], row['options']): row for row in costs}

    def row(model: str, options: str, own_cost: bool = True, **figures: Any) -> Row:
        cost = cost_of.get((model, options), {}) if own_cost else {}
        size = {name: cost.get(name, '') for name in ('input_size', 'params', 'madds')}
        return dict(model=model, options=options, **{**size, **figures})

    rows = []
    for model, paper in paper_accuracies().items():
        for options, top1 in (('memory=False', paper.trunk), ('', paper.memory)):
            rows.append(row(model, options, top1=f'{top1:.2f}', data=IMAGENET100.name, source=README))
    for model, accuracy in GSSDNET_PAPER.items():
        for data, top1 in zip(('MNIST', 'CIFAR-100', 'ImageNet-1k'), accuracy):
            own_cost = data == 'ImageNet-1k'  # the others have other input sizes and classes than registered
            rows.append(row(model, '', own_cost, top1=top1, data=data, source='paper'))
    for model, top1 in DCT_PAPER.items():
        rows.append(row(model, '', top1=f'{top1:.3f}', data='ImageNet-1k', source='paper'))
    for c in read_manifest(manifest_path()).checkpoints.values():
        options = '' if c.memory else 'memory=False'
        dataset = dataset_of(c.tag, c.num_classes)
        reported: Dict[str, Row] = {}
        for name, value in c.reported.items():
            source, _, k = name.partition("'s top-")  # "d-li14's top-5"; the others are top-1
            if source != README:  # which is there already
                reported.setdefault(source, row(
                    c.model, 'memory=False' if c.kind == 'warm_start' else options, tag=c.tag,
                    data=dataset.name if dataset else '', source=source))[f'top{k or 1}'] = f'{value:.2f}'
        rows += reported.values()
        measured: Dict[str, Row] = {}
        for metric, data, value in measured_figures(c, dataset):
            measured.setdefault(data.name, row(
                c.model, options, tag=c.tag, input_size=c.input_size[-1], data=data.name, source='measured here',
                command=c.command))[metric.replace('-', '')] = f'{value:.2f}'
        rows += measured.values()
    return rows


def studies() -> List[Row]:
    """Accuracies of each run of benchmarks/study and of benchmarks/gssdnet_training.py, which has no best epoch."""
    rows: List[Row] = []
    for file in sorted((MEASURED / 'study').glob('*/runs.csv')):
        for run in read_csv(file):
            settings, kwargs = json.loads(run['settings']), json.loads(run['kwargs'])
            rows.append(dict(
                run, study=file.parent.name, options=' '.join(f'{k}={v}' for k, v in kwargs.items()),
                input_size=settings['img_size'], top1=run['last_top1'], engine=f'torch {run["torch"]}'))
    for run in read_csv(MEASURED / 'gssdnet-cifar10' / 'results.csv'):
        rows.append(dict(run, study='gssdnet-cifar10', model=run['network'], engine=f'torch {run["torch"]}'))
    return [{name: row[name] for name in STUDY_COLUMNS if name in row} for row in rows]


def segmentation() -> List[Row]:
    """Mean IoU and what else benchmarks/segmentation.py measures, for each run."""
    return [{name: row[name] for name in SEGMENTATION_COLUMNS}
            for row in read_csv(MEASURED / 'segmentation' / 'results.csv')]


def read_measured(setting: str) -> Dict[str, Any]:
    """What benchmarks/speed.py has written into a folder of benchmarks/results, with its results by network."""
    measured = json.loads((MEASURED / setting / 'results.json').read_text(encoding='utf-8'))
    return dict(measured, results={result['model']: result for result in measured['results']})


def times() -> Iterator[Row]:
    """What speed.py, deploy.py and study/times.py of benchmarks have measured, a row for each network and variant."""
    for file in sorted(MEASURED.glob('*/results.json')):
        measured = json.loads(file.read_text(encoding='utf-8'))
        for result in measured.get('results', []):
            for variant, found in result.get('variants', {}).items():
                compiled = 'compiled' in variant
                yield dict(
                    model=result['model'], variant=variant, what='training step' if measured['train'] else 'inference',
                    engine=f'torch {measured["torch"]}, {"compiled" if compiled else "eager"}',
                    dtype='autocast' if measured['amp'] else measured.get('model_dtype', 'float32'),
                    batch_size=measured['batch_size'], input_size=result['size'],
                    ms=f'{1000 * found["seconds"]["median"]:.2f}', images_per_second=found['images_per_second'],
                    **ratios(*(found['ratio'][name] for name in ('median', 'low', 'high'))),
                    peak_mib=found.get('peak_mib', ''), machine=measured['machine'], threads=measured['threads'],
                    setting=file.parent.name, command=result['command'])
    settings = json.loads((MEASURED / 'deploy' / 'settings.json').read_text(encoding='utf-8'))
    for row in read_csv(MEASURED / 'deploy' / 'results.csv'):
        library, form = DEPLOYED[row['engine']]
        yield dict(
            model=row['network'], variant=row['arm'], what='inference', engine=f'{library} {settings[library]}{form}',
            dtype=row['precision'], batch_size=row['batch'], input_size=row['size'], ms=f'{float(row["ms"]):.2f}',
            images_per_second=f'{1000 * int(row["batch"]) / float(row["ms"]):.2f}',
            **ratios(*(float(row[f'to_plain{end}']) for end in ('', '_low', '_high'))),
            machine=settings['machine'], threads=row['threads'], setting='deploy',
            command=f'python benchmarks/deploy.py --networks {row["network"]} --size {row["size"]}')
    for file in sorted((MEASURED / 'study').glob('*/times.csv')):
        for row in read_csv(file):
            for what, short in (('training step', 'train'), ('inference', 'infer')):
                ms = float(row[f'{short}_ms'])
                yield dict(
                    model=row['model'], variant=row['arm'], what=what, engine=f'torch {row["torch"]}, eager',
                    dtype='float32', batch_size=row['batch_size'], input_size=row['img_size'], ms=f'{ms:.2f}',
                    images_per_second=f'{1000 * int(row["batch_size"]) / ms:.2f}',
                    **ratios(*(float(row[f'{short}_{name}']) for name in ('ratio', 'low', 'high'))),
                    machine=row['machine'], threads=row['threads'], setting=f'study/{file.parent.name}',
                    command=f'python benchmarks/study/times.py benchmarks/study/{file.parent.name}.yaml')


# Library and form of each engine of benchmarks/deploy.py.
DEPLOYED = {
    'eager': ('torch', ', eager'), 'compile': ('torch', ', compiled'), 'aoti': ('torch', ', AOTInductor'),
    'onnx': ('onnxruntime', ''), 'openvino': ('openvino', '')}


def ratios(median: float, low: float, high: float) -> Row:
    """A ratio to the network without memory, with its quartiles, as columns of times.csv."""
    return dict(ratio=f'{median:.3f}', ratio_low=f'{low:.3f}', ratio_high=f'{high:.3f}')


NETWORK_COLUMNS = ('model', 'options', 'input_size', 'params', 'madds', 'activations')
ACCURACY_COLUMNS = (
    'model', 'tag', 'options', 'input_size', 'params', 'madds', 'top1', 'top5', 'data', 'source', 'command')
STUDY_COLUMNS = (
    'study', 'network', 'arm', 'seed', 'model', 'options', 'input_size', 'params', 'madds', 'epochs', 'top1',
    'best_top1', 'test_images', 'device', 'engine')
SEGMENTATION_COLUMNS = (
    'data', 'network', 'variant', 'seed', 'miou', 'pixel_accuracy', 'boundary_f', 'params', 'test_images')
TIME_COLUMNS = (
    'model', 'variant', 'what', 'engine', 'dtype', 'batch_size', 'input_size', 'ms', 'images_per_second', 'ratio',
    'ratio_low', 'ratio_high', 'peak_mib', 'machine', 'threads', 'setting', 'command')


def result_files(recount: bool = False) -> Dict[Path, str]:
    """Make all files of results/.

    Args:
        recount: As for `networks`.

    Returns:
        The text of each file.
    """
    costs = networks(recount)
    tables = {
        'networks': (NETWORK_COLUMNS, costs), 'accuracy': (ACCURACY_COLUMNS, accuracies(costs)),
        'studies': (STUDY_COLUMNS, studies()), 'segmentation': (SEGMENTATION_COLUMNS, segmentation()),
        'times': (TIME_COLUMNS, [*times()])}
    return {RESULTS / f'{name}.csv': as_csv(columns, rows) for name, (columns, rows) in tables.items()}
