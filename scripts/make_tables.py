"""Write the tables of README.md and of the docs: docs/models.md and docs/checkpoints.md.

    python scripts/make_tables.py [--check]

Multiply-adds are those of convolutions and linear layers for one image of the size in the table, half of what torch's
own FlopCounterMode counts. Nothing is computed: the networks are built on the meta device. The checkpoints are those of
weights_manifest.yaml, and so are the accuracies that the paper reports. With --check nothing is written, and the exit code says whether the files are up to date.
"""

import argparse
import sys
from pathlib import Path

import timm

import mlfm_zoo
from mlfm_zoo.cost import count_cost
from mlfm_zoo.hub.manifest import manifest_path, paper_accuracies, read_manifest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'

MODELS_HEADER = """# The networks

All 34 networks of the paper's table, 100 classes. *Memory* is the network as registered, *trunk* the same with
`memory=False`, which is timm's own network where timm has it. Multiply-adds are those of convolutions and linear layers
for one image of the size given. *Paper* is the ImageNet100 top-1 accuracy that the authors report, trunk and memory; it
is not measured by this project. No network of this table has trained weights in this package yet.

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
    assert set(names) == set(timm.list_models('mlfm_*')), f'mlfm_zoo {mlfm_zoo.__version__} has other networks'
    rule = '| --- |' + ' --: |' * (len(COLUMNS) - 1)
    return f'{MODELS_HEADER}| {" | ".join(COLUMNS)} |\n{rule}\n' + ''.join(map(row, names))


CHECKPOINTS_HEADER = """# The checkpoints

All weights that exist for these networks, from `weights_manifest.yaml`. `python -m mlfm_zoo list` prints the same list,
`info MODEL.TAG` all that is known of one. What is not listed does not exist: no network has been trained on ImageNet100
by this project yet. This page is made by `python scripts/make_tables.py`.

- **embedded**: the weights come with the package.
- **paper**: the authors' own, released as pickles. They are not published in a form that `pretrained=True` loads;
  [convert](fidelity.md) makes one. Reported figures are the authors'.
- **warm_start**: timm's ImageNet-1k weights in the trunk, memory at identity. They come from timm's repositories, whose
  commits and digests this project does not know: a file is compared with the SHA-256 that the Hub gives for it, not
  with one of this manifest.

| name | kind | where | licence | classes | reported top-1 |
| --- | --- | --- | --- | --: | --- |
"""


def checkpoints_page() -> str:
    rows = []
    for c in read_manifest(manifest_path()).checkpoints.values():
        where = c.repo if c.repo else 'the package' if c.kind == 'embedded' else f'{c.source_repo}, not published'
        figures = c.measured if c.kind == 'embedded' else c.reported
        reported = ', '.join(f'{value:.2f} ({name})' for name, value in figures.items())
        rows.append(f'| `{c.name}` | {c.kind} | {where} | {c.license} | {c.num_classes} | {reported or "-"} |\n')
    return CHECKPOINTS_HEADER + ''.join(rows)


README_MARKS = '<!-- made by scripts/make_tables.py -->\n', '<!-- end of what it made -->\n'


def readme() -> str:
    """README.md with its table of weights, between two marks, made anew."""
    checkpoints = read_manifest(manifest_path()).checkpoints.values()
    kinds = {kind: [c for c in checkpoints if c.kind == kind] for kind in ('embedded', 'trained', 'paper', 'warm_start')}
    measured = ', '.join(
        f'{value:.2f} % ({name}, `{c.command}`)' for c in kinds['embedded'] for name, value in c.measured.items())
    trained = len({c.model for c in kinds['trained']})
    warm = kinds['warm_start']
    rows = [
        ('trained on ImageNet100 by this project', f'{trained} of {len(paper_accuracies())} networks', '-'),
        (', '.join(f'`{c.name}`' for c in kinds['embedded']),
         'in the package: a tiny network for tests and demos, which knows handwritten digits only', measured),
        (f'`{warm[0].name}` and {len(warm) - 1} more warm starts',
         f"of {len({c.model for c in warm})} networks: timm's ImageNet-1k weights in the trunk, and a memory that has "
         'learnt nothing yet', '-'),
        (f'`{kinds["paper"][0].name}` and {len(kinds["paper"]) - 1} more',
         f"the authors' own MobileNetV2; {sum(c.published for c in kinds['paper'])} of {len(kinds['paper'])} are "
         'published in a form that timm loads, and [`convert`](docs/fidelity.md) makes the rest',
         'see [all checkpoints](docs/checkpoints.md)'),
    ]
    table = '| weights | what there is | measured |\n| --- | --- | --- |\n' + ''.join(f'| {" | ".join(r)} |\n' for r in rows)
    before, _, rest = (ROOT / 'README.md').read_text().partition(README_MARKS[0])
    _, _, after = rest.partition(README_MARKS[1])
    return f'{before}{README_MARKS[0]}{table}{README_MARKS[1]}{after}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, exit with 1 if a file is out of date')
    args = parser.parse_args()
    pages = {
        ROOT / 'README.md': readme(), DOCS / 'models.md': models_page(), DOCS / 'checkpoints.md': checkpoints_page()}
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
