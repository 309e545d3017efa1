"""examples/detect.py from training to pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.detectors import FEW

ROOT = Path(__file__).parents[2]


def data_of(folder):
    return '--images', folder / 'images', '--annotations', folder / 'annotations.json'


LIGHT = ('--model-kwargs', 'fpn_channels=16', *(f'{name}={value}' for name, value in FEW.items()))


def test_example(photos, changed, tmp_path, capsys, monkeypatch):
    """Training that resumes where it stopped, evaluation, pictures, and errors in one sentence."""
    monkeypatch.syspath_prepend(ROOT / 'examples')
    from detect import main

    def detect(*arguments):
        main([*map(str, arguments), '--device', 'cpu', '--workers', '0'])
        return capsys.readouterr().out

    output = tmp_path / 'out'
    options = ('train', output, *data_of(photos), '--backbone', 'test_mlfm_resnet', '--min-size', '64',
               '--max-size', '96', '--batch-size', '2', '--warmup', '1', '--eval-every', '1', '--steps', '2', *LIGHT)
    detect(*options)
    with pytest.raises(SystemExit, match='is of a run with other arguments'):
        detect(*options, '--lr', '0.1')
    state = torch.load(output / 'last.pt', weights_only=True)
    torch.save(dict(state, step=1), output / 'last.pt')
    assert 'resumes after step 1' in detect(*options)
    rows = (output / 'log.csv').read_text().splitlines()
    assert rows[0].startswith('step,lr,seconds,loss_classifier')
    assert [row.split(',')[0] for row in rows[1:]] == ['1', '2', '2']
    assert sorted(f.name for f in output.iterdir()) == ['args.json', 'best.safetensors', 'last.pt', 'log.csv']
    assert set(json.loads(detect('evaluate', output, *data_of(photos)))) == {'box', 'mask'}
    image = next((photos / 'images').iterdir())
    detect('predict', output, image, '--pictures', tmp_path / 'pictures', '--min-score', '0')
    assert (tmp_path / 'pictures' / image.name).is_file()
    for files, folder in (((tmp_path / 'c.jpg', tmp_path / 'c.png'), tmp_path / 'pictures'), ((image,), image.parent)):
        with pytest.raises(SystemExit, match='would replace another, or an image'):
            detect('predict', output, *files, '--pictures', folder)
    (tmp_path / 'broken.png').write_bytes(image.read_bytes()[:200])
    with pytest.raises(SystemExit, match='^error: .*broken.png cannot be decoded as an image'):
        detect('predict', output, tmp_path / 'broken.png', '--pictures', tmp_path / 'pictures')
    with pytest.raises(SystemExit, match='^error: .*none.json'):
        detect('evaluate', output, '--images', photos / 'images', '--annotations', tmp_path / 'none.json')

    # boxes alone, validated where nothing is to be found
    empty = changed(lambda content: content.update(annotations=[]))
    boxes = tmp_path / 'boxes'
    detect(options[0], boxes, *options[2:], '--detector', 'faster_rcnn', '--steps', '1',
           '--val-images', photos / 'images', '--val-annotations', empty)
    row = dict(zip(*(line.split(',') for line in (boxes / 'log.csv').read_text().splitlines())))
    assert row['box_AP'] == '-1.0' and row['mask_AP'] == 'nan' and (boxes / 'best.safetensors').is_file()


def run(*arguments):
    command = [sys.executable, *map(str, arguments), '--device', 'cpu', '--workers', '0']
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_overfits_real_images(photos, tmp_path):
    """Mask R-CNN from nothing on six photographs of coins, in minutes."""
    script = ROOT / 'examples' / 'detect.py'
    result = run(
        script, 'train', tmp_path, *data_of(photos), '--backbone', 'mlfm_mobilenetv2_035', '--min-size', '160',
        '--max-size', '256', '--batch-size', '2', '--steps', '150', '--milestones', '120', '--warmup', '50',
        '--lr', '0.01', '--eval-every', '150',
        '--model-kwargs', 'fpn_channels=64', 'box_batch_size_per_image=32', 'rpn_post_nms_top_n_train=200')
    assert result.returncode == 0, result.stderr
    measured = json.loads(run(script, 'evaluate', tmp_path, *data_of(photos)).stdout)
    assert measured['box']['AP'] > 0.5 and measured['mask']['AP'] > 0.5, measured


@pytest.mark.slow
def test_two_processes(photos, tmp_path):
    """Each trains on its half of a step, and both measure the same."""
    result = run(
        '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', ROOT / 'examples' / 'detect.py',
        'train', tmp_path, *data_of(photos), '--backbone', 'mlfm_mobilenetv2_010', '--min-size', '64',
        '--max-size', '96', '--batch-size', '4', '--steps', '2', '--eval-every', '2', *LIGHT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('mask_AP75') == 1, result.stdout
