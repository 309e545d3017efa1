"""Make the pictures and tables of docs/frequency.md: memory against plain trunk.

    python scripts/train_test_model.py --plain --output PLAIN.safetensors
    python scripts/frequency_page.py --plain PLAIN.safetensors [--photos FOLDER]

The digits are scikit-learn's 360 held-out ones; PLAIN.safetensors is the test network's trunk, trained in the same way
as the network in the package. FOLDER holds photos of ImageNet100 classes in folders named after synsets; the networks
are the authors' MobileNetV2 x0.1, downloaded where they are not there yet. Without it, that part stays as it is.
"""

import argparse
import csv
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import timm
from safetensors.torch import load_file
from timm.models import save_for_hf

import mlfm_zoo  # noqa: F401, registers the networks
from digits import write_digits
from mlfm_zoo_cli import main as command_line

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'frequency.md'
PICTURES = ROOT / 'docs' / 'frequency'


def save_plain(weights: Path, folder: Path) -> None:
    """The trunk as a folder that timm loads."""
    model = timm.create_model('test_mlfm_resnet', memory=False)
    model.load_state_dict(load_file(weights))
    save_for_hf(model, str(folder), model_args=dict(memory=False), safe_serialization=True)


def analyse(models: Sequence[str], data: Path, output: Path, *options: str) -> None:
    if command_line(['frequency', *models, str(data), '--output', str(output), *options]):
        sys.exit('the analysis went no further, see above')


def overall_table(folder: Path, names: Dict[str, str]) -> List[str]:
    """Low-pass and high-pass accuracy by radius, in Markdown."""
    cells: Dict[Tuple[str, str, str], str] = {}
    with open(folder / 'overall.csv', newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        interval = f'{float(row["low"]):.0f} to {float(row["high"]):.0f}'
        cells[row['model'], row['filter'], row['radius']] = f'{float(row["top1"]):.1f} ({interval})'
    kinds = [(kind, model) for kind in ('lowpass', 'highpass') for model in names]
    lines = ['| radius | ' + ' | '.join(f'{kind}, {names[model]}' for kind, model in kinds) + ' |',
             '| --: |' + ' --: |' * len(kinds)]
    for radius in dict.fromkeys(row['radius'] for row in rows):
        lines.append(f'| {radius} | ' + ' | '.join(cells[model, kind, radius] for kind, model in kinds) + ' |')
    return lines


def put(part: str, lines: Sequence[str]) -> None:
    """Put lines between the marks of a part of the page."""
    text = PAGE.read_text(encoding='utf-8')
    start, end = f'<!-- {part}: made by scripts/frequency_page.py -->\n', '<!-- end of the table -->'
    pattern = re.compile(re.escape(start) + '.*?' + re.escape(end), re.DOTALL)
    replaced, count = pattern.subn(lambda _: start + '\n'.join(lines) + '\n' + end, text)
    assert count == 1, part
    PAGE.write_text(replaced, encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plain', type=Path, required=True, help="weights of the test network's trunk")
    parser.add_argument('--photos', type=Path, help='photos of ImageNet100 classes')
    args = parser.parse_args()
    photos = args.photos and args.photos.resolve()
    plain_weights = args.plain.resolve()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.chdir(work)  # for names of models that say no more than they should
        digits = write_digits(work, num_train=0) / 'val'
        save_plain(plain_weights, work / 'trunk')  # the pictures' legends name it so
        plain = 'local-dir:trunk'
        sample = min(str(p.relative_to(digits)) for p in (digits / '3').iterdir())
        analyse(['test_mlfm_resnet', plain], digits, work / 'd', '--samples', sample, '--scales', '1', '1.2',
                '1.4', '--fourier', '8', '--fourier-extent', '6', '--radii', *'1 2 3 4 5 6 8 12 20'.split())
        for name in ('overall', 'bands', 'fourier'):
            shutil.copy(work / 'd' / f'{name}.png', PICTURES / f'digits-{name}.png')
        shutil.copy(next((work / 'd').glob('sample-*.png')), PICTURES / 'digits-sample.png')
        put('digits', overall_table(work / 'd', {'test_mlfm_resnet': 'memory', plain: 'trunk'}))
        if photos:
            networks = {'mlfm_mobilenetv2_010': 'memory', 'mlfm_mobilenetv2_010,memory=False': 'trunk'}
            analyse(list(networks), photos, work / 'p', '--imagenet100', '--img-size', '224')
            shutil.copy(work / 'p' / 'overall.png', PICTURES / 'photos-overall.png')
            put('photos', overall_table(work / 'p', networks))
        os.chdir(ROOT)


if __name__ == '__main__':
    main()
