"""The benchmarks run, on a network that takes no time, and report what they say; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from shape_folders import write_shapes

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def run(script, *args):
    return subprocess.run([sys.executable, BENCHMARKS / script, *map(str, args)], capture_output=True, text=True)


def test_speed(tmp_path):
    command = ['test_mlfm_resnet', '--no-wavelets', '--rounds', 6, '--batch-size', 2, '--output', tmp_path]
    for _ in range(2):  # the second replaces what the first has left
        done = run('speed.py', *command)
        assert done.returncode == 0, done.stderr
        assert 'plain' in done.stdout and 'images/s' in done.stdout
        found = json.loads((tmp_path / 'results.json').read_text())
        [result] = found['results']
        assert result['model'] == 'test_mlfm_resnet' and 1 < result['arithmetic'] < 1.5 and result['rounds'] == 6
        assert list(result['variants']) == ['plain', 'memory', 'fused']
        for row in result['variants'].values():
            assert 0 < row['ratio']['sure_low'] <= row['ratio']['median'] <= row['ratio']['sure_high']
        assert result['variants']['plain']['ratio']['median'] == 1
    assert (tmp_path / 'cost.png').stat().st_size > 1000
    done = run('speed.py', *command, '--train')
    assert done.returncode == 1 and 'was measured in another setting' in done.stderr
    assert json.loads((tmp_path / 'results.json').read_text()) == found


def test_units():
    done = run('units.py', 'test_mlfm_resnet', '--rounds', 1, '--size', 64)
    assert done.returncode == 0, done.stderr
    labels = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert labels[0] == 'bands' and labels[-1] == 'sum' and len(labels) > 4


def test_segmentation(tmp_path):
    """All variants on a few pictures; what is there is not run again, and other settings are refused."""
    write_shapes(tmp_path / 'camvid', {'train': 4, 'val': 1, 'test': 2}, (96, 128))
    for mask in (tmp_path / 'camvid').glob('*annot/*.png'):  # whose void is another value
        Image.open(mask).point(lambda value: 11 if value == 255 else value).save(mask)
    command = ['--camvid', tmp_path / 'camvid', '--work', tmp_path / 'work', '--output', tmp_path]
    done = run('segmentation.py', *command, '--seeds', 0, 1, '--epochs', 1)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith('| camvid')]
    assert len(rows) == 5 and rows[1].count(' to ') == 3 and rows[0].count(' to ') == 0
    assert run('segmentation.py', '--table', '--output', tmp_path).stdout.splitlines()[2:] == rows
    done = run('segmentation.py', *command, '--seeds', 0, 1, '--epochs', 1)
    assert 'mIoU' not in done.stdout.split('| data')[0] and done.returncode == 0
    done = run('segmentation.py', *command, '--epochs', 2)
    assert done.returncode == 1 and 'has other settings' in done.stderr


@pytest.mark.slow
def test_segmentation_cost(tmp_path):
    done = run('segmentation_cost.py', '--size', 64, '--rounds', 2, '--output', tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'results.json').read_text())['networks']
    assert list(found) == ['FCN-8s ResNet50', 'U-Net']
    for rows in found.values():
        assert rows['none']['ratio']['median'] == 1 and rows['memory']['madds_ratio'] > 1
    assert run('segmentation_cost.py', '--table', '--output', tmp_path).stdout.count('\n') == 10
