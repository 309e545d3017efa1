"""Write the tables of README.md and of the docs: models, checkpoints, results, cost, weights and segmentation.

    python scripts/make_tables.py [--check]

Multiply-adds are those of convolutions and linear layers for one image of the size in the table, half of what torch's
own FlopCounterMode counts. Nothing is computed: the networks are built on the meta device. The checkpoints are those of
weights_manifest.yaml, and so are the accuracies that the paper reports. What time the memory costs was measured by
benchmarks/speed.py and lies in benchmarks/results, and so do the runs of benchmarks/gssdnet_training.py and
benchmarks/study. How many of timm's networks take a memory is counted for one version of timm, and left as it stands
where another is installed. With --check nothing is written, and the exit code says whether the files are up to date.
"""

import argparse
import csv
import json
import runpy
import statistics
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Dict, List

import timm
import yaml

import mlfm_zoo
from mlfm_zoo.hub.manifest import KINDS, manifest_path, paper_accuracies, read_manifest
from mlfm_zoo.memory.attach import FAMILIES
from mlfm_zoo.workflow.collect import difference_interval
from mlfm_zoo.workflow.cost import count_cost

ROOT = Path(__file__).parents[1]
README = "authors' README"  # whose figures are those of the paper's table
DOCS = ROOT / 'docs'


def run_benchmark(script: str) -> Dict[str, Any]:
    """Return what a script of benchmarks/ defines; such scripts import each other from that folder."""
    folder = str(ROOT / 'benchmarks')
    if folder not in sys.path:
        sys.path.append(folder)
    return runpy.run_path(str(Path(folder, script)))


MODELS_HEADER = """# The networks

All 34 networks of the paper's table, 100 classes. *Memory* is the network as registered, *trunk* the same with
`memory=False`, which is timm's own network where timm has it. Multiply-adds are those of convolutions and linear layers
for one image of the size given. *Paper* is the ImageNet100 top-1 accuracy that the authors report, trunk and memory; it
is not evaluated by this project. Of this table the five MobileNetV2 have [weights](checkpoints.md), the authors' own.

This page is made by `python scripts/make_tables.py`, and a test fails when it is out of date.

"""

COLUMNS = (
    'model', 'size', 'params (M), trunk', 'params (M), memory', 'ratio',
    'MAdds (G), trunk', 'MAdds (G), memory', 'ratio', 'paper, trunk', 'paper, memory',
)


def row(name: str) -> str:
    size = timm.get_pretrained_cfg_value(name, 'input_size')[-1]
    params, madds, *_ = count_cost(name, memory=False)
    memory_params, memory_madds, *_ = count_cost(name)
    cells = [
        f'`{name}`', size,
        f'{params / 1e6:.2f}', f'{memory_params / 1e6:.2f}', f'{memory_params / params:.2f}',
        f'{madds / 1e9:.3f}', f'{memory_madds / 1e9:.3f}', f'{memory_madds / madds:.2f}',
        *(f'{accuracy:.2f}' for accuracy in paper_accuracies()[name]),
    ]
    return f'| {" | ".join(map(str, cells))} |\n'


def models_page() -> str:
    names = list(paper_accuracies())
    registered = timm.list_models('mlfm_*', exclude_filters='mlfm_filtered')
    assert set(names) == set(registered), f'mlfm_zoo {mlfm_zoo.__version__} has other networks'
    rule = '| --- |' + ' --: |' * (len(COLUMNS) - 1)
    table = f'{MODELS_HEADER}| {" | ".join(COLUMNS)} |\n{rule}\n' + ''.join(map(row, names))
    table += GSSDNET_MODELS_HEADER + ''.join(gssdnet_row(name) for name in GSSDNET_PAPER)
    return table + DCT_MODELS_HEADER + ''.join(dct_row(name) for name in timm.list_models('dct_*'))


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

GSSDNET_MODELS_HEADER = """
## GSSDNet and VanillaNet

Networks without memory, 1,000 classes at 224; [GSSDNet](gssdnet.md) says what they are. Fixed kernels are no
parameters. None has weights: the authors released none, and this project has trained none for use.

| model | params (M) | MAdds (G) | paper, ImageNet |
| --- | --: | --: | --: |
"""


def gssdnet_row(name: str) -> str:
    cost = count_cost(name)
    return f'| `{name}` | {cost.params / 1e6:.2f} | {cost.madds / 1e9:.3f} | {GSSDNET_PAPER[name][-1]:.1f} |\n'


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

DCT_MODELS_HEADER = """
## Networks on DCT coefficients

1,000 classes; [DCT](dct.md) says what they are. Multiply-adds are with the stem's. *Stride 2* is with
`layer2_stride=2`, as in the paper's figure. *Paper* is the ImageNet top-1 accuracy that the paper reports, beside
75.780 for ResNet50 and 71.702 for MobileNetV2 on RGB at 224; this project has evaluated none of it, and no network has
weights that answer.

| model | size | params (M) | MAdds (G) | MAdds (G), stride 2 | paper |
| --- | --: | --: | --: | --: | --: |
"""


def dct_row(name: str) -> str:
    cost = count_cost(name)
    has_strides = 'resnet' in name and 'ycbcr' not in name
    strided = f'{count_cost(name, layer2_stride=2).madds / 1e9:.3f}' if has_strides else ''
    paper = f'{DCT_PAPER[name]:.3f}' if name in DCT_PAPER else ''
    return (f'| `{name}` | {cost.input_size[-1]} | {cost.params / 1e6:.2f} | {cost.madds / 1e9:.3f} | {strided} | '
            f'{paper} |\n')


GSSDNET_RESULTS_HEADER = """
## GSSDNet and VanillaNet

What their paper reports (top-1 in percent), and what this project measured: {images:,} of CIFAR-10's training pictures,
{epochs} epochs, {runs} runs each of the same seeds, mean and standard deviation on all 10,000 test pictures. These runs
are far too short to be set beside the paper's figures; they show how fast the three operators learn side by side, no
more. `python benchmarks/gssdnet_training.py CIFAR10 --output FOLDER --images-per-class {per_class} --epochs {epochs}`
repeats them; the runs lie in `benchmarks/results/gssdnet-cifar10`. Nothing has been trained on MNIST, CIFAR-100 or
ImageNet.

| model | paper, MNIST | paper, CIFAR-100 | paper, ImageNet | measured: CIFAR-10, short |
| --- | --: | --: | --: | --: |
"""


def gssdnet_results() -> str:
    with open(ROOT / 'benchmarks' / 'results' / 'gssdnet-cifar10' / 'results.csv', newline='') as f:
        runs = list(csv.DictReader(f))
    per_class, epochs = int(runs[0]['images_per_class']), int(runs[0]['epochs'])
    lines = []
    for name, reported in GSSDNET_PAPER.items():
        top1 = [float(run['top1']) for run in runs if run['network'] == name]
        measured = f'{statistics.fmean(top1):.2f} ± {statistics.stdev(top1):.2f}' if top1 else ''
        lines.append(f'| `{name}` | {reported[0]:.2f} | {reported[1]:.1f} | {reported[2]:.1f} | {measured} |\n')
    header = GSSDNET_RESULTS_HEADER.format(
        images=10 * per_class, per_class=per_class, epochs=epochs, runs=len({run['seed'] for run in runs}))
    return header + ''.join(lines)


CHECKPOINTS_HEADER = """# The checkpoints

All weights that exist for these networks, from `weights_manifest.yaml`. `mlfm-zoo list` prints the same list,
`info MODEL.TAG` all that is known of one. What is not listed does not exist: no network has been trained on ImageNet100
by this project yet. This page is made by `python scripts/make_tables.py`.

- **embedded**: the weights come with the package.
- **paper**: the authors' own, released as pickles in their repository. `pretrained=True` [downloads, verifies and
  converts](weights.md) one when it is first used. The accuracies are the authors', on ImageNet100's 5,000 validation
  images; this project has none of these images and has not evaluated them, but for a look at 50 photos with width 0.1.
- **warm_start**: timm's ImageNet-1k weights in the trunk, memory at identity. They come from timm's repositories, whose
  commits and digests this project does not know: a file is compared with the SHA-256 that the Hub gives for it, not
  with one of this manifest.
- **initialisation**: timm's ImageNet-1k weights of a network on RGB images, from the same repositories, from which one
  on [DCT coefficients](dct.md) starts its training. It answers nothing before, and no command takes it for a
  classifier.

| name | kind | where | licence | classes | top-1 |
| --- | --- | --- | --- | --: | --- |
"""


def checkpoints_page() -> str:
    rows = []
    for c in read_manifest(manifest_path()).checkpoints.values():
        places = {'package': 'the package', 'hub': c.repo, 'authors': c.source_repo}
        where = ', '.join(places[place] for place in c.places) or 'nowhere yet'
        figures = [f'{value:.2f} ({name})' for name, value in c.reported.items()]
        if c.kind == 'paper' and not c.measured:
            figures.append('not evaluated here')
        figures += [f'{value:.2f} (measured here: {name})' for name, value in c.measured.items() if 'top-5' not in name]
        name = f'`{c.name}`' if c.memory else f'`{c.name}`, `memory=False`'
        rows.append(f'| {name} | {c.kind} | {where} | {c.license} | {c.num_classes} | {", ".join(figures) or "-"} |\n')
    return CHECKPOINTS_HEADER + ''.join(rows)


RESULTS_HEADER = """# Results

Top-1 accuracy in percent: what the paper reports, what the authors' logs say, and what this project measured. This page
is made by `python scripts/make_tables.py` from `weights_manifest.yaml` and `benchmarks/results`.

## MLFM on ImageNet100: the paper's table

None of the paper's figures is evaluated by this project. *Noise* is the difference under which two independent
accuracies on the 5,000 validation images are not told apart, with 95 % confidence. There is one run of each network: of
the {total} gains, {small} are within it, and {losses} is a loss. *Measured* is of this
project's own training; where it is empty, nothing has been trained yet.

| model | paper, trunk | paper, memory | gain | noise | measured |
| --- | --: | --: | --: | --: | --- |
"""

LOGS_HEADER = """
## The authors' logs

The authors' repository holds logs of MobileNetV2, one run each, 150 epochs. Its README, and the paper's table, set the
*last* epoch of the trunk alone against the *best* epoch with memory, for widths 0.35 to 1.0. Best with best, and last
with last, the gains are these:

| model | trunk, last | trunk, best | memory, last | memory, best | README | best - best | last - last |
| --- | --: | --: | --: | --: | --: | --: | --: |
"""

RESULTS_FOOTER = """
`mlfm-zoo collect` reports runs of timm's train.py in this way: best with best and last with last, with the
interval for the number of validation images, and mean and deviation over seeds. See [training](training.md).
"""


def results_page() -> str:
    checkpoints = read_manifest(manifest_path()).checkpoints.values()
    rows, small, losses = [], 0, []
    for model, (trunk, memory) in paper_accuracies().items():
        noise = difference_interval(trunk, memory, 5000)[1] - (memory - trunk)
        small += abs(memory - trunk) <= noise
        losses += [f'{model} ({memory - trunk:+.2f})'] if memory < trunk else []
        measured = [f'{value:.2f} ({c.tag}: `{c.command}`)' for c in checkpoints
                    if c.model == model and c.kind == 'trained' for value in c.measured.values()]
        rows.append(f'| `{model}` | {trunk:.2f} | {memory:.2f} | {memory - trunk:+.2f} | {noise:.2f} | '
                    f'{", ".join(measured)} |\n')
    header = RESULTS_HEADER.format(total=len(rows), small=small, losses=' and '.join(losses))
    logs = []
    reported = {(c.model, c.memory): c.reported for c in checkpoints if c.kind == 'paper'}
    for c in checkpoints:
        if c.kind == 'paper' and c.memory:
            (trunk_best, trunk_last), (best, last) = (
                [reported[c.model, memory][f"authors' log {epoch} epoch"] for epoch in ('best', 'last')]
                for memory in (False, True))
            readme = c.reported[README]
            logs.append(f"| `{c.model}` | {trunk_last:.2f} | {trunk_best:.2f} | {last:.2f} | {best:.2f} | "
                        f"{readme:.2f} | {best - trunk_best:+.2f} | "
                        f"{last - trunk_last:+.2f} |\n")
    return header + ''.join(rows) + LOGS_HEADER + ''.join(logs) + RESULTS_FOOTER + study_results() + gssdnet_results()


STUDY_HEADER = """
## Measured, not reported: does the memory help?

Each network with memory, without (*baseline*), and without but widened to the memory's multiply-adds (*wide*),
trained by timm's train.py with the same settings, epochs and seeds. `benchmarks/study/README.md` says how to read the
tables. The train.py is that of timm's commit aa4b585. Seconds an epoch were taken while other work ran on the machine:
[cost](cost.md) has times measured with care.
"""

STUDY_SOURCE = """
Made by `python benchmarks/study/run.py benchmarks/study/{plan}.yaml --data {data} --timm TIMM --output FOLDER` and
`python benchmarks/study/report.py {folder} --pictures docs/study/{plan}`.
A log of every run, epoch by epoch, lies in `{folder}/curves`; its arguments, cost and time are in `runs.csv` beside
them. The weights are not published.
"""

STUDY_PICTURES = {
    'curves.png': 'Accuracy by epoch of each arm',
    'lowpass.png': 'Accuracy of each arm on low-pass filtered test images',
    'times.png': 'Accuracy of each arm against the time of its training step',
}


def study_results() -> str:
    text = STUDY_HEADER
    report = run_benchmark('study/report.py')['report']
    for plan in sorted((ROOT / 'benchmarks' / 'study').glob('*.yaml')):
        folder = ROOT / 'benchmarks' / 'results' / 'study' / plan.stem
        text += f'\n### {plan.stem}\n\n'
        if not (folder / 'runs.csv').exists():
            text += 'Not run yet.\n'
            continue
        contents = yaml.safe_load(plan.read_text(encoding='utf-8'))
        planned = len(contents['seeds']) * sum(len(entry['arms']) for entry in contents['networks'].values())
        finished = len((folder / 'runs.csv').read_text(encoding='utf-8').splitlines()) - 1
        if finished < planned:
            text += f'**Not finished: {finished} of {planned} runs.** What follows will change.\n\n'
        text += report(folder) + STUDY_SOURCE.format(
            plan=plan.stem, folder=folder.relative_to(ROOT).as_posix(), data=plan.stem.partition('-')[0].upper())
        for name, title in STUDY_PICTURES.items():
            if (ROOT / 'docs' / 'study' / plan.stem / name).exists():
                text += f'\n![{title}](study/{plan.stem}/{name})\n'
    return text


MARKS = '<!-- made by scripts/make_tables.py -->\n', '<!-- end of what it made -->\n'


def between_marks(page: Path, made: str) -> str:
    """A page with what stands between its two marks made anew."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f'{before}{MARKS[0]}{made}{MARKS[1]}{after}'


def readme() -> str:
    """README.md with its table of weights, between two marks, made anew."""
    checkpoints = read_manifest(manifest_path()).checkpoints.values()
    kinds = {
        kind: [c for c in checkpoints if c.kind == kind] for kind in KINDS}
    measured = ', '.join(
        f'{value:.2f} % ({name}, `{c.command}`)' for c in kinds['embedded'] for name, value in c.measured.items())
    trained = len({c.model for c in kinds['trained']})
    warm = kinds['warm_start']
    authors = [c for c in kinds['paper'] if c.memory and c.available]
    rows = [
        (', '.join(f'`{c.name}`' if i == 0 else f'`{c.model[-3:]}`' for i, c in enumerate(authors)),
         f'{len(authors)} of {len(paper_accuracies())} networks, and their plain trunks (`memory=False`): '
         "the authors' own ImageNet100 weights, downloaded from their repository, verified and converted when first "
         'used',
         'not evaluated here but for 50 photos with width 0.1; reported by the authors: ' + ', '.join(
             f'{c.reported[README]:.2f} %' for c in authors)),
        ('trained on ImageNet100 by this project', f'{trained} of {len(paper_accuracies())} networks', '-'),
        (', '.join(f'`{c.name}`' for c in kinds['embedded']),
         'in the package: a tiny network for tests and demos, which knows handwritten digits only', measured),
        (f'`{warm[0].name}` and {len(warm) - 1} more warm starts',
         f"of {len({c.model for c in warm})} networks: timm's ImageNet-1k weights in the trunk, and a memory that has "
         'learnt nothing yet', '-'),
        (f"`{kinds['initialisation'][0].name}` and {len(kinds['initialisation']) - 1} more",
         "of the networks on DCT coefficients: timm's weights on RGB images, to start a training from; no classifiers",
         '-'),
    ]
    table = '| weights | what there is | measured |\n| --- | --- | --- |\n'
    table += ''.join(f'| {" | ".join(r)} |\n' for r in rows)
    return between_marks(ROOT / 'README.md', table)


SETTINGS = {  # folders of benchmarks/results, of two networks
    'compiled': 'inference',
    'system-malloc': 'inference, memory returned to the system',
    'latency': 'inference, batch 1',
    'bfloat16': 'inference, bfloat16 autocast',
    'bfloat16-weights': 'inference, bfloat16 weights',
    'training-saving': 'training step',
}


SMALL_TRAINING = {  # the same, of a training step at batch 128 and 64 x 64
    'training-64-system-malloc': 'returned to the system, as by default',
    'training-64': 'kept, as with `--keep-memory`',
}


def read_measured(setting: str) -> Dict[str, Any]:
    """What benchmarks/speed.py has written, with its results by network."""
    measured = json.loads((ROOT / 'benchmarks' / 'results' / setting / 'results.json').read_text())
    return dict(measured, results={r['model']: r for r in measured['results']})


def cost_cell(result: Dict[str, Any], variant: str, to: str = '') -> str:
    row = result['variants'][variant]
    low, median, high = (row[f'ratio{to}'][k] for k in ('low', 'median', 'high'))
    quartiles = f'({low:.2f} to {high:.2f})'
    return f'noise {quartiles}' if row[f'noise{to}'] else f'**{median:.2f}** {quartiles}'


def machine_text(measured: Dict[str, Any]) -> str:
    return (f'{measured["threads"]} cores of {measured["machine"].replace("(R)", "")}, torch {measured["torch"]}, '
            f'timm {measured["timm"]}')


def folded_table(measured: Dict[str, Any]) -> List[str]:
    """Trunks folded too, each ratio to the plain trunk as it is, and apart from it to the plain trunk folded."""
    lines = [
        '\nInference with the trunk folded too: *fused folded* is `fuse(trunk=True)`, *plain folded* is `fuse_trunk` '
        'on the plain trunk, and what is compiled is set against what is compiled.\n\n'
        '| network | variant | to the plain trunk as it is | to the plain trunk folded |\n| --- | --- | --: | --: |\n']
    for name, result in measured['results'].items():
        for variant in result['variants']:
            if variant not in ('plain', 'plain compiled'):
                folded = '1' if variant.startswith('plain folded') else cost_cell(result, variant, '_to_folded')
                lines.append(f'| `{name}` | {variant} | {cost_cell(result, variant)} | {folded} |\n')
    return lines


def cost_page() -> str:
    """docs/cost.md with its tables of measured times, between two marks, made anew."""
    measured = {setting: read_measured(setting) for setting in (*SETTINGS, 'folded', *SMALL_TRAINING)}
    names = list(measured['compiled']['results'])
    heads = [f'`{name}`' for name in names]
    lines = [
        f'### Two networks\n\n{machine_text(measured["compiled"])}, '
        'float32 where nothing else is said, channels_last, batch 8 at 224 x 224.\n\n',
        f'| setting | variant | {" | ".join(heads)} |\n| --- | --- |{" --: |" * len(names)}\n',
        '| multiply-adds | memory |',
        *(f' {measured["compiled"]["results"][n]["arithmetic"]:.2f} |' for n in names), '\n']
    for setting, label in SETTINGS.items():
        results = measured[setting]['results']
        for variant in results[names[0]]['variants']:
            if not variant.startswith('plain'):
                cells = [cost_cell(results[name], variant) for name in names]
                lines.append(f'| {label} | {variant} | {" | ".join(cells)} |\n')
    lines += folded_table(measured['folded'])
    lines.append('\nPeak memory of a training step, MiB beside weights and images:\n\n'
                 f'| variant | {" | ".join(heads)} |\n| --- |{" --: |" * len(names)}\n')
    results = measured['training-saving']['results']
    for variant in results[names[0]]['variants']:
        cells = [f'{results[name]["variants"][variant]["peak_mib"]:.0f}' for name in names]
        lines.append(f'| {variant} | {" | ".join(cells)} |\n')
    lines.append('\nA training step at batch 128 and 64 x 64:\n\n'
                 '| freed memory is | network | variant | to plain | peak (MiB) | page faults |\n'
                 '| --- | --- | --- | --: | --: | --: |\n')
    for setting, label in SMALL_TRAINING.items():
        for name, result in measured[setting]['results'].items():
            for variant, row in result['variants'].items():
                ratio = '1' if variant == 'plain' else cost_cell(result, variant)
                lines.append(f'| {label} | `{name}` | {variant} | {ratio} | {row["peak_mib"]:.0f} | '
                             f'{row["page_faults"]} |\n')
    measured.update({setting: read_measured(setting) for setting in ('inference', 'training')})
    inference, training = measured['inference'], measured['training']
    worst = {}
    for variant in ('fused', 'memory'):
        worst[variant] = max(
            (r['variants'][variant]['ratio']['median'] / r['arithmetic'], n) for n, r in inference['results'].items())
    lines.append(f'\n### All networks\n\n{machine_text(inference)}, the rest as above, in runs of their own. '
                 f'At the most a fused network takes {worst["fused"][0]:.2f} times its ratio of multiply-adds '
                 f'(`{worst["fused"][1]}`), and one that is not fused {worst["memory"][0]:.2f} times '
                 f'(`{worst["memory"][1]}`).\n\n'
                 '![Time against multiply-adds](cost.png)\n\n'
                 '| network | multiply-adds | memory | fused | fused / multiply-adds | wavelets | training step |\n'
                 '| --- | --: | --: | --: | --: | --: | --: |\n')
    for name, result in sorted(inference['results'].items()):
        fused = result['variants']['fused']['ratio']['median'] / result['arithmetic']
        cells = [
            f'`{name}`', f'{result["arithmetic"]:.2f}', cost_cell(result, 'memory'), cost_cell(result, 'fused'),
            f'{fused:.2f}', cost_cell(result, 'wavelets'), cost_cell(training['results'][name], 'memory')]
        lines.append(f'| {" | ".join(cells)} |\n')
    lines.append('\nThe commands, each with `--output FOLDER`:\n\n')
    commands = dict.fromkeys(r['command'] for m in measured.values() for r in m['results'].values())
    lines += [f'    {command}\n' for command in commands]
    return between_marks(DOCS / 'cost.md', ''.join(lines))


SEGMENTATION_TEXT = """Narrow networks at half resolution, a few epochs from nothing, the same settings and seeds for
all variants of a network: these figures say whether the memory helps such networks, and are no results on these data
sets. *FCN-8s* stands on `mlfm_resnet10` with 16 to 128 channels, *U-Net* has `base_width=8`; *memory and decoder* is
`memory_decoder=True`. CamVid: 11 classes, 367 images of 240 x 180 to train on in crops of 160 x 120, {camvid} epochs,
233 test images. ISBI: 24 membranes of 256 x 256 in crops of 128 x 128, {isbi} epochs, 6 held out. Mean ± standard
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


def segmentation_page() -> str:
    """docs/segmentation.md with what was measured, between two marks, made anew."""
    results = ROOT / 'benchmarks' / 'results'
    settings = json.loads((results / 'segmentation' / 'settings.json').read_text())
    text = SEGMENTATION_TEXT.format(**{data: settings[data]['epochs'] for data in ('camvid', 'isbi')})
    with open(results / 'segmentation' / 'results.csv', newline='') as f:
        text += run_benchmark('segmentation.py')['table'](list(csv.DictReader(f)))
    cost = json.loads((results / 'segmentation-cost' / 'results.json').read_text())
    text += '\n' + SEGMENTATION_COST_TEXT.format(**cost)
    text += run_benchmark('segmentation_cost.py')['table'](cost['networks']) + '\n'
    return between_marks(DOCS / 'segmentation.md', text)


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

A network counts as convolutional if nothing but convolutions and pooling carries anything from one place of its maps to
another, before its head: it has no attention between places, no layer over a fixed grid of them, and no recurrence.
Gates such as squeeze-and-excitation and global context are pooling in this sense. `python scripts/make_tables.py`
counts, and lists the files of timm that hold such networks. `python -m pytest -m slow tests/memory/test_attach.py`
attaches a memory to each network of the classes below, on the meta device, and compares the sizes of its maps with the
trunk's, for images of even sides and of those odd ones that the trunk takes.

| class | convolutional networks | with attention | in timm's files |
| --- | --: | --: | --- |
"""


def attach_page() -> str:
    """docs/weights.md with its count of the networks that take a memory, between two marks, made anew."""
    page = DOCS / 'weights.md'
    if timm.__version__ != COUNTED_TIMM:
        return page.read_text()
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
    text = ATTACH_TEXT.format(
        taken=taken, total=taken + sum(others.values()), timm=timm.__version__,
        attention_taken=len(attention) - len(refused), attention=len(attention))
    for cls, kinds in sorted(taking.items(), key=lambda item: -len(item[1][True])):
        text += f'| {cls} | {len(kinds[True])} | {len(kinds[False])} | {", ".join(in_files[cls])} |\n'
    listed = [f'{cls} ({count})' for cls, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
    text += f'\nThe other {sum(others.values())} convolutional networks are of classes that take none yet: '
    text += f'{", ".join(listed)}.\n'
    return between_marks(page, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, exit with 1 if a file is out of date')
    args = parser.parse_args()
    pages = {
        ROOT / 'README.md': readme(), DOCS / 'models.md': models_page(), DOCS / 'checkpoints.md': checkpoints_page(),
        DOCS / 'results.md': results_page(), DOCS / 'cost.md': cost_page(), DOCS / 'weights.md': attach_page(),
        DOCS / 'segmentation.md': segmentation_page()}
    if args.check:
        return int(any(not path.exists() or path.read_text() != made for path, made in pages.items()))
    for path, made in pages.items():
        unfinished = path.with_suffix('.tmp')
        unfinished.write_text(made)
        unfinished.replace(path)
        print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
