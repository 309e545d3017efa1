"""The benchmarks of segmentation run and report what they say; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.shape_folders import write_shapes

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def run(script, *args):
    return subprocess.run([sys.executable, BENCHMARKS / script, *map(str, args)], capture_output=True, text=True)


@pytest.mark.slow
def test_study(tmp_path):
    """All variants on a few pictures; what is there is not run again, and other settings are refused."""
    write_shapes(tmp_path / 'camvid', {'train': 4, 'val': 1, 'test': 2}, (96, 128))
    for mask in (tmp_path / 'camvid').glob('*annot/*.png'):  # whose void is another value
        Image.open(mask).point(lambda value: 11 if value == 255 else value).save(mask)
    command = ['--camvid', tmp_path / 'camvid', '--work', tmp_path / 'work', '--output', tmp_path]
    done = run('segmentation.py', *command, '--seeds', 0, 1, '--epochs', 1)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith('| camvid')]
    assert len(rows) == 5 and rows[1].count(' to ') == 3 and rows[0].count(' to ') == 0
    done = run('segmentation.py', *command, '--seeds', 0, 1, '--epochs', 1)
    assert 'mIoU' not in done.stdout.split('| data')[0] and done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith('| camvid')] == rows
    done = run('segmentation.py', *command, '--epochs', 2)
    assert done.returncode == 1 and 'has other settings' in done.stderr


@pytest.mark.slow
def test_cost(tmp_path):
    done = run('segmentation_cost.py', '--size', 64, '--rounds', 2, '--output', tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'results.json').read_text())['networks']
    assert list(found) == ['FCN-8s ResNet50', 'U-Net']
    for rows in found.values():
        assert rows['none']['ratio']['median'] == 1 and rows['memory']['madds_ratio'] > 1
    assert run('segmentation_cost.py', '--table', '--output', tmp_path).stdout.count('\n') == 10
