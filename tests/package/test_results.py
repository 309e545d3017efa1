"""The files in results/ and the figures of the manifest, against the records that they come from."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import make_tables
from helpers.reference import REFERENCE, needs_reference
from helpers.tables import read_table
from mlfm_zoo.hub.manifest import load_manifest

ROOT = Path(__file__).parents[2]
MANIFEST = yaml.safe_load((ROOT / 'weights_manifest.yaml').read_text(encoding='utf-8'))


@needs_reference
@pytest.mark.parametrize('width', ['010', '035', '050', '075', '100'])
def test_authors_logs(width):
    for kind, memory in (('mlfm', True), ('baseline', False)):
        reported = load_manifest()[f'mlfm_mobilenetv2_{width}', 'paper_in100', memory].reported
        name = f'mobilenetv2_{float(f"{width[0]}.{width[1:]}"):g}_{kind}.tsv'.replace('_1_', '_1.0_')
        with open(REFERENCE / 'authors' / 'logs' / name, newline='') as f:
            top1 = [float(row['Valid Acc.']) for row in csv.DictReader(f, delimiter='\t')]
        assert len(top1) == 150
        assert reported["authors' log best epoch"] == pytest.approx(max(top1))
        assert reported["authors' log last epoch"] == pytest.approx(top1[-1])


def test_accuracies():
    """Each figure of the manifest is there once, with its source, and only those that were measured name a command."""
    rows = read_table(ROOT / 'results' / 'accuracy.csv')
    for model, (trunk, memory) in MANIFEST['paper'].items():
        found = {row['options']: float(row['top1']) for row in rows
                 if (row['model'], row['source']) == (model, "authors' README")}
        assert found == {'memory=False': trunk, '': memory}
    measured = [row for row in rows if row['source'] == 'measured here']
    assert [row for row in rows if row['command']] == measured
    expected = {}
    for entry in MANIFEST['checkpoints']:
        options = '' if entry.get('memory', True) else 'memory=False'
        for name, value in entry.get('measured', {}).items():
            metric, _, images = name.partition(' of ')
            expected.setdefault((entry['model'], entry['tag'], options, images), {})[metric.replace('-', '')] = value
    assert {
        (row['model'], row['tag'], row['options'], row['data']): {
            name: float(row[name]) for name in ('top1', 'top5') if row[name]} for row in measured} == expected
    others = {row['model']: (row['options'], row['data'], float(row['top1']), float(row['top5'])) for row in rows
              if row['source'] == 'd-li14'}
    assert len(others) == 5 and others['mlfm_mobilenetv2_010'] == ('memory=False', 'ImageNet-1k', 34.9, 56.56)
    best = [row for row in rows if row['source'] == "authors' log best epoch"]
    assert len(best) == 10 and all(row['tag'] == 'paper_in100' for row in best)


@pytest.mark.parametrize('model, options', [
    ('mlfm_resnet10', ''), ('mlfm_regnetx_002', 'memory=False'), ('dct_mobilenetv2_100_24s', ''),
    ('gssdnet_o2_050', '')])
def test_costs(model, options):
    [row] = [row for row in read_table(ROOT / 'results' / 'networks.csv') if (row['model'], row['options']) == (
        model, options)]
    network = timm.create_model(model, device='meta', **({'memory': False} if options else {})).eval()
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, network.pretrained_cfg['input_size'][0], *[int(row['input_size'])] * 2))
    assert int(row['madds']) == counter.get_total_flops() / 2
    assert int(row['params']) == sum(p.numel() for p in network.parameters())


@pytest.mark.slow
def test_all_costs():
    command = [sys.executable, ROOT / 'scripts' / 'make_tables.py', '--check', '--recount']
    assert subprocess.run(command).returncode == 0, 'run: python scripts/make_tables.py --recount'


def test_studies():
    """The last epoch's accuracy, against the answers to each test image that the study keeps."""
    rows = [row for row in read_table(ROOT / 'results' / 'studies.csv') if row['study'] == 'cifar10-cpu']
    answers = {
        (row['network'], row['arm'], row['seed']): np.unpackbits(np.frombuffer(bytes.fromhex(row['right']), np.uint8))
        for row in read_table(ROOT / 'benchmarks' / 'results' / 'study' / 'cifar10-cpu' / 'images.csv')
        if row['epoch'] == 'last'}
    assert len(rows) == len(answers) == 18
    for row in rows:
        assert float(row['top1']) == pytest.approx(answers[row['network'], row['arm'], row['seed']].mean() * 100)
        assert row['input_size'] == '64' and ('memory=False' in row['options']) == (row['arm'] != 'memory')


def test_times():
    rows = read_table(ROOT / 'results' / 'times.csv')
    for setting, what, engine in (('inference', 'inference', 'compiled'), ('training', 'training step', 'eager')):
        measured = json.loads((ROOT / 'benchmarks' / 'results' / setting / 'results.json').read_text())
        found = [row for row in rows if row['setting'] == setting]
        assert len(found) == sum(len(result['variants']) for result in measured['results'])
        variant = 'fused compiled' if engine == 'compiled' else 'memory'
        [row] = [row for row in found if (row['model'], row['variant']) == ('mlfm_resnet50', variant)]
        [result] = [result for result in measured['results'] if result['model'] == 'mlfm_resnet50']
        seconds = result['variants'][variant]['seconds']['median']
        assert float(row['ms']) == pytest.approx(1000 * seconds, abs=0.01) and row['what'] == what
        assert row['engine'] == f'torch {measured["torch"]}, {engine}' and row['machine'] == measured['machine']


def test_published_networks(monkeypatch):
    """Weights count as this project's on ImageNet100 if that is their data, and a figure if it is of all its images."""
    known = load_manifest()['mlfm_mobilenetv2_010', 'paper_in100', True]
    trained = [
        dataclasses.replace(known, model=f'mlfm_{model}', tag=tag, kind='trained', num_classes=classes, command=model,
                            measured=measured)
        for model, tag, classes, measured in (
            ('resnet18', 'in100', 100, {'top-1': 81.0, 'top-5': 95.0}),
            ('resnet10', 'in100', 100, {'top-1 of 9 images': 78.0}),
            ('resnet34', 'mine', 10, {'top-1 of 9 images': 10.0}))]
    all_checkpoints = [*make_tables.checkpoints(), *trained]
    monkeypatch.setattr(make_tables, 'checkpoints', lambda: all_checkpoints)
    assert '| 2 of 34 networks | in `docs/results.md` |' in make_tables.readme_table()
    last = [line.split(' | ')[-1] for line in make_tables.paper_table().splitlines() if line.startswith('| `')]
    assert [figures for figures in last if figures != ' |'] == ['81.00 (in100: `resnet18`) |']


def test_a_page_keeps_its_own_text(tmp_path):
    """Only what stands between the comments is made again; a table that does not exist is an error."""
    page = tmp_path / 'logs.md'
    mark, end = '<!-- made by scripts/make_tables.py{} -->\n', '<!-- end of the table -->\n'
    page.write_text(f'# Mine\n\n{mark.format("")}old\n{end}\nmine\n{mark.format(": gssdnet_models")}{end}')
    assert make_tables.with_tables(page) == (
        f'# Mine\n\n{mark.format("")}{make_tables.logs_table()}{end}\nmine\n'
        f'{mark.format(": gssdnet_models")}{make_tables.gssdnet_models_table()}{end}')
    page.write_text(f'{mark.format(": lgos")}{end}')
    with pytest.raises(KeyError, match='lgos'):
        make_tables.with_tables(page)
