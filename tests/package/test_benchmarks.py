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
from mlfm_zoo_cli.launch import KEEP_MEMORY

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def run(script, *args):
    command = [sys.executable, BENCHMARKS / script, *map(str, args)]
    environment = os.environ | KEEP_MEMORY  # without which units.py starts itself again
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_deploy(tmp_path, monkeypatch):
    """Each cell is measured once: the same command has nothing left to do, and one more thread is added."""
    command = ['deploy.py', '--output', tmp_path, '--networks', 'test_mlfm_resnet', '--engines', 'onnx', 'openvino',
               '--batches', 2, '--rounds', 6, '--threads']
    done = run(*command, 1)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(BENCHMARKS)  # whose files import each other
    deploy = runpy.run_path(str(BENCHMARKS / 'deploy.py'))
    rows = deploy['read_rows'](tmp_path)
    arms = ['plain', 'plain folded', 'memory', 'fused', 'fused folded']
    cells = [(engine, precision) for engine in ('onnx', 'openvino') for precision in ('float32', 'int8')]
    assert [(r['engine'], r['precision'], r['arm']) for r in rows] == [(*cell, arm) for cell in cells for arm in arms]
    for row in rows:
        assert 0 < float(row['ms_low']) <= float(row['ms']) <= float(row['ms_high'])
        for reference, column in (('plain', 'to_plain'), ('plain folded', 'to_folded')):
            assert row['arm'] != reference or float(row[column]) == 1
    assert run(*command, 1).returncode == 0 and deploy['read_rows'](tmp_path) == rows
    assert run(*command, 1, 2, '--precisions', 'float32').returncode == 0
    assert deploy['read_rows'](tmp_path)[:20] == rows and len(deploy['read_rows'](tmp_path)) == 30
    page = deploy['docs_tables'](tmp_path, tmp_path / 'deploy.png')
    assert page.count('| `test_mlfm_resnet` |') == 3 and (tmp_path / 'deploy.png').stat().st_size > 1000


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


def test_single_photographs(tmp_path):
    """Of two photographs of a class, one is recognized from radius 4 on, and the other at radius 4 alone."""
    rows = [f'{file},tench,net,lowpass,{radius},{probability},{rank},tench' for file, curve in {
        'a.jpg': [(0, 0., 5), (4, 0.5, 1), (8, 1., 1)], 'b.jpg': [(0, 0., 5), (4, 1., 1), (8, 0.2, 2)]}.items()
        for radius, probability, rank in curve]
    (tmp_path / 'samples.csv').write_text(
        '\n'.join(['file,class,model,filter,radius,probability,rank,predicted', *rows, '']))
    script = runpy.run_path(str(BENCHMARKS / 'imagenet_frequency.py'))
    a, b = (-0.5, 0., 0.5), (-0.4, 0.6, -0.2)
    likeness = f'{sum(x * y for x, y in zip(a, b)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5:.3f}'
    assert script['samples_table'](tmp_path) == [['net', 2, likeness, likeness, likeness, 1, '50.00']]
    assert script['half_radii'](tmp_path, 'net') == {'a.jpg': 4}
