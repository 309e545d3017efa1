"""Write the tables of the docs: docs/models.md, what each network costs, and docs/checkpoints.md, which weights exist.

    python scripts/make_tables.py [--check]

Multiply-adds are those of convolutions and linear layers for one image of the size in the table, half of what torch's
own FlopCounterMode counts. Nothing is computed: the networks are built on the meta device. The checkpoints are those of
weights_manifest.yaml. With --check nothing is written, and the exit code says whether the files are up to date.
"""

import argparse
import sys
from pathlib import Path

import timm

import mlfm_zoo
from mlfm_zoo.cost import count_cost
from mlfm_zoo.hub.manifest import manifest_path, read_manifest

DOCS = Path(__file__).parents[1] / 'docs'

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

# ImageNet100 top-1 % reported by the authors, trunk and memory (README of their code, commit 94c17aa).
PAPER = {
    'mlfm_resnet10': (77.58, 78.64),
    'mlfm_resnet18': (77.86, 81.22),
    'mlfm_resnet34': (79.82, 81.50),
    'mlfm_resnet50': (80.16, 81.80),
    'mlfm_mobilenetv2_010': (58.38, 62.86),
    'mlfm_mobilenetv2_035': (76.82, 79.24),
    'mlfm_mobilenetv2_050': (79.64, 80.36),
    'mlfm_mobilenetv2_075': (81.82, 82.60),
    'mlfm_mobilenetv2_100': (82.52, 83.06),
    'mlfm_regnetx_002': (77.59, 79.02),
    'mlfm_regnetx_004': (78.92, 81.68),
    'mlfm_regnetx_006': (81.34, 81.98),
    'mlfm_regnetx_008': (82.70, 83.36),
    'mlfm_regnety_002': (77.90, 78.94),
    'mlfm_regnety_004': (79.32, 81.48),
    'mlfm_regnety_006': (80.54, 82.48),
    'mlfm_regnety_008': (82.70, 82.98),
    'mlfm_efficientnet_b0': (83.84, 83.44),
    'mlfm_efficientnet_b1': (83.94, 84.64),
    'mlfm_efficientnet_b2': (84.16, 84.54),
    'mlfm_efficientnet_b3': (84.28, 85.30),
    'mlfm_efficientnet_b4': (84.68, 85.96),
    'mlfm_seresnet10': (74.98, 75.40),
    'mlfm_seresnet18': (76.34, 77.86),
    'mlfm_seresnet34': (78.80, 78.98),
    'mlfm_seresnet50': (79.56, 80.36),
    'mlfm_convnext_tiny_k3_par1_8': (88.03, 88.30),
    'mlfm_convnext_tiny_k3_par1_4': (88.02, 88.46),
    'mlfm_convnext_tiny_k3_par1_2': (88.15, 88.33),
    'mlfm_convnext_tiny_k3': (88.11, 88.32),
    'mlfm_convnext_tiny_k5': (88.18, 88.42),
    'mlfm_convnext_tiny': (88.12, 88.60),
    'mlfm_convnext_small': (88.08, 88.34),
    'mlfm_inception_next_tiny': (87.58, 88.06),
}


def row(name: str) -> str:
    size = timm.get_pretrained_cfg_value(name, 'input_size')[-1]
    params, madds, *_ = count_cost(name, memory=False)
    memory_params, memory_madds, *_ = count_cost(name)
    cells = [
        f'`{name}`', size,
        f'{params / 1e6:.2f}', f'{memory_params / 1e6:.2f}', f'{memory_params / params:.2f}',
        f'{madds / 1e9:.3f}', f'{memory_madds / 1e9:.3f}', f'{memory_madds / madds:.2f}',
        *(f'{accuracy:.2f}' for accuracy in PAPER[name]),
    ]
    return f'| {" | ".join(map(str, cells))} |\n'


def models_page() -> str:
    assert set(PAPER) == set(timm.list_models('mlfm_*')), f'mlfm_zoo {mlfm_zoo.__version__} has other networks'
    rule = '| --- |' + ' --: |' * (len(COLUMNS) - 1)
    return f'{MODELS_HEADER}| {" | ".join(COLUMNS)} |\n{rule}\n' + ''.join(map(row, PAPER))


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
    for c in read_manifest(manifest_path()).values():
        where = c.repo if c.repo else 'the package' if c.kind == 'embedded' else f'{c.source_repo}, not published'
        figures = c.measured if c.kind == 'embedded' else c.reported
        reported = ', '.join(f'{value:.2f} ({name})' for name, value in figures.items())
        rows.append(f'| `{c.name}` | {c.kind} | {where} | {c.license} | {c.num_classes} | {reported or "-"} |\n')
    return CHECKPOINTS_HEADER + ''.join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, exit with 1 if a file is out of date')
    args = parser.parse_args()
    pages = {DOCS / 'models.md': models_page(), DOCS / 'checkpoints.md': checkpoints_page()}
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
