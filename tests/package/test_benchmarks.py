"""The benchmarks run, on a network that takes no time, and report what they say; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

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
