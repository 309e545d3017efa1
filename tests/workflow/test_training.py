"""Training as timm's train.py does it: gradients, options, determinism, several processes, and a walk to the Hub."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

import helpers.launcher
from digits import write_digits
from helpers.hub_server import HubServer
from helpers.networks import SMALL
from helpers.user import IMPORTS, User
from mlfm_zoo.hub.manifest import read_manifest
from mlfm_zoo.workflow.collect import read_run
from mlfm_zoo_cli import main

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
LIKE_TIMM = TESTS / 'train_like_timm.py'
# timm's own train.py where its folder is named, and else a script of the same arguments and files
SCRIPT = Path(os.environ['MLFM_ZOO_TIMM_SCRIPTS'], 'train.py') if 'MLFM_ZOO_TIMM_SCRIPTS' in os.environ else LIKE_TIMM
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']


@pytest.fixture(scope='module')
def few_digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('few'), 128, 64)


def command(data, output, experiment, *options, epochs=2, processes=1):
    # timm's own runs several processes on GPUs only, whatever the network: it names a device to DDP
    launcher, script = ([sys.executable], SCRIPT) if processes == 1 else (TORCHRUN, LIKE_TIMM)
    return [*launcher, helpers.launcher.__file__, str(script), '--data-dir', str(data), '--output', str(output),
            '--experiment', experiment, '--model', 'test_mlfm_resnet', '--num-classes', '10', '--device', 'cpu',
            '--epochs', str(epochs), '--warmup-epochs', '0', '--opt', 'sgd', '--lr', '0.05', '--batch-size', '32',
            '--workers', '1', '--smoothing', '0', '--no-prefetcher', *options]


def environment():
    return dict(os.environ, PYTHONPATH=os.pathsep.join(IMPORTS), OMP_NUM_THREADS='1')


def train(*args, **kwargs):
    result = subprocess.run(command(*args, **kwargs), env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def curve(folder):
    with open(folder / 'summary.csv', newline='') as f:
        return [(row['epoch'], row['train_loss'], row['eval_top1']) for row in csv.DictReader(f)
                if row['epoch'] != 'epoch']


def state(path):
    return timm.models.load_state_dict(str(path), weights_only=True)


def cancelled_by_a_norm(name):
    """Biases of the gates' convolutions: the norm after them takes them off again."""
    return name.startswith('memory.') and name.endswith('gate.conv.bias')


@pytest.mark.parametrize('name', SMALL)
def test_every_memory_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **SMALL[name]).train()
    nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    gradients = {n: p.grad for n, p in model.named_parameters()
                 if n.startswith('memory.') and not cancelled_by_a_norm(n)}
    assert gradients and all(grad is not None and grad.any() for grad in gradients.values())


@pytest.mark.parametrize('name', SMALL)
def test_all_norms_become_synchronised(name):
    model = timm.create_model(name, **SMALL[name])
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    converted = convert_sync_batchnorm(model)
    assert {n for n, m in converted.named_modules() if isinstance(m, nn.SyncBatchNorm)} == norms
    assert any(n.startswith('memory.') for n in norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in converted.modules())


@pytest.mark.slow
def test_options_of_train(few_digits, tmp_path):
    """Moving average, clipping, accumulation, mixed precision, channels_last and checkpointing together."""
    name = 'mlfm_mobilenetv2_010'
    train(few_digits, tmp_path, 'run', '--model', name, '--img-size', '64', '--model-ema', '--model-ema-decay', '0.9',
          '--clip-grad', '1', '--grad-accum-steps', '2', '--amp', '--amp-dtype', 'bfloat16', '--channels-last',
          '--grad-checkpointing')
    checkpoint = str(tmp_path / 'run' / 'last.pth.tar')
    weights, averages = (
        timm.models.load_state_dict(checkpoint, use_ema=ema, weights_only=True) for ema in (False, True))
    torch.manual_seed(42)
    start = timm.create_model(name, num_classes=10).state_dict()
    for key in (k for k in start if k.startswith('memory.') and start[k].is_floating_point()):
        assert weights[key].isfinite().all()
        if not cancelled_by_a_norm(key):
            assert not torch.equal(weights[key], averages[key]) and not torch.equal(weights[key], start[key]), key


@pytest.mark.slow
def test_walk_from_images_to_the_hub_and_back(tmp_path, capsys):
    """Baseline and memory on two processes, one run killed and resumed, collected, published, loaded, validated."""
    data = write_digits(tmp_path / 'digits', 1437, 360)
    runs = tmp_path / 'runs'
    options = ['--no-aug', '--seed', '3']
    train(data, runs, 'whole', *options, epochs=4, processes=2)
    train(data, runs, 'baseline', *options, '--model-kwargs', 'memory=False', epochs=4, processes=2)

    killed = subprocess.Popen(
        command(data, runs, 'resumed', *options, epochs=4, processes=2), env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    summary = runs / 'resumed' / 'summary.csv'
    while not (summary.exists() and len(curve(summary.parent)) >= 2):
        assert killed.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)  # into the next epoch
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert main(['collect', str(runs / 'resumed')]) == 1
    assert 'is not finished, it has' in capsys.readouterr().err
    train(data, runs, 'resumed', *options, '--resume', str(runs / 'resumed' / 'last.pth.tar'), epochs=4, processes=2)
    whole, resumed = (state(runs / name / 'last.pth.tar') for name in ('whole', 'resumed'))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert read_run(runs / 'resumed').best[:2] == read_run(runs / 'whole').best[:2]

    assert main(['collect', *map(str, runs.iterdir()), '--num-images', '360', '--json']) == 0
    best, last = json.loads(capsys.readouterr().out)
    for row, which in ((best, 'best'), (last, 'last')):
        assert row['epoch'] == which and len(row['memory']['top1']) == 2 and len(row['baseline']['top1']) == 1
        assert row['memory']['deviation'] == 0  # of one run and the same run resumed
        assert row['difference'] == pytest.approx(row['memory']['mean'] - row['baseline']['mean'])
    assert best['memory']['mean'] > 80

    with HubServer() as server:
        user = User(server, tmp_path)
        shutil.move(runs / 'resumed', tmp_path / 'resumed')
        result = user.command(
            'collect', tmp_path / 'resumed', '--publish', 'org', '--tag', 'walked', '--data', data / 'val',
            '--manifest', user.manifest)
        assert result.returncode == 0, result.stderr
        entry = read_manifest(user.manifest).checkpoints['test_mlfm_resnet', 'walked', True]
        top1, _ = entry.measured.values()
        assert top1 == pytest.approx(best['memory']['mean'], abs=0.01)
        evaluated = user.command('evaluate', 'test_mlfm_resnet.walked', data / 'val')
        assert f'({top1:.2f} %)' in evaluated.stdout, evaluated.stderr
        assert 'epochs 4' in server.files('org/test_mlfm_resnet.walked')['README.md'].decode()
