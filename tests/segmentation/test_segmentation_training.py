"""Training on a made-up data set: it learns, resumes after a kill with the same curve, and runs in two processes."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mlfm_zoo
from helpers.disks import full_disk
from helpers.segmentation import RESNET, write_data
from helpers.shape_folders import LABELS
from helpers.user import IMPORTS
from mlfm_zoo.segmentation import SegmentationNetwork, TrainSettings, create_model, evaluate, load_run, train
from mlfm_zoo.segmentation.data import Labels, SegmentationDataset, eval_transform, train_transform
from mlfm_zoo_cli import main

SMALL = dict(model='unet', encoder=None, model_kwargs=dict(base_width=4), crop_size=(32, 48), batch_size=4, warmup=4)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('shapes'))


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
        (tmp_path / 'parts' / '.unfinished-last').mkdir()  # as of one that was killed while it wrote
        (tmp_path / 'parts' / '.unfinished-last' / 'model.safetensors').touch()
    best = train(settings, tmp_path / 'parts', log=lambda line: None)
    assert curve(tmp_path / 'whole') == curve(tmp_path / 'parts') and len(curve(tmp_path / 'whole')) == settings.epochs
    for name in ('last', 'best'):
        whole, parts = (load_file(tmp_path / run / name / 'model.safetensors') for run in ('whole', 'parts'))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert best['miou'] == max(float(row['miou'] or 0) for row in curve(tmp_path / 'parts'))
    assert {f.name for f in (tmp_path / 'parts').iterdir()} == {
        'best', 'last', 'log.csv', 'state.pth', '.lock'}
    with pytest.raises(ValueError, match='has a run with lr 0.001 instead of 0.5: name another folder'):
        train(dataclasses.replace(settings, lr=0.5), tmp_path / 'parts')


def test_frozen_encoder(data, tmp_path):
    settings = settings_for(
        data, model='fcn16s', encoder='test_mlfm_resnet', pretrained=True, model_kwargs={}, epochs=1,
        freeze_encoder=True, lr=1e-2)
    before = create_model('fcn16s', 'test_mlfm_resnet', num_classes=3, pretrained=True).state_dict()
    train(settings, tmp_path, log=lambda line: None)
    after = load_file(tmp_path / 'last' / 'model.safetensors')
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert all('memory.' in k or not k.startswith('encoder.') for k in changed)
    assert any('memory.' in k for k in changed)


def test_memory_at_identity_is_calibrated(data, tmp_path):
    """Before training from a warm start, on images as they are trained on; a rate of 0 keeps what it gave."""
    settings = settings_for(
        data, model='fcn16s', encoder='resnet10t', model_kwargs=dict(RESNET, memory=True), lr=0.0, epochs=1,
        color_jitter=0.0)
    train(settings, tmp_path, log=lambda line: None)
    trained = load_file(tmp_path / 'last' / 'model.safetensors')
    torch.manual_seed(0)
    expected = create_model('fcn16s', 'resnet10t', num_classes=3, memory=True, **RESNET)
    gate = expected.encoder.model.memory.pool.output_gate
    at_identity = gate.weight.clone()
    images = SegmentationDataset(
        data, 'train', Labels.from_json(LABELS),
        train_transform((32, 48), expected.mean, expected.std, color_jitter=0.0))
    mlfm_zoo.calibrate_memory(expected, torch.utils.data.DataLoader(images, settings.batch_size))
    assert not gate.weight.allclose(at_identity)
    assert all(torch.equal(trained[name], parameter) for name, parameter in expected.named_parameters())


def test_loaded_run(data, tmp_path):
    settings = settings_for(data, epochs=1)
    train(settings, tmp_path, log=lambda line: None)
    model, labels, again = load_run(tmp_path / 'best')
    assert isinstance(model, SegmentationNetwork) and not model.training
    assert labels == Labels.from_json(LABELS) and again.lr == settings.lr
    with pytest.raises(ValueError, match='has no network of a run: give the folder best or last'):
        load_run(tmp_path)
    file = tmp_path / 'best' / 'run.json'
    run = json.loads(file.read_text())
    for name, value in (
            ('epochs', 'ten'), ('epochs', 0), ('epochs', 1.5), ('epochs', True), ('lr', 'high'), ('lr', None),
            ('val_every', 0), ('in_chans', [3]), ('img_size', 64), ('img_size', [64]), ('img_size', [64, -1]),
            ('crop_size', None), ('scale', [0.5, 'x']), ('model_kwargs', []), ('encoder', 5), ('amp', 'fp8'),
            ('pretrained', 'yes'), ('data', None), ('unknown', 1)):
        file.write_text(json.dumps(dict(run, settings=dict(run['settings'], **{name: value}))))
        with pytest.raises(ValueError, match=f'run.json .*{name}.*, expected') as error:
            load_run(tmp_path / 'best')
        assert '\n' not in str(error.value)
    for text in ('[]', '5', '{}', '{"settings": {}, "labels": []}', '{', '[' * 100_000, '{"settings": 1, "labels": 2}'):
        file.write_text(text)
        with pytest.raises(ValueError, match='run.json'):
            load_run(tmp_path / 'best')


def test_state_is_checked(data, tmp_path):
    """A run resumes from no state with a flipped bit, nor from one of half its length."""
    train(settings_for(data, epochs=1), tmp_path, log=lambda line: None)
    file = tmp_path / 'state.pth'
    whole = file.read_bytes()
    bits = bytearray(whole)
    position = whole.index(torch.load(file)['model']['encoder.0.0.weight'].numpy().tobytes())
    bits[position + 5] ^= 4
    for damaged in (bytes(bits), whole[:len(whole) // 2], b''):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match='state.pth is damaged: remove it to train from the beginning'):
            train(settings_for(data, epochs=1), tmp_path)
    file.write_bytes(whole)
    assert train(settings_for(data, epochs=1), tmp_path)['epoch'] == 0


def test_one_training_at_a_time(data, tmp_path):
    settings = settings_for(data, epochs=1)

    def again(line):
        with pytest.raises(RuntimeError, match='is in use by another run: wait for it, or name another folder'):
            train(settings, tmp_path)
        raise Killed

    with pytest.raises(Killed):
        train(settings, tmp_path, log=again)
    assert train(settings, tmp_path)['epoch'] == 0


def test_full_disk(data, tmp_path):
    for limit in (2000, 100_000):  # while the network is written, and the state
        with full_disk(limit), pytest.raises(OSError) as error:
            train(settings_for(data, epochs=1), tmp_path / str(limit), log=lambda line: None)
        assert not (tmp_path / str(limit) / 'state.pth').exists() and '\n' not in str(error.value)


@pytest.mark.parametrize('encoder, options, mean, std', [
    ('test_mlfm_resnet', {}, 0.5, 0.5), ('resnet10t', RESNET, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_images_are_normalized_for_the_encoder(tmp_path, encoder, options, mean, std):
    """In training, evaluation and prediction: pixels of 51, a fifth of white, become (0.2 - mean) / std."""
    write_data(tmp_path)
    for file in [*tmp_path.glob('train/*.png'), *tmp_path.glob('val/*.png')]:
        Image.new('RGB', (64, 48), (51, 51, 51)).save(file)
    expected = ((0.2 - torch.tensor(mean)) / torch.tensor(std)).expand(3)[:, None, None]
    seen = []

    def record(module, args):
        if isinstance(module, SegmentationNetwork):
            seen.append((args[0] - expected).abs().max().item())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
    try:
        settings = settings_for(
            tmp_path, model='fcn8s', encoder=encoder, model_kwargs=dict(options), epochs=1, crop_size=(48, 64),
            scale=(1.5, 1.8), color_jitter=0.0)  # crops without padding
        train(settings, tmp_path / 'run', log=lambda line: None)
        assert len(seen) >= 8 and max(seen) < 1e-5
        for name, *rest in (
                ['evaluate', tmp_path], ['predict', tmp_path / 'val' / '000.png', '--output', tmp_path / 'out']):
            seen.clear()
            assert main(['segment', name, str(tmp_path / 'run' / 'last'), *map(str, rest), '--device', 'cpu']) == 0
            assert seen and max(seen) < 1e-5
    finally:
        hook.remove()


def test_refused(data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="amp is 'fp8', expected none or"):
        TrainSettings('data', amp='fp8')
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="There is no device cuda on this machine: give another, such as cpu"):
            train(settings_for(data), tmp_path, 'cuda')
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(RuntimeError, match=r"Training needs accelerate, .*: pip install 'mlfm-zoo\[segmentation\]'"):
        train(settings_for(data), tmp_path)


def command(data, run, *options):
    return [
        '-m', 'mlfm_zoo', 'segment', 'train', str(data), '--output', str(run), '--labels',
        str(data / 'labels.json'), '--model', 'fcn8s', '--encoder', 'test_mlfm_resnet', '--crop-size', '32', '48',
        '--batch-size', '2', '--lr', '0.003', '--warmup', '4', '--device', 'cpu', *options]


ENVIRONMENT = dict(os.environ, PYTHONPATH=os.pathsep.join(IMPORTS), OMP_NUM_THREADS='1')


@pytest.mark.slow
def test_killed_process_ends_as_the_whole(data, tmp_path):
    options = ('--epochs', '6', '--workers', '1')
    subprocess.run([sys.executable, *command(data, tmp_path / 'whole', *options)], check=True, env=ENVIRONMENT)
    process = subprocess.Popen([sys.executable, *command(data, tmp_path / 'parts', *options)], env=ENVIRONMENT)
    while not (tmp_path / 'parts' / 'log.csv').exists() or len(curve(tmp_path / 'parts')) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(curve(tmp_path / 'parts')) < 6
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
    model, labels, _ = load_run(tmp_path / 'run' / 'best')
    dataset = SegmentationDataset(data, 'val', labels, eval_transform(model.mean, model.std))
    miou = evaluate(model, dataset, 3, boundaries=False).miou
    assert 100 * miou == pytest.approx(max(float(row['miou']) for row in rows), abs=0.01)
    assert miou > 0.4
    again = subprocess.run(  # one process loads the state that two wrote
        [sys.executable, *command(data, tmp_path / 'run', *options)], env=ENVIRONMENT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.startswith('best epoch'), again.stderr
