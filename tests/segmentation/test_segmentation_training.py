"""Training on a made-up data set: it learns, resumes after a kill with the same curve, and runs in two processes."""

import csv
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mlfm_zoo
from helpers.disks import full_disk
from helpers.segmentation import RESNET, write_data
from helpers.shape_folders import LABELS
from helpers.user import IMPORTS
from mlfm_zoo._files import locked
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


def kill(line):
    """As if the process died after an epoch."""
    raise Killed


@pytest.mark.parametrize('kwargs', [
    dict(epochs=3, ema_decay=0.9, val_every=2, model_kwargs=dict(base_width=4, aux=True, drop_rate=0.2)),
    dict(epochs=2, model='fcn8s', encoder='test_mlfm_resnet', model_kwargs={}, amp='bfloat16', clip_grad=1.0,
         channels_last=True, grad_checkpointing=True, label_smoothing=0.1),
])
def test_interrupted_run_ends_as_the_whole(data, tmp_path, kwargs):
    settings = settings_for(data, **kwargs)
    train(settings, tmp_path / 'whole', log=lambda line: None)
    for _ in range(settings.epochs - 1):
        with pytest.raises(Killed):
            train(settings, tmp_path / 'parts', log=kill)
        (tmp_path / 'parts' / '.unfinished-last').mkdir()  # as of one that was killed while it wrote
        (tmp_path / 'parts' / '.unfinished-last' / 'model.safetensors').touch()
    best = train(settings, tmp_path / 'parts', log=lambda line: None)
    assert curve(tmp_path / 'whole') == curve(tmp_path / 'parts') and len(curve(tmp_path / 'whole')) == settings.epochs
    for name in ('last', 'best'):
        whole, parts = (load_file(tmp_path / run / name / 'model.safetensors') for run in ('whole', 'parts'))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert best['miou'] == max(float(row['miou'] or 0) for row in curve(tmp_path / 'parts'))
    assert {f.name for f in (tmp_path / 'parts').iterdir()} == {'best', 'last', 'log.csv', 'state.pth', '.lock'}
    with pytest.raises(ValueError, match=r'has a run with other settings \(lr\): name another folder'):
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
        data, 'train', Labels.from_json(LABELS), train_transform(settings, expected.mean, expected.std))
    mlfm_zoo.calibrate_memory(expected, torch.utils.data.DataLoader(images, settings.batch_size))
    assert not gate.weight.allclose(at_identity)
    assert all(torch.equal(trained[name], parameter) for name, parameter in expected.named_parameters())


def test_files_of_a_run(data, tmp_path):
    """They load as they were written, or are named; a run resumes from no state with a flipped bit."""
    settings = settings_for(data, epochs=1)
    train(settings, tmp_path, log=lambda line: None)
    model, labels, again = load_run(tmp_path / 'best')
    assert isinstance(model, SegmentationNetwork) and not model.training
    assert labels == Labels.from_json(LABELS) and again == settings
    with pytest.raises(ValueError, match='has no network of a run: give the folder best or last'):
        load_run(tmp_path)
    file = tmp_path / 'best' / 'run.json'
    run = json.loads(file.read_text())
    sizes = ('x', 3, [64], ['a', 'b'], {'a': 1}, [6.5, 6])
    of_other_types = [dict(run, settings=dict(run['settings'], img_size=size)) for size in sizes]
    for other in ([], {}, dict(run, settings=dict(run['settings'], unknown=1)), dict(run, labels=dict(names=3)),
                  dict(run, labels=dict(run['labels'], void=3)), *of_other_types):
        file.write_text(json.dumps(other))
        with pytest.raises(ValueError, match='run.json cannot be used') as error:
            load_run(tmp_path / 'best')
        assert '\n' not in str(error.value)
    names = dict(run['labels'], names=[*run['labels']['names'], 'other'], values=[], colors=[])
    for other in (dict(run, labels=names), dict(run, settings=dict(run['settings'], in_chans=1))):
        file.write_text(json.dumps(other))
        with pytest.raises(ValueError, match='the network beside it 3 and 3, expected files of one run'):
            load_run(tmp_path / 'best')
    file = tmp_path / 'state.pth'
    bits = bytearray(file.read_bytes())
    bits[bits.index(torch.load(file)['model']['encoder.0.0.weight'].numpy().tobytes()) + 5] ^= 4
    file.write_bytes(bits)
    with pytest.raises(ValueError, match='state.pth is damaged'):
        train(settings, tmp_path)


def test_one_training_at_a_time(data, tmp_path):
    with locked(tmp_path), pytest.raises(RuntimeError, match='is in use by another run: wait for it, or name another'):
        train(settings_for(data, epochs=1), tmp_path)
    with pytest.raises(Killed):
        train(settings_for(data, epochs=1), tmp_path, log=kill)
    assert train(settings_for(data, epochs=1), tmp_path)['epoch'] == 0  # a run that died holds no lock


def test_full_disk(data, tmp_path):
    with full_disk(900_000), pytest.raises(OSError, match='File too large'):  # the network fits, the state does not
        train(settings_for(data, epochs=1), tmp_path, log=lambda line: None)
    assert (tmp_path / 'last' / 'model.safetensors').exists() and not (tmp_path / 'state.pth').exists()


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

    settings = settings_for(
        tmp_path, model='fcn8s', encoder=encoder, model_kwargs=dict(options), epochs=1, crop_size=(48, 64),
        scale=(1.5, 1.8), color_jitter=0.0)  # crops without padding
    run = str(tmp_path / 'run' / 'last')
    with torch.nn.modules.module.register_module_forward_pre_hook(record):
        for step in (
                lambda: train(settings, tmp_path / 'run', log=lambda line: None),
                lambda: main(['segment', 'evaluate', run, str(tmp_path), '--device', 'cpu']),
                lambda: main(['segment', 'predict', run, str(tmp_path / 'val' / '000.png'), '--output',
                              str(tmp_path / 'out'), '--device', 'cpu'])):
            seen.clear()
            step()
            assert seen and max(seen) < 1e-5


def test_refused(data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="amp is 'fp8', expected none or"):
        TrainSettings('data', amp='fp8')
    with pytest.raises(ValueError, match='There is no device npu:9'):
        train(settings_for(data), tmp_path, 'npu:9')
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(RuntimeError, match=r"Training needs accelerate, .*: pip install 'mlfm-zoo\[segmentation\]'"):
        train(settings_for(data), tmp_path)


@pytest.mark.slow
def test_two_processes(data, tmp_path):
    """By torchrun: both evaluate their share, one writes, and the network is as good as from one process."""
    command = [
        '-m', 'mlfm_zoo', 'segment', 'train', data, '--output', tmp_path / 'run', '--labels', data / 'labels.json',
        '--encoder', 'test_mlfm_resnet', '--crop-size', '32', '48', '--batch-size', '2', '--lr', '0.003', '--warmup',
        '4', '--device', 'cpu', '--epochs', '20', '--workers', '0']

    def run(*program):
        return subprocess.run(
            [sys.executable, *program, *map(str, command)], capture_output=True, text=True,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(IMPORTS), OMP_NUM_THREADS='1'))

    result = run('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    assert result.returncode == 0, result.stderr
    rows = curve(tmp_path / 'run')
    assert len(rows) == 20 and result.stdout.count('epoch 19:') == 1
    model, labels, _ = load_run(tmp_path / 'run' / 'best')
    dataset = SegmentationDataset(data, 'val', labels, eval_transform(model.mean, model.std))
    miou = evaluate(model, dataset, 3, boundaries=False).miou
    assert 100 * miou == pytest.approx(max(float(row['miou']) for row in rows), abs=0.01)
    assert miou > 0.4
    again = run()  # one process loads the state that two wrote
    assert again.returncode == 0 and again.stdout.startswith('best epoch'), again.stderr
