"""The benchmarks run, on a network that takes no time, and report what they say; no time is asserted."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.tables import read_table
from mlfm_zoo.workflow.launch import KEEP_MEMORY

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def run(script, *args):
    command = [sys.executable, BENCHMARKS / script, *map(str, args)]
    environment = os.environ | KEEP_MEMORY  # without which units.py starts itself again
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_speed(tmp_path, monkeypatch):
    command = ['test_mlfm_resnet', '--no-wavelets', '--folded', '--rounds', 6, '--batch-size', 2, '--output', tmp_path]
    done = run('speed.py', *command)
    assert done.returncode == 0, done.stderr
    assert 'plain' in done.stdout and 'images/s' in done.stdout
    found = json.loads((tmp_path / 'results.json').read_text())
    [result] = found['results']
    assert result['model'] == 'test_mlfm_resnet' and 1 < result['arithmetic'] < 1.5 and result['rounds'] == 6
    rows = result['variants']
    assert list(rows) == ['plain', 'memory', 'fused', 'plain folded', 'fused folded']
    for row in rows.values():
        for ratio in (row['ratio'], row['ratio_to_folded']):  # to the plain trunk as it is, and to it folded
            assert 0 < ratio['sure_low'] <= ratio['median'] <= ratio['sure_high']
    assert rows['plain']['ratio']['median'] == rows['plain folded']['ratio_to_folded']['median'] == 1
    assert done.stdout.count('of plain folded') == 4
    assert (tmp_path / 'cost.png').stat().st_size > 1000
    monkeypatch.setattr(sys, 'argv', ['speed.py', *map(str, command), '--train', '--system-malloc'])
    with pytest.raises(SystemExit, match='was measured in another setting'):
        runpy.run_path(str(BENCHMARKS / 'speed.py'), run_name='__main__')
    assert json.loads((tmp_path / 'results.json').read_text()) == found


def test_units():
    done = run('units.py', 'test_mlfm_resnet', '--rounds', 1, '--size', 64)
    assert done.returncode == 0, done.stderr
    labels = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert labels[0] == 'bands' and labels[-1] == 'sum' and len(labels) > 4


def test_jpeg(tmp_path):
    (tmp_path / 'images' / 'class').mkdir(parents=True)
    for i in range(2):
        Image.effect_noise((90, 70), 60).convert('RGB').save(tmp_path / 'images' / 'class' / f'{i}.png')
    done = run('jpeg.py', tmp_path / 'images', '--output', tmp_path / 'out', '--size', 64, '--rounds', 1)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert [row['way'] in done.stdout for row in found['rows']] == [True] * 9 and found['images'] == 2
    assert [row['bytes'] for row in found['rows'][:5]] == [49152, 49152, 12288, 6144, 3072]
    shares = read_table(tmp_path / 'out' / 'jpeglib.csv')
    assert [row['way'] for row in shares] == [row['way'] for row in found['rows']]
    assert all((float(row['jpeglib_share']) > 0) == ('coefficients' in row['way']) for row in shares)
