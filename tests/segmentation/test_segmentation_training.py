"""Training on a made-up data set: it learns, goes on after a kill with the same curve, and runs in two processes."""

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mlfm_zoo
from helpers.shape_folders import LABELS, write_shapes
from helpers.user import IMPORTS
from mlfm_zoo.cli import main
from mlfm_zoo.segmentation import TrainSettings, load_run, train
from mlfm_zoo.segmentation.data import Labels, read_labels
from mlfm_zoo.segmentation.training import _Run

ROOT = Path(__file__).parents[2]
SMALL = dict(model='unet', encoder=None, model_kwargs=dict(base_width=4), crop_size=(32, 48), batch_size=4, warmup=4)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = write_shapes(tmp_path_factory.mktemp('shapes'))
    (folder / 'labels.json').write_text(json.dumps(LABELS))
    return folder


def settings_for(data, **kwargs):
    return TrainSettings(**{**SMALL, 'data': str(data), 'labels': str(data / 'labels.json'), **kwargs})


def curve(run):
    with open(run / 'log.csv', newline='') as f:
        return [{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(f)]


class Killed(Exception):
    pass


def kill_after(epoch):
    def log(line):
        if line.startswith(f'epoch {epoch}:'):
            raise Killed
    return log


@pytest.mark.parametrize('kwargs', [
    dict(epochs=3, ema_decay=0.9, val_every=2, model_kwargs=dict(base_width=4, aux=True, drop_rate=0.2)),
    dict(epochs=2, model='fcn8s', encoder='test_mlfm_resnet', model_kwargs={}, amp='bfloat16', clip_grad=1.0,
         channels_last=True, grad_checkpointing=True, label_smoothing=0.1),
])
def test_interrupted_run_ends_as_the_whole(data, tmp_path, kwargs):
    settings = settings_for(data, **kwargs)
    train(settings, tmp_path / 'whole', log=lambda line: None)
    for epoch in range(settings.epochs - 1):
        with pytest.raises(Killed):
            train(settings, tmp_path / 'parts', log=kill_after(epoch))
    best = train(settings, tmp_path / 'parts', log=lambda line: None)
    assert curve(tmp_path / 'whole') == curve(tmp_path / 'parts') and len(curve(tmp_path / 'whole')) == settings.epochs
    for name in ('last', 'best'):
        whole, parts = (load_file(tmp_path / run / name / 'model.safetensors') for run in ('whole', 'parts'))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert best['miou'] == max(float(row['miou'] or 0) for row in curve(tmp_path / 'parts'))
    assert not list((tmp_path / 'parts').glob('*.unfinished'))
    with pytest.raises(ValueError, match='has a run with lr 0.001 instead of 0.5: name another folder'):
        train(dataclasses.replace(settings, lr=0.5), tmp_path / 'parts')
    (tmp_path / 'parts' / 'state.pt').write_bytes(b'damaged')
    with pytest.raises(ValueError, match='state.pt cannot be resumed from'):
        train(settings, tmp_path / 'parts')


def test_frozen_encoder(data, tmp_path):
    settings = settings_for(
        data, model='fcn16s', encoder='test_mlfm_resnet', pretrained=True, model_kwargs={}, epochs=1,
        freeze_encoder=True, lr=1e-2)
    before = settings.create_model(3, 'cpu').state_dict()
    train(settings, tmp_path, log=lambda line: None)
    after = load_file(tmp_path / 'last' / 'model.safetensors')
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed and all('memory.' in k or not k.startswith('encoder.') for k in changed)
    assert any('memory.' in k for k in changed)


def test_memory_at_identity_is_calibrated(data, tmp_path):
    """Before training from a warm start, on images as they are trained on."""
    settings = settings_for(data, model='fcn16s', encoder='resnet10t', model_kwargs=dict(memory=True))
    model = _Run(settings, tmp_path, 'cpu', 0, False).model
    train_set, _ = settings.datasets(Labels.from_json(LABELS))
    expected = settings.create_model(3, 'cpu')
    gate = expected.encoder.model.memory.pool.output_gate
    assert gate.weight.allclose(torch.ones(64))
    mlfm_zoo.calibrate_memory(expected, torch.utils.data.DataLoader(train_set, settings.batch_size))
    assert not gate.weight.allclose(torch.ones(64))
    weights = model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in expected.state_dict().items())


def test_commands(data, tmp_path, capsys):
    """Train until shapes are found, measure and draw, and write masks that read as what was predicted."""
    run = str(tmp_path / 'run')
    assert main([
        'segment', 'train', str(data), '--output', run, '--labels', str(data / 'labels.json'), '--model', 'unet',
        '--encoder', 'none', '--model-kwargs', 'base_width=8', '--crop-size', '48', '64', '--scale', '0.9', '1.1',
        '--epochs', '12', '--batch-size', '4', '--lr', '0.01', '--warmup', '4', '--workers', '0', '--device', 'cpu',
    ]) == 0
    best = float(re.search(r'best epoch \d+: mIoU ([\d.]+) %', capsys.readouterr().out)[1])
    assert best > 60
    assert main([
        'segment', 'evaluate', f'{run}/best', str(data), '--pictures', str(tmp_path / 'pictures'), '--num-pictures',
        '2', '--json', str(tmp_path / 'scores.json'), '--workers', '0', '--device', 'cpu']) == 0
    printed = dict(re.findall(r'^(.+): (.+) %$', capsys.readouterr().out, re.MULTILINE))
    assert float(printed['miou']) == pytest.approx(best, abs=0.02) and 'boundary f' in printed
    assert {'iou ground', 'iou disc', 'iou square', 'pixel accuracy'} < printed.keys()
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert sum(map(sum, scores['confusion'])) == 4 * 46 * 64
    assert sorted(f.name for f in (tmp_path / 'pictures').iterdir()) == ['000.png', '001.png']
    assert main([
        'segment', 'evaluate', f'{run}/best', str(data), '--window', '32', '32', '--flip', '--workers', '0',
        '--device', 'cpu']) == 0
    capsys.readouterr()
    assert main([
        'segment', 'predict', f'{run}/last', str(data / 'val' / '000.png'), '--output', str(tmp_path / 'masks'),
        '--device', 'cpu']) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'masks' / '000.png')
    labels = Labels.from_json(LABELS)
    truth, mask = (read_labels(f / '000.png', labels) for f in (data / 'valannot', tmp_path / 'masks'))
    assert (mask[2:] == truth[2:]).float().mean() > 0.9
    assert np.array(Image.open(tmp_path / 'masks' / '000.picture.png')).shape == (48, 3 * 64 + 8, 3)
    model, labels_, settings = load_run(f'{run}/best')
    assert labels_ == labels and settings.epochs == 12 and not model.training
    file = tmp_path / 'photo.png'
    Image.new('RGB', (70, 33)).save(file)

    def predict(output, *images):
        command = ['segment', 'predict', f'{run}/best', *map(str, images), '--device', 'cpu']
        return main([*command, '--output', str(output)])

    assert predict(tmp_path / 'masks', file) == 0
    # a mask in the place of its image, or of another's mask
    for output, images in ((tmp_path, [file]), (tmp_path / 'two', [file, tmp_path / 'masks' / 'photo.png'])):
        capsys.readouterr()
        assert predict(output, *images) == 1
        assert 'name another folder, or give images of other names' in capsys.readouterr().err
    assert Image.open(file).size == (70, 33) and not (tmp_path / 'two').exists()


@pytest.mark.parametrize('arguments, message', [
    (['train', 'nowhere', '--output', 'run'], 'nowhere has no images and masks of train'),
    (['train', 'DATA', '--output', 'run', '--labels', 'camvid', '--val-split', 'val'], 'pixels of value 255'),
    (['train', 'DATA', '--output', 'run', '--labels', 'LABELS', '--val-split', 'test'], 'no images and masks of test'),
    (['train', 'DATA', '--output', 'run', '--labels', 'LABELS', '--model', 'fcn4s'], "name is 'fcn4s'"),
    (['evaluate', 'nowhere', 'DATA'], 'nowhere has no network of a run'),
    (['predict', 'nowhere', 'photo.png', '--output', 'masks'], 'nowhere has no network of a run'),
])
def test_commands_refuse_in_one_sentence(data, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {'DATA': str(data), 'LABELS': str(data / 'labels.json')}
    extra = ['--device', 'cpu', *(['--workers', '0'] if arguments[0] != 'predict' else [])]
    if arguments[0] == 'train' and '--model' not in arguments:
        extra += ['--model', 'unet', '--encoder', 'none', '--model-kwargs', 'base_width=2', '--crop-size', '16', '16']
    assert main(['segment', *(names.get(a, a) for a in arguments), *extra]) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and error.count('\n') == 1


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['segment', 'train', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for field in dataclasses.fields(TrainSettings)[1:]:
        option = field.name.replace('_', '-')
        if field.name != 'model_kwargs':
            assert re.search(rf'--{option}( (X|H W|MIN MAX|ENCODER|{{[^}}]*}}))? [A-Z]\w+', text), field.name


def test_settings_are_checked():
    for kwargs, message in ((dict(amp='fp8'), "amp is 'fp8', expected none or"), (dict(epochs=0), 'epochs is 0')):
        with pytest.raises(ValueError, match=message):
            TrainSettings('data', **kwargs)


def command(data, run, *options):
    return [
        str(ROOT / 'examples' / 'segment.py'), 'train', str(data), '--output', str(run), '--labels',
        str(data / 'labels.json'), '--model', 'fcn8s', '--encoder', 'test_mlfm_resnet', '--crop-size', '32', '48',
        '--batch-size', '2', '--lr', '0.003', '--warmup', '4', '--device', 'cpu', *options]


ENVIRONMENT = dict(os.environ, PYTHONPATH=os.pathsep.join(IMPORTS), OMP_NUM_THREADS='1')


@pytest.mark.slow
def test_killed_process_ends_as_the_whole(data, tmp_path):
    options = ('--epochs', '8', '--workers', '1')
    subprocess.run([sys.executable, *command(data, tmp_path / 'whole', *options)], check=True, env=ENVIRONMENT)
    for _ in range(2):
        process = subprocess.Popen([sys.executable, *command(data, tmp_path / 'parts', *options)], env=ENVIRONMENT)
        rows = len(curve(tmp_path / 'parts')) if (tmp_path / 'parts' / 'log.csv').exists() else 0
        while not (tmp_path / 'parts' / 'log.csv').exists() or len(curve(tmp_path / 'parts')) < rows + 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(curve(tmp_path / 'parts')) < 8
    subprocess.run([sys.executable, *command(data, tmp_path / 'parts', *options)], check=True, env=ENVIRONMENT)
    assert curve(tmp_path / 'whole') == curve(tmp_path / 'parts')


@pytest.mark.slow
def test_two_processes(data, tmp_path):
    """By torchrun: both evaluate their share, one writes, and the network is as good as from one process."""
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    options = ('--epochs', '20', '--workers', '0')
    result = subprocess.run(
        [*launcher, *command(data, tmp_path / 'run', *options)], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = curve(tmp_path / 'run')
    assert len(rows) == 20 and result.stdout.count('epoch 19:') == 1
    assert main([
        'segment', 'evaluate', str(tmp_path / 'run' / 'best'), str(data), '--json', str(tmp_path / 'scores.json'),
        '--workers', '0', '--device', 'cpu']) == 0
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert 100 * scores['miou'] == pytest.approx(max(float(row['miou']) for row in rows), abs=0.01)
    assert scores['miou'] > 0.4
