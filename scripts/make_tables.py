"""Write the tables of README.md and of the docs, and the files in results/.

    python scripts/make_tables.py [--check] [--recount]

A table stands in its page between two comments. It is made from weights_manifest.yaml, from benchmarks/results and from
results/networks.csv, whose counts are made once: --recount makes them again, for which all networks are built on the
meta device. Multiply-adds are those of convolutions and linear layers for one image of the size in the table, half of
what torch's own FlopCounterMode counts. How many of timm's networks take a memory is counted for one version of timm,
and stays as it is if another is installed. With --check nothing is written, and the exit code says whether all is up to
date.
"""

import argparse
import json
import re
import runpy
import statistics
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import timm
import yaml

import mlfm_zoo
from make_results import (
    DCT_PAPER,
    GSSDNET_PAPER,
    MEASURED,
    README,
    ROOT,
    Row,
    networks,
    read_csv,
    read_measured,
    result_files,
)
from mlfm_zoo._files import written_whole
from mlfm_zoo.hub.manifest import KINDS, Checkpoint, manifest_path, paper_accuracies, read_manifest
from mlfm_zoo.memory.attach import FAMILIES
from mlfm_zoo.workflow.card import IMAGENET100, dataset_of, measured_figures
from mlfm_zoo.workflow.collect import difference_interval

# A table without a name has that of its page.
TABLE = re.compile(
    r'(<!-- made by scripts/make_tables\.py(?:: (\w+))? -->\n).*?(<!-- end of the table -->\n)', re.DOTALL)


def markdown(columns: Sequence[str], kinds: str, rows: Sequence[Sequence[Any]]) -> str:
    """A table as Markdown.

    Args:
        columns: Its first line.
        kinds: A letter for each column, t for text and n for numbers.
        rows: The other lines.

    Returns:
        The table.
    """
    rule = [{'t': '---', 'n': '--:'}[kind] for kind in kinds]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in [columns, rule, *rows])


def run_benchmark(script: str) -> Dict[str, Any]:
    """Return what a script of benchmarks/ defines; such scripts import each other from that folder."""
    folder = str(ROOT / 'benchmarks')
    if folder not in sys.path:
        sys.path.append(folder)
    return runpy.run_path(str(Path(folder, script)))


def costs() -> Dict[tuple, Row]:
    """Cost of each network, by its name and options."""
    return {(row['model'], row['options']): row for row in networks()}


def checkpoints() -> List[Checkpoint]:
    return [*read_manifest(manifest_path()).checkpoints.values()]


def models_table() -> str:
    """Cost and reported accuracy of the networks of the authors' table."""
    rows, cost = [], costs()
    for model, paper in paper_accuracies().items():
        trunk, memory = cost[model, 'memory=False'], cost[model, '']
        rows.append([
            f'`{model}`', memory['input_size'],
            f'{trunk["params"] / 1e6:.2f}', f'{memory["params"] / 1e6:.2f}',
            f'{memory["params"] / trunk["params"]:.2f}',
            f'{trunk["madds"] / 1e9:.3f}', f'{memory["madds"] / 1e9:.3f}', f'{memory["madds"] / trunk["madds"]:.2f}',
            f'{paper.trunk:.2f}', f'{paper.memory:.2f}'])
    return markdown(
        ('model', 'size', 'params (M), trunk', 'params (M), memory', 'ratio', 'MAdds (G), trunk', 'MAdds (G), memory',
         'ratio', 'reported, trunk', 'reported, memory'), 't' + 9 * 'n', rows)


def gssdnet_models_table() -> str:
    cost = costs()
    return markdown(('model', 'params (M)', 'MAdds (G)', 'paper, ImageNet'), 'tnnn', [
        (f'`{model}`', f'{cost[model, ""]["params"] / 1e6:.2f}', f'{cost[model, ""]["madds"] / 1e9:.3f}',
         f'{top1[-1]:.1f}') for model, top1 in GSSDNET_PAPER.items()])


def dct_models_table() -> str:
    rows, cost = [], costs()
    for model in timm.list_models('dct_*'):
        own, strided = cost[model, ''], cost.get((model, 'layer2_stride=2'))
        rows.append([
            f'`{model}`', own['input_size'], f'{own["params"] / 1e6:.2f}', f'{own["madds"] / 1e9:.3f}',
            f'{strided["madds"] / 1e9:.3f}' if strided else '',
            f'{DCT_PAPER[model]:.3f}' if model in DCT_PAPER else ''])
    return markdown(('model', 'size', 'params (M)', 'MAdds (G)', 'MAdds (G), stride 2', 'paper'), 'tnnnnn', rows)


def trained_on_imagenet100() -> Dict[str, List[str]]:
    """Top-1 accuracy on ImageNet100 of each network that this project trained on it, with tag and command."""
    found: Dict[str, List[str]] = {}
    for c in checkpoints():
        if c.kind == 'trained' and c.memory and dataset_of(c.tag, c.num_classes) == IMAGENET100:
            found.setdefault(c.model, []).extend(
                f'{value:.2f} ({c.tag}: `{c.command}`)' for metric, data, value in measured_figures(c, IMAGENET100)
                if metric == 'top-1' and data == IMAGENET100)
    return found


def checkpoints_table() -> str:
    rows = []
    for c in checkpoints():
        places = {'package': 'the package', 'hub': c.repo, 'authors': c.source_repo}
        where = ', '.join(places[place] for place in c.places) or 'nowhere yet'
        figures = [f'{value:.2f} ({name})' for name, value in c.reported.items()]
        if c.kind == 'paper' and not c.measured:
            figures.append('not evaluated here')
        figures += [f'{value:.2f} (measured here: {name})' for name, value in c.measured.items() if 'top-5' not in name]
        name = f'`{c.name}`' if c.memory else f'`{c.name}`, `memory=False`'
        rows.append((name, c.kind, where, c.license, c.num_classes, ', '.join(figures) or '-'))
    return markdown(('name', 'kind', 'where', 'license', 'classes', 'accuracy'), 'ttttnt', rows)


def paper_table() -> str:
    """The authors' table of ImageNet100, with the noise of 5,000 images and what was measured here."""
    rows, gains, losses, measured = [], 0, [], trained_on_imagenet100()
    for model, (trunk, memory) in paper_accuracies().items():
        noise = difference_interval(trunk, memory, 5000)[1] - (memory - trunk)
        gains += 0 <= memory - trunk <= noise
        losses += [f'{model} ({memory - trunk:+.2f})'] if memory < trunk else []
        rows.append((f'`{model}`', f'{trunk:.2f}', f'{memory:.2f}', f'{memory - trunk:+.2f}', f'{noise:.2f}',
                     ', '.join(measured.get(model, []))))
    return (f'Of the {len(rows)} differences, {gains} gains are within the noise, and so is the loss, '
            f'{" and ".join(losses)}.\n\n'
            + markdown(('model', 'reported, trunk', 'reported, memory', 'gain', 'noise', 'measured'), 'tnnnnt', rows))


def logs_table() -> str:
    """What the authors' logs say, best epoch with best and last with last."""
    reported = {(c.model, c.memory): c.reported for c in checkpoints() if c.kind == 'paper'}
    rows = []
    for model in dict.fromkeys(model for model, _ in reported):
        (trunk_best, trunk_last), (best, last) = (
            [reported[model, memory][f"authors' log {epoch} epoch"] for epoch in ('best', 'last')]
            for memory in (False, True))
        figures = [f'{value:.2f}' for value in (trunk_last, trunk_best, last, best, reported[model, True][README])]
        rows.append([f'`{model}`', *figures, f'{best - trunk_best:+.2f}', f'{last - trunk_last:+.2f}'])
    return markdown(
        ('model', 'trunk, last', 'trunk, best', 'memory, last', 'memory, best', 'README', 'best - best', 'last - last'),
        't' + 7 * 'n', rows)


GSSDNET_RESULTS_TEXT = """The figures of the GSSDNet paper are top-1 in percent. This project trained three networks
for {epochs} epochs on {images:,} of CIFAR-10's training pictures, {runs} runs each with the same seeds. Its figures are
mean and standard deviation on all 10,000 test pictures. These runs are far too short to compare with the paper's: they
show only how fast the three operators learn side by side. The runs are in `benchmarks/results/gssdnet-cifar10`, and
this command repeats them: `python benchmarks/gssdnet_training.py CIFAR10 --output FOLDER --images-per-class {per_class}
--epochs {epochs}`.
Nothing has been trained on MNIST, CIFAR-100 or ImageNet.

"""


def gssdnet_results_table() -> str:
    runs = read_csv(MEASURED / 'gssdnet-cifar10' / 'results.csv')
    per_class, epochs = int(runs[0]['images_per_class']), int(runs[0]['epochs'])
    rows = []
    for model, reported in GSSDNET_PAPER.items():
        top1 = [float(run['top1']) for run in runs if run['network'] == model]
        measured = f'{statistics.fmean(top1):.2f} ± {statistics.stdev(top1):.2f}' if top1 else ''
        rows.append((f'`{model}`', f'{reported[0]:.2f}', f'{reported[1]:.1f}', f'{reported[2]:.1f}', measured))
    text = GSSDNET_RESULTS_TEXT.format(
        images=10 * per_class, per_class=per_class, epochs=epochs, runs=len({run['seed'] for run in runs}))
    return text + markdown(
        ('model', 'paper, MNIST', 'paper, CIFAR-100', 'paper, ImageNet', 'measured: CIFAR-10, short'), 'tnnnn', rows)


STUDY_SOURCE = """
Made by `python benchmarks/study/run.py benchmarks/study/{plan}.yaml --data {data} --timm TIMM --output FOLDER` and
`python benchmarks/study/report.py {folder} --pictures docs/study/{plan}`.
`{folder}/curves` has a log of every run, epoch by epoch, and `{folder}/runs.csv` its arguments, cost and time.
{weights}
"""

STUDY_WEIGHTS = {
    'imagenette-weights': 'The weights of the last epochs come with the package. Their accuracies in the manifest are '
                          'higher: they were measured with `crop_pct` 0.875, the default of these networks, and those '
                          'above with 1.0, as in the training.'}

STUDY_PICTURES = {
    'curves.png': 'Accuracy by epoch of each arm',
    'lowpass.png': 'Accuracy of each arm on low-pass filtered test images',
    'times.png': 'Accuracy of each arm against the time of its training step',
}


def study_tables() -> str:
    """The report of each plan in benchmarks/study, as far as its runs are finished."""
    text = ''
    report = run_benchmark('study/report.py')['report']
    for file in sorted((ROOT / 'benchmarks' / 'study').glob('*.yaml')):
        folder = MEASURED / 'study' / file.stem
        text += f'\n### {file.stem}\n\n'
        finished = len(read_csv(folder / 'runs.csv'))
        if not finished:
            text += 'Not run yet.\n'
            continue
        plan = yaml.safe_load(file.read_text(encoding='utf-8'))
        arms = sum(len((entry or {}).get('arms', plan.get('arms', ()))) for entry in plan['networks'].values())
        if finished < arms * len(plan['seeds']):
            text += (f'**Not finished: {finished} of {arms * len(plan["seeds"])} runs.** The figures below are '
                     'those of the finished ones.\n\n')
        text += report(folder) + STUDY_SOURCE.format(
            weights=STUDY_WEIGHTS.get(file.stem, 'The weights are not in the package.'), plan=file.stem,
            folder=folder.relative_to(ROOT).as_posix(), data=file.stem.partition('-')[0].upper())
        for name, title in STUDY_PICTURES.items():
            if (ROOT / 'docs' / 'study' / file.stem / name).exists():
                text += f'\n![{title}](study/{file.stem}/{name})\n'
    return text


def fine_tuning_table() -> str:
    """Accuracy after fine-tuning with memory and without, of benchmarks/study/fine_tuning.py."""
    report = run_benchmark('study/report.py')
    study = report['read_study'](MEASURED / 'study' / 'fine-tuning')
    rows = []
    for network in study.arms:
        found = report['difference'](study, network, 'baseline', 'last')
        accuracies = [report['with_deviation']([
            float(study.runs[network, arm, seed]['last_top1']) for seed in study.seeds(network, 'memory', 'baseline')])
            for arm in ('memory', 'baseline')]
        intervals = ['{:+.2f} to {:+.2f}'.format(*ends) for ends in (found.over_seeds, found.over_images)]
        epochs = study.runs[network, 'memory', '0']['epochs']
        rows.append((f'`{network}`', epochs, *accuracies, found.seeds, f'{found.mean:+.2f}', *intervals))
    columns = ('network', 'epochs', 'with memory', 'without', 'seeds', 'points', '95 % over seeds', '95 % over images')
    return markdown(columns, 't' + 7 * 'n', rows)


def imagenet_frequency_table() -> str:
    """Top-1 of five ImageNet networks on filtered photographs, of benchmarks/imagenet_frequency.py."""
    rows = read_csv(MEASURED / 'imagenet-frequency' / 'overall.csv')
    top1 = {(row['model'], row['filter'], float(row['radius'])): float(row['top1']) for row in rows}
    low, high = (12., 24., 48., 90., 159.), (6., 12., 24.)
    columns = ('network', *(f'low-pass {radius:g}' for radius in low[:-1]), 'no filter',
               *(f'high-pass {radius:g}' for radius in high))
    return markdown(columns, 't' + 'n' * (len(columns) - 1), [
        (f'`{model}`', *(f'{top1[model, "lowpass", radius]:.1f}' for radius in low),
         *(f'{top1[model, "highpass", radius]:.1f}' for radius in high))
        for model in dict.fromkeys(row['model'] for row in rows)])


def readme_table() -> str:
    """README.md's table of weights."""
    kinds = {kind: [c for c in checkpoints() if c.kind == kind] for kind in KINDS}
    digits, *photos = kinds['embedded']
    measured = ['{:.2f} % ({}, `{}`)'.format(c.measured[name], name, c.command)
                for c in kinds['embedded'] for name in [next(iter(c.measured))]]
    trained = trained_on_imagenet100()
    warm = [c for c in kinds['warm_start'] if 'authors' not in c.places]
    released = [c for c in kinds['warm_start'] if 'authors' in c.places]
    authors = [c for c in kinds['paper'] if c.memory and c.available]
    def widths(weights: List[Checkpoint]) -> str:
        return ', '.join(f'`{c.name}`' if i == 0 else f'`{c.model[-3:]}`' for i, c in enumerate(weights))

    rows = [
        (widths(authors),
         f'{len(authors)} of {len(paper_accuracies())} networks, and their plain trunks (`memory=False`): '
         "the authors' own ImageNet100 weights, downloaded from their repository, verified and converted when first "
         'used',
         'only width 0.1 was evaluated here, on 50 photos; reported by the authors: ' + ', '.join(
             f'{c.reported[README]:.2f} %' for c in authors)),
        ('trained on ImageNet100 by this project', f'{len(trained)} of {len(paper_accuracies())} networks',
         'in `docs/results.md`' if trained else '-'),
        (f'`{digits.name}`',
         'in the package: a tiny network for tests and demos, which knows handwritten digits only', measured[0]),
        (widths([c for c in photos if c.memory]),
         'in the package, and their plain trunks (`memory=False`): ten classes of photographs, trained by this '
         'project, one run each', '; '.join(measured[1:])),
        (f'`{warm[0].name}` and {len(warm) - 1} more warm starts',
         f"of {len({c.model for c in warm})} networks: timm's ImageNet-1k weights in the trunk, and a memory that has "
         'learned nothing yet', '-'),
        (widths(released), "warm starts too, with the ImageNet-1k weights of d-li14's repository",
         'not evaluated here'),
        (f"`{kinds['initialisation'][0].name}` and {len(kinds['initialisation']) - 1} more",
         "of the networks on DCT coefficients: timm's weights on RGB images, to start a training from; no classifiers",
         '-')]
    return markdown(('weights', 'what there is', 'measured'), 'ttt', [row for row in rows if row[0]])


def cost_cell(result: Dict[str, Any], variant: str, to: str = '') -> str:
    """A ratio of times, with its quartiles, or only those if they do not differ from 1."""
    row = result['variants'][variant]
    low, median, high = (row[f'ratio{to}'][k] for k in ('low', 'median', 'high'))
    quartiles = f'({low:.2f} to {high:.2f})'
    return f'uncertain {quartiles}' if row[f'noise{to}'] else f'{median:.2f} {quartiles}'


def machine_text(measured: Dict[str, Any]) -> str:
    return (f'{measured["threads"]} cores of {measured["machine"].replace("(R)", "")}, torch {measured["torch"]}, '
            f'timm {measured["timm"]}, float32, channels_last, batch {measured["batch_size"]} at 224 x 224')


def cost_summary() -> str:
    """What the memory costs in time, of the two networks of the cost page."""
    inference, training = read_measured('inference'), read_measured('training')
    names = list(inference['results'])
    rows: List[Sequence[Any]] = [
        ('multiply-adds', *(f'{inference["results"][name]["arithmetic"]:.2f}' for name in names))]
    for label, variant in (
            ('inference, as it is', 'memory'), ('inference, `fuse()`', 'fused'),
            ('inference, `fuse(trunk=True)`', 'fused folded'),
            ('inference, `fuse(trunk=True)`, compiled', 'fused folded compiled')):
        rows.append((label, *(cost_cell(inference['results'][name], variant) for name in names)))
    rows.append(('training step', *(cost_cell(training['results'][name], 'memory') for name in names)))
    return markdown(('what', *(f'`{name}`' for name in names)), 't' + len(names) * 'n', rows)


def cost_tables() -> str:
    """What time the memory costs, as benchmarks/speed.py has measured it."""
    inference, training, returned = (
        read_measured(setting) for setting in ('inference', 'training', 'system-malloc'))
    text = f'{machine_text(inference)}.\n\n### Inference\n\n'
    rows: List[Sequence[Any]] = []
    for name, result in inference['results'].items():
        for variant in result['variants']:
            if variant not in ('plain', 'plain compiled'):
                folded = '1' if variant.startswith('plain folded') else cost_cell(result, variant, '_to_folded')
                rows.append((f'`{name}`', variant, cost_cell(result, variant), folded))
    text += markdown(('network', 'variant', 'to the plain trunk as it is', 'to the plain trunk folded'), 'ttnn', rows)
    text += '\nThe same while freed memory returns to the system:\n\n' + markdown(
        ('network', 'variant', 'to the plain trunk'), 'ttn',
        [(f'`{name}`', variant, cost_cell(result, variant)) for name, result in returned['results'].items()
         for variant in result['variants'] if variant != 'plain'])
    variants = [variant for variant in next(iter(training['results'].values()))['variants'] if variant != 'plain']
    text += '\n### A training step\n\n' + markdown(
        ('network', 'multiply-adds', *variants), 't' + 'n' * (len(variants) + 1), [
            (f'`{name}`', f'{result["arithmetic"]:.2f}', *(
                '1' if variant == 'plain saving' else cost_cell(result, variant) for variant in variants))
            for name, result in training['results'].items()])
    commands = dict.fromkeys(r['command'] for m in (inference, returned, training) for r in m['results'].values())
    return (f'{text}\nThe commands, each with `--output FOLDER`:\n\n'
            + ''.join(f'    {command}\n' for command in commands))


def training_memory_table() -> str:
    """Peak memory of a training step, with gradient checkpointing and without."""
    variants = {'memory': 'with memory', 'memory saving': 'with memory, checkpointing', 'plain': 'plain trunk',
                'plain saving': 'plain trunk, checkpointing'}
    return markdown(('network', *variants.values()), 't' + 'n' * len(variants), [
        (f'`{name}`', *(f'{result["variants"][variant]["peak_mib"]:.0f}' for variant in variants))
        for name, result in read_measured('training')['results'].items()])


SEGMENTATION_TEXT = """Narrow networks at half resolution, trained for a few epochs from random weights, with the same
settings and seeds for all variants of a network. These figures show whether the memory helps such networks; they do not
compare with published results on these data sets. *FCN-8s* is built on `mlfm_resnet10` with 16 to 128 channels, *U-Net*
has `base_width=8`, and *memory and decoder* is `memory_decoder=True`. CamVid: 11 classes, 367 images of 240 x 180 to
train on in crops of 160 x 120, {camvid} epochs, 233 test images. ISBI: 24 membranes of 256 x 256 in crops of 128 x 128,
{isbi} epochs, 6 held out. Mean ± standard
deviation over seeds after the last epoch, and the mean difference to the same seeds without memory with its 95 %
interval (Student's t). Data, settings and command: `benchmarks/segmentation.py`; the runs lie in
`benchmarks/results/segmentation`.

"""

SEGMENTATION_COST_TEXT = """
What it costs at {size} x {size}, 21 classes, batch 1, channels_last, torch {torch}: seconds of CPU time on one thread
({machine}), medians of {rounds} rounds in one run. Ratios are medians, with quartiles, of the ratios within each
round, not ratios of the medians of seconds, and may differ from those. `python benchmarks/segmentation_cost.py` repeats
it. Nothing has been measured on a GPU.

"""


def segmentation_tables() -> str:
    """What benchmarks/segmentation.py and benchmarks/segmentation_cost.py have measured."""
    settings = json.loads((MEASURED / 'segmentation' / 'settings.json').read_text())
    text = SEGMENTATION_TEXT.format(**{data: settings[data]['epochs'] for data in ('camvid', 'isbi')})
    text += run_benchmark('segmentation.py')['table'](read_csv(MEASURED / 'segmentation' / 'results.csv'))
    cost = json.loads((MEASURED / 'segmentation-cost' / 'results.json').read_text())
    text += '\n' + SEGMENTATION_COST_TEXT.format(**cost)
    return text + run_benchmark('segmentation_cost.py')['table'](cost['networks']) + '\n'


def jpeg_table() -> str:
    """How fast coefficients are read from files, as benchmarks/jpeg.py has measured it."""
    shares = {row['way']: float(row['jpeglib_share']) for row in read_csv(MEASURED / 'jpeg' / 'jpeglib.csv')}
    rows = json.loads((MEASURED / 'jpeg' / 'results.json').read_text())['rows']
    return markdown(
        ('what is read', 'images per second', 'ratio', 'bytes to the device', "jpeglib's share of CPU time"), 'tnnnn', [
            (row['way'], f'{row["images_per_second"]:.0f}', f'{row["ratio"]:.2f}', f'{row["bytes"]:,}',
             f'{100 * shares[row["way"]]:.0f} %') for row in rows])


COUNTED_TIMM = '1.0.31'

# Files of timm whose networks are convolutional, and the networks that are what the others of their file are not.
CONVOLUTIONAL_FILES = (
    'byobnet', 'convmixer', 'convnext', 'cspnet', 'cspnext', 'densenet', 'dla', 'dpn', 'efficientnet', 'fasternet',
    'focalnet', 'ghostnet', 'hardcorenas', 'hgnet', 'hrnet', 'inception_next', 'inception_resnet_v2', 'inception_v3',
    'inception_v4', 'lcnetv2', 'mambaout', 'metaformer', 'mobilenetv3', 'nasnet', 'nfnet', 'pnasnet', 'rdnet', 'regnet',
    'repghost', 'repvit', 'res2net', 'resnest', 'resnet', 'resnetv2', 'rexnet', 'selecsls', 'senet', 'sknet', 'starnet',
    'tresnet', 'vgg', 'vovnet', 'xception', 'xception_aligned',
)
EXCEPTIONS = ('bat_*', 'caformer_*', 'mobilenetv4_hybrid_*', 'fastvit_s12', 'fastvit_t*', 'lowformer_e[12]')

ATTACH_TEXT = """**{taken} of the {total} convolutional networks** of timm {timm} take a memory: all those of the
classes below. So do {attention_taken} of the {attention} networks of these classes that have attention in some
stages, all but MobileViTv2, whose blocks enlarge maps of odd sides. `mlfm_zoo.supports_memory(model)` says whether a
model takes one, and why not.

A network counts as convolutional if, before its head, only convolutions and pooling combine different positions of its
feature maps: it has no attention between positions, no layer over a fixed grid of them, and no recurrence. Gates such
as squeeze-and-excitation and global context are pooling in this sense. `python scripts/make_tables.py`
counts, and lists the files of timm that hold such networks. `python -m pytest -m slow tests/memory/test_attach.py`
attaches a memory to each network of the classes below, on the meta device, and compares the sizes of its maps with the
trunk's, for images of even sides and of those odd ones that the trunk takes.

"""


def attach_table() -> str:
    """Count timm's convolutional networks that take a memory, by their classes."""
    files: Dict[str, List[str]] = {}
    for name in timm.list_models():
        package, _, file = timm.models.model_entrypoint(name).__module__.rpartition('.')
        if package == 'timm.models':
            files.setdefault(file, []).append(name)
    taking: Dict[str, Dict[bool, List[str]]] = {}  # class, and whether convolutional
    others: Dict[str, int] = {}
    in_files: Dict[str, List[str]] = {}
    for file, names in files.items():
        kinds: Dict[bool, List[str]] = {True: [], False: []}
        for name in names:
            kinds[(file in CONVOLUTIONAL_FILES) != any(fnmatch(name, e) for e in EXCEPTIONS)].append(name)
        # all networks of a file that is of interest here are of one class, which most of its functions say
        said = {timm.models.model_entrypoint(name).__annotations__.get('return') for name in names} - {None}
        cls = said.pop() if said else type(timm.create_model(names[0], device='meta'))
        if cls in FAMILIES:
            in_files.setdefault(cls.__name__, []).append(file)
            for kind, found in kinds.items():
                taking.setdefault(cls.__name__, {True: [], False: []})[kind].extend(found)
        elif kinds[True]:
            others[cls.__name__] = others.get(cls.__name__, 0) + len(kinds[True])
    attention = [name for kinds in taking.values() for name in kinds[False]]
    refused = [name for name in attention if not mlfm_zoo.supports_memory(name)]
    assert all(name.startswith('mobilevitv2_') for name in refused)
    taken = sum(len(kinds[True]) for kinds in taking.values())
    rows = [(cls, len(kinds[True]), len(kinds[False]), ', '.join(in_files[cls]))
            for cls, kinds in sorted(taking.items(), key=lambda item: -len(item[1][True]))]
    listed = [f'{cls} ({count})' for cls, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
    return (
        ATTACH_TEXT.format(
            taken=taken, total=taken + sum(others.values()), timm=timm.__version__,
            attention_taken=len(attention) - len(refused), attention=len(attention))
        + markdown(('class', 'convolutional networks', 'with attention', "in timm's files"), 'tnnt', rows)
        + f'\nThe other {sum(others.values())} convolutional networks are of classes that take none yet: '
        f'{", ".join(listed)}.\n')


def deploy_tables() -> str:
    """Time in inference engines; draws its picture too."""
    return run_benchmark('deploy.py')['docs_tables'](ROOT / 'benchmarks/results/deploy', ROOT / 'docs/deploy.png')


TABLES: Dict[str, Callable[[], str]] = {
    'README': readme_table,
    'models': models_table,
    'gssdnet_models': gssdnet_models_table,
    'dct_models': dct_models_table,
    'checkpoints': checkpoints_table,
    'paper': paper_table,
    'logs': logs_table,
    'studies': study_tables,
    'fine_tuning_study': fine_tuning_table,
    'imagenet_frequency': imagenet_frequency_table,
    'gssdnet_results': gssdnet_results_table,
    'cost': cost_tables,
    'cost_summary': cost_summary,
    'training_memory': training_memory_table,
    'segmentation': segmentation_tables,
    'jpeg': jpeg_table,
    'deploy': deploy_tables,
    'attach': attach_table,
    'weights': attach_table,
}


def with_tables(page: Path) -> str:
    """The text of a page with its tables made again."""
    def make(found: re.Match) -> str:
        table = TABLES[found[2] or page.stem]
        if table is attach_table and timm.__version__ != COUNTED_TIMM:
            return found[0]
        return f'{found[1]}{table()}{found[3]}'

    return TABLE.sub(make, page.read_text(encoding='utf-8'))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, exit with 1 if a file is out of date')
    parser.add_argument('--recount', action='store_true', help='build all networks and count them again')
    args = parser.parse_args()
    made = result_files(args.recount)
    if not args.check:
        write(made)  # first, as the tables read networks.csv
    made.update({page: with_tables(page) for page in (ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')))})
    if args.check:
        stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding='utf-8') != text]
        print(*(f'{path} is out of date' for path in stale), sep='\n')
        return int(bool(stale))
    write(made)
    return 0


def write(texts: Dict[Path, str]) -> None:
    """Write the files that have changed, and print their names."""
    for path, text in texts.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding='utf-8') != text:
            with written_whole(path) as unfinished:
                unfinished.write_text(text, encoding='utf-8')
            print(path)


if __name__ == '__main__':
    sys.exit(main())
