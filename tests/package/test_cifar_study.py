"""benchmarks/study: a killed study resumes, parts of a plan run at once, widths match, figures agree with scipy's."""

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from scipy import stats
from timm.models import load_state_dict
from torch.utils.flop_counter import FlopCounterMode

from digits import write_digits
from helpers.tables import read_table
from mlfm_zoo.hub.manifest import paper_accuracies
from mlfm_zoo.workflow.collect import Epoch, Run
from mlfm_zoo.workflow.recipe import load_recipe
from mlfm_zoo_cli import main as mlfm_zoo_main

ROOT = Path(__file__).parents[2]
STUDY = ROOT / 'benchmarks' / 'study'
MODEL = 'test_mlfm_resnet'


sys.path.append(str(STUDY))
plans, runner, reporter = map(importlib.import_module, ('plan', 'run', 'report'))


def write_plan(path, arms, epochs, seeds=(0,), **settings):
    # all images in one batch without augmentation: their order, which a stop changes, makes no difference
    settings = dict(dict(
        epochs=epochs, num_classes=10, img_size=32, val_split='val', batch_size=128, no_aug=True, opt='sgd', lr=0.05,
        warmup_epochs=0, workers=0, device='cpu', no_prefetcher=True), **settings)
    plan = dict(
        settings=settings, seeds=list(seeds), radii=[2, 100], sizes=[48],
        networks=dict(tiny=dict(model=MODEL, arms=arms)))
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def command(plan, folder, *options):
    return [sys.executable, str(STUDY / 'run.py'), str(plan), '--data', str(folder / 'digits'), '--timm',
            str(folder / 'timm'), '--output', str(folder / 'output'), '--results', str(folder / 'results'), *options]


@pytest.fixture
def folder(tmp_path):
    write_digits(tmp_path / 'digits', 128, 64)
    (tmp_path / 'timm').mkdir()
    shutil.copy(ROOT / 'tests' / 'workflow' / 'train_like_timm.py', tmp_path / 'timm' / 'train.py')
    return tmp_path


@pytest.mark.slow
def test_killed_study_resumes(folder):
    """Two arms of the same network: the run that was killed ends where the one that was not ends."""
    plan = write_plan(folder / 'plan.yaml', {'memory': {}, 'same': {'memory_update': 'add'}}, epochs=30)
    killed = subprocess.Popen(
        command(plan, folder), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    run = folder / 'output' / 'tiny-memory-seed0'
    while not ((run / 'last.pth.tar').exists() and len(runner.read_curve(run)) >= 2):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGSTOP)
    other = subprocess.run(command(plan, folder), capture_output=True, text=True)
    assert other.returncode == 1 and other.stderr.startswith(f'Another process works in {run}.\n')
    assert [row['arm'] for row in read_table(folder / 'results' / 'runs.csv')] == ['same']
    os.kill(killed.pid, signal.SIGKILL)  # train.py, which still holds the lock, lives on
    killed.wait()
    with runner.held(run / 'lock') as lock:
        assert lock is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert 2 <= len(runner.read_curve(run)) < 30

    done = subprocess.run(command(plan, folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resumed = yaml.safe_load((run / 'args.yaml').read_text())
    assert resumed['resume'] == str(run / 'last.pth.tar')
    curves = [read_table(folder / 'results' / 'curves' / f'tiny-{arm}-seed0.csv') for arm in ('memory', 'same')]
    assert [[int(row['epoch']) for row in curve] for curve in curves] == [[*range(30)]] * 2
    resumed, whole = ([float(row['train_loss']) for row in curve] for curve in curves)
    assert resumed == pytest.approx(whole, rel=0.01) and whole[-1] < 0.5 * whole[0]  # sums of a batch in another order

    [memory, same] = read_table(folder / 'results' / 'runs.csv')
    assert (memory['arm'], same['arm'], memory['epochs']) == ('memory', 'same', '30')
    assert json.loads(same['kwargs']) == {'memory_update': 'add'} and float(same['seconds']) > 0
    # answers of the network, computed here once more
    model = timm.create_model(MODEL, num_classes=10)
    weights = load_state_dict(str(folder / 'output' / 'tiny-same-seed0' / 'last.pth.tar'), weights_only=True)
    model.load_state_dict(weights)
    files = sorted((folder / 'digits' / 'val').rglob('*.png'))

    def answers(size):
        transform = timm.data.create_transform(**timm.data.resolve_data_config({'img_size': size}, model=model))
        with torch.no_grad():
            images = (transform(timm.data.dataset.Image.open(file)) for file in files)
            return [model.eval()(image[None]).argmax().item() for image in images]

    labels = [int(file.parent.name) for file in files]
    right = [answer == label for answer, label in zip(answers(32), labels)]
    study = reporter.read_study(folder / 'results')
    larger = statistics.fmean(answer == label for answer, label in zip(answers(48), labels))
    assert study.sizes['tiny', 'same', '0'][48] == pytest.approx(100 * larger, abs=0.01)
    assert study.right['tiny', 'same', '0', 'last'].tolist() == right
    assert 100 * sum(right) / len(right) == pytest.approx(float(same['last_top1']))
    assert study.lowpass['tiny', 'same', '0'][100] == pytest.approx(float(same['last_top1']), abs=0.01)  # keeps all

    assert not runner.missing(plans.read_plan(plan).jobs, folder / 'results')  # nothing is run twice
    write_plan(plan, {'memory': {}}, epochs=30, lr=0.1)
    with pytest.raises(runner.PlanError, match='was run with other arguments'):
        runner.missing(plans.read_plan(plan).jobs, folder / 'results')


@pytest.mark.slow
def test_whole_study_in_two_parts(folder, capsys):
    arms = {'memory': {}, 'baseline': {'memory': False}, 'wide': {
        'memory': False, 'channels': {'match': 'memory', 'start': [16, 24, 32, 40]}}}
    plan = write_plan(folder / 'plan.yaml', arms, epochs=2)
    parts = [subprocess.Popen(
        command(plan, folder, '--shard', f'{i}/2'), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for i in (1, 2)]
    for part in parts:
        _, errors = part.communicate()
        assert part.returncode == 0, errors
    rows = read_table(folder / 'results' / 'runs.csv')
    assert [row['arm'] for row in rows] == list(arms)
    assert mlfm_zoo_main(['collect', *map(str, sorted((folder / 'output').glob('tiny-*'))), '--num-images', '64']) == 0
    collected = capsys.readouterr().out
    printed = subprocess.run(
        [sys.executable, STUDY / 'report.py', folder / 'results'], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    for row in rows[:2]:
        top1 = f'{float(row["last_top1"]):.2f}'
        assert top1 in printed.stdout and top1 in collected
    for name in ('curves.png', 'lowpass.png'):
        assert (folder / 'results' / name).stat().st_size > 1000


def multiply_adds(model, size=64, **kwargs):
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        timm.create_model(model, num_classes=10, **kwargs).eval()(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize('plan', [
    'cifar10-cpu', *(pytest.param(plan, marks=pytest.mark.slow) for plan in ('cifar10-gpu', 'imagenette-cpu'))])
def test_widened_arms(plan):
    """Within 2 % of the memory's multiply-adds."""
    jobs = {(job.network, job.arm): job for job in plans.read_plan(STUDY / f'{plan}.yaml').jobs}
    for (network, arm), job in jobs.items():
        assert job.cost.madds == multiply_adds(job.model, job.settings['img_size'], **job.kwargs)
        if arm == 'wide':
            assert job.cost.madds / jobs[network, 'memory'].cost.madds == pytest.approx(1, abs=0.02)


def test_nearest_width():
    """In steps that the network takes, whole channels of a stem: no other number of them comes nearer."""
    target = 1.01 * multiply_adds(MODEL)
    kwargs = dict(memory=False, stem_width=dict(match='memory', start=8))
    width = plans.match_width(MODEL, kwargs, 'stem_width', dict(img_size=64, num_classes=10), target)
    distance = {w: abs(multiply_adds(MODEL, memory=False, stem_width=w) - target) for w in range(8, 20)}
    assert width == min(distance, key=distance.__getitem__) > 8


def test_imagenet100_plan():
    """Each network of the paper's table, with and without memory, three seeds, and all settings of its recipe."""
    jobs = plans.read_plan(STUDY / 'imagenet100.yaml').jobs
    assert [(job.model, job.kwargs, job.seed) for job in jobs] == [
        (model, kwargs, seed)
        for seed in range(3) for model in paper_accuracies() for kwargs in ({}, {'memory': False})]
    for job in jobs:
        recipe = load_recipe(job.model).settings
        assert {name: job.settings[name] for name in recipe} == recipe and job.settings['val_split'] == 'val'
        assert job.settings['img_size'] == timm.get_pretrained_cfg_value(job.model, 'input_size')[-1] or (
            job.settings['img_size'] == recipe['img_size'])


def test_command_of_a_recipe(tmp_path):
    """Lists, switches and pairs of a recipe stand on the command line as timm's train.py reads them."""
    jobs = plans.read_plan(STUDY / 'imagenet100.yaml').jobs
    job = next(job for job in jobs if job.model == 'mlfm_resnet50' and job.kwargs)
    line = runner.training_command(job, argparse.Namespace(data=Path('DATA'), timm=tmp_path, output=Path('OUTPUT')))
    assert line[1:5] == ['-m', 'mlfm_zoo', 'run', str(tmp_path / 'train.py')]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--model-kwargs', nargs='*', action=timm.utils.ParseKwargs)
    parser.add_argument('--decay-milestones', nargs='+', type=int)
    parser.add_argument('--amp', action='store_true')
    parser.add_argument('--experiment')
    args, _ = parser.parse_known_args(line[5:])
    assert vars(args) == dict(
        model_kwargs={'memory': False}, decay_milestones=[30, 60], amp=True,
        experiment='mlfm_resnet50-baseline-seed0')


# Images a second of training on an RTX 3090, from timm's results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv.
@pytest.mark.parametrize('model, speed', [
    ('mobilenetv2_035', 4789), ('regnety_008', 993), ('convnext_tiny', 819)])
def test_estimate(model, speed):
    job = plans.Job(model, '', 0, model, {}, dict(img_size=224, num_classes=1000, epochs=2))
    assert 1 / 2.2 < job.estimate_hours(1000) / (2 * 1000 / speed / 3600) < 1.4


def test_parts_of_a_plan():
    """Each run is in one part, and the work of two parts differs by less than the largest run."""
    jobs = [plans.Job('tiny', 'memory', seed, MODEL, {}, dict(img_size=32, num_classes=10, epochs=1 + 7 * seed % 11))
            for seed in range(40)]
    for of in (1, 3, 8):
        parts = [plans.share(jobs, number, of) for number in range(1, of + 1)]
        assert sorted((job for part in parts for job in part), key=jobs.index) == jobs
        epochs = [sum(job.settings['epochs'] for job in part) for part in parts]
        assert max(epochs) - min(epochs) <= 11 and all(part == sorted(part, key=jobs.index) for part in parts)
    for text in ('0/2', '3/2', '1', 'a/b', '1/-2'):
        with pytest.raises(argparse.ArgumentTypeError, match='is no part'):
            runner.parse_shard(text)


def keep_all(jobs, plan, folder):
    for job in jobs:
        (folder / job.name).mkdir()
        (folder / job.name / 'summary.csv').write_text('epoch,train_loss,eval_loss,eval_top1,lr\n0,2.0,1.0,50.0,0.1\n')
        epoch = Epoch(0, 50.0, Path())
        bits = np.arange(8) % 2 == 0
        figures = runner.Figures({'last': bits, 'best': bits}, {2.0: 40.0}, {48: 30.0})
        run = Run(folder / job.name, job.model, True, {}, {}, epoch, epoch)
        runner.keep(job, run, figures, plan, argparse.Namespace(results=folder / 'results', threads=1))


def test_processes_write_at_once(tmp_path):
    """Four processes write the figures of twenty runs each into the same tables, and nothing is lost or torn."""
    settings = dict(img_size=32, num_classes=10, device='cpu')
    jobs = [plans.Job('tiny', 'memory', seed, MODEL, {}, settings) for seed in range(80)]
    plan = plans.Plan(jobs, [2.0], [48])
    assert jobs[0].cost.params > 0
    with multiprocessing.get_context('fork').Pool(4) as writers:
        writers.starmap(keep_all, [(jobs[i::4], plan, tmp_path) for i in range(4)], chunksize=1)
    for name, lines in (('runs', 1), ('images', 2), ('lowpass', 1), ('sizes', 1)):
        found = read_table(tmp_path / 'results' / f'{name}.csv')
        assert [int(row['seed']) for row in found] == [seed for seed in range(80) for _ in range(lines)]


def test_another_timm_is_refused(tmp_path):
    """train.py would import the timm beside it, and not the one whose version is written down."""
    runner.check_timm(tmp_path)
    version = tmp_path / 'timm' / 'version.py'
    version.parent.mkdir()
    version.write_text(f"__version__ = '{timm.__version__}'\n")
    runner.check_timm(tmp_path)
    version.write_text("__version__ = '0.9.1'\n")
    with pytest.raises(runner.PlanError, match='holds timm 0.9.1'):
        runner.check_timm(tmp_path)


@pytest.fixture
def figures(tmp_path):
    """Three seeds of three arms, one of which lacks a seed, of 1,003 images."""
    rng = np.random.default_rng(1)
    runs, images, lowpass, right = [], [], [], {}
    (tmp_path / 'curves').mkdir()
    easy = rng.random(1003)
    for seed in range(3):
        for arm, level in (('memory', 0.75), ('baseline', 0.7), ('wide', 0.72))[:2 if seed == 2 else 3]:
            for epoch in ('best', 'last'):
                bits = 0.7 * easy + 0.3 * rng.random(1003) < level
                right[arm, seed, epoch] = bits
                images.append(('tiny', arm, seed, epoch, 1003, runner.pack(bits)))
            best, last = (100 * right[arm, seed, epoch].mean() for epoch in ('best', 'last'))
            runs.append(dict(
                network='tiny', arm=arm, seed=seed, model=MODEL, kwargs='{}', settings='{}', params=10, madds=20,
                best_epoch=1, best_top1=best, epochs=3, last_top1=last, seconds=2 + seed, cpu_seconds=3, device='cpu',
                test_images=1003, threads=1, mlfm_zoo='', torch='', timm=''))
            lowpass += [('tiny', arm, seed, radius, last - 10 / radius) for radius in (2, 4)]
            (tmp_path / 'curves' / f'tiny-{arm}-seed{seed}.csv').write_text('epoch,eval_top1\n0,1.0\n1,2.0\n')
    columns = runner.RUN_COLUMNS
    runner.write_table(tmp_path / 'runs.csv', columns, [[row[column] for column in columns] for row in runs])
    runner.write_table(tmp_path / 'images.csv', ('network', 'arm', 'seed', 'epoch', 'images', 'right'), images)
    runner.write_table(tmp_path / 'lowpass.csv', ('network', 'arm', 'seed', 'radius', 'top1'), lowpass)
    return tmp_path, right


@pytest.mark.parametrize('other, seeds, epoch', [('baseline', 3, 'last'), ('wide', 2, 'best')])
def test_differences(figures, other, seeds, epoch):
    folder, right = figures
    found = reporter.difference(reporter.read_study(folder), 'tiny', other, epoch)
    memory, without = (
        np.stack([right[arm, seed, epoch] for seed in range(seeds)]).astype(float) for arm in ('memory', other))
    differences = 100 * memory.mean(1) - 100 * without.mean(1)
    assert found.seeds == seeds and found.mean == pytest.approx(differences.mean())
    interval = stats.t.interval(0.95, seeds - 1, loc=differences.mean(), scale=stats.sem(differences))
    assert found.over_seeds == pytest.approx(interval)
    images = 100 * (memory - without).mean(0)
    drawn = np.random.default_rng(2).integers(1003, size=(10000, 1003))  # Monte Carlo, as what it is compared with
    assert found.over_images == pytest.approx(tuple(np.percentile(images[drawn].mean(1), [2.5, 97.5])), abs=0.1)
    low, high = found.over_images
    assert (f'| `tiny` | {other} | {epoch} | {seeds} | {found.mean:+.2f} | {found.over_seeds[0]:+.2f} to '
            f'{found.over_seeds[1]:+.2f} | {low:+.2f} to {high:+.2f} |') in reporter.report(folder)


def test_arms_and_pictures(figures, tmp_path):
    folder, right = figures
    text = reporter.report(folder)
    for arm, seeds in (('memory', 3), ('baseline', 3), ('wide', 2)):
        cells = []
        for epoch in ('last', 'best'):
            top1 = [100 * right[arm, seed, epoch].mean() for seed in range(seeds)]
            cells.append(f'{np.mean(top1):.2f} ± {np.std(top1, ddof=1):.2f}')
        assert f'| {arm} | 0.00 | 0.00 | {seeds} | {cells[0]} | {cells[1]} | {2 + (seeds - 1) / 2:.1f} | 1.00 |' in text
        low = np.mean([100 * right[arm, seed, 'last'].mean() - 5 for seed in range(seeds)])
        assert f'| `tiny` | {arm} | {low:.2f} |' in text
    assert [file.name for file in reporter.draw(reporter.read_study(folder), tmp_path / 'pictures')] == [
        'curves.png', 'lowpass.png']
