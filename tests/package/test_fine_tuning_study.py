"""The study of fine-tuning, on a few digits and weights that were never trained."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from digits import write_digits

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'study' / 'fine_tuning.py'


@pytest.fixture(scope='module')
def lite0(tmp_path_factory):
    file = tmp_path_factory.mktemp('weights') / 'lite0.pth'
    torch.save(timm.create_model('tf_efficientnet_lite0').state_dict(), file)
    return file


def run(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_runs_and_resumes(lite0, tmp_path):
    data = write_digits(tmp_path / 'data', 80, 40)
    shutil.move(data / 'val', data / 'validation')
    shutil.copytree(data / 'validation', data / 'test')
    command = ['--data', data, '--lite0', lite0, '--results', tmp_path / 'out', '--networks',
               'efficientnet_lite0_frozen', '--epochs', 1, '--seeds', 1]
    assert run(*command).count('epoch 1 of 1') == 5  # three rates, two arms
    with open(tmp_path / 'out' / 'runs.csv', newline='') as file:
        rows = {row['arm']: row for row in csv.DictReader(file)}
    assert rows['baseline'].keys() == rows['memory'].keys() and int(rows['memory']['test_images']) == 40
    assert int(rows['memory']['madds']) > int(rows['baseline']['madds'])
    kept = {file: file.read_bytes() for file in (tmp_path / 'out').rglob('*.csv')}
    assert run(*command) == '' and {file: file.read_bytes() for file in kept} == kept


def test_answers_alike(lite0, tmp_path):
    for split, number in (('train', 1), ('val', 2)):
        folder = tmp_path / split / 'n01440764'
        folder.mkdir(parents=True)
        Image.effect_noise((250, 230), 80).convert('RGB').save(folder / f'ILSVRC2012_val_{number:08}.JPEG')
        Image.new('RGB', (9, 9)).save(folder / f'n01440764_{number}.JPEG')
    assert run('--lite0', lite0, '--alike', tmp_path).startswith('2 photographs: 2 answers alike')
