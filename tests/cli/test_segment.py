"""The commands segment train, evaluate and predict."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers.segmentation import write_data
from helpers.shape_folders import LABELS
from mlfm_zoo.segmentation import TrainSettings, load_run
from mlfm_zoo.segmentation.data import Labels, read_labels
from mlfm_zoo_cli import main


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('shapes'))


def test_commands(data, tmp_path, run, fail):
    """Train until shapes are found, measure and draw, and write masks that read as what was predicted."""
    output = tmp_path / 'run'
    said = run(
        'segment', 'train', data, '--output', output, '--labels', data / 'labels.json', '--model', 'unet',
        '--encoder', 'none', '--model-kwargs', 'base_width=8', '--crop-size', '48', '64', '--scale', '0.9', '1.1',
        '--epochs', '12', '--batch-size', '4', '--lr', '0.01', '--warmup', '4', '--workers', '0', '--device', 'cpu')
    best = float(re.search(r'best epoch \d+: mIoU ([\d.]+) %', said)[1])
    assert best > 60
    evaluate = ['segment', 'evaluate', output / 'best', data, '--workers', '0', '--device', 'cpu']
    printed = dict(re.findall(r'^(.+): (.+) %$', run(
        *evaluate, '--pictures', tmp_path / 'pictures', '--num-pictures', '2', '--json', tmp_path / 'scores.json'),
        re.MULTILINE))
    assert float(printed['miou']) == pytest.approx(best, abs=0.02) and 'boundary f' in printed
    assert {'iou ground', 'iou disc', 'iou square', 'pixel accuracy'} < printed.keys()
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert sum(map(sum, scores['confusion'])) == 4 * 46 * 64
    assert sorted(f.name for f in (tmp_path / 'pictures').iterdir()) == ['000.png', '001.png']
    record = output / 'best' / 'run.json'
    before = record.read_text()
    record.write_text(before.replace('"disc"', '"disc\\u001b[31m\\n"'))  # anyone may name a class
    assert '\niou disc\\x1b[31m\\n: ' in run(*evaluate, '--window', '32', '32', '--flip')
    record.write_text(before)

    def predict(folder, *images):
        return ['segment', 'predict', output / 'last', *images, '--output', folder, '--device', 'cpu']

    masks = tmp_path / 'masks'
    assert run(*predict(masks, data / 'val' / '000.png')).strip() == str(masks / '000.png')
    model, labels, settings = load_run(output / 'best')
    assert labels == Labels.from_json(LABELS) and settings.epochs == 12 and not model.training
    truth, mask = (read_labels(f / '000.png', labels) for f in (data / 'valannot', masks))
    assert (mask[2:] == truth[2:]).float().mean() > 0.9
    assert np.array(Image.open(masks / '000.picture.png')).shape == (48, 3 * 64 + 8, 3)
    # a mask in the place of its image, or of another's mask
    file, other = tmp_path / 'photo.png', tmp_path / 'photo.picture.png'
    for path in (file, other):
        Image.new('RGB', (70, 33)).save(path)
    (tmp_path / 'link.jpg').symlink_to(file)
    run(*predict(masks, file))
    for folder, *images in ((tmp_path, file), (tmp_path / 'two', file, masks / 'photo.png'),
                            (tmp_path / 'two', file, other), (tmp_path, tmp_path / 'link.jpg', file)):
        assert 'name another folder, or give images of other names' in fail(*predict(folder, *images))
    before = (data / 'val' / '000.png').read_bytes()
    fail(*evaluate, '--pictures', data / 'val')
    assert (data / 'val' / '000.png').read_bytes() == before
    assert Image.open(file).size == (70, 33) and not (tmp_path / 'two').exists()


@pytest.mark.parametrize('arguments, message', [
    (['train', 'nowhere', '--output', 'run'], 'nowhere has no images and masks of train'),
    (['train', 'DATA', '--output', 'run', '--labels', 'camvid', '--val-split', 'val'], 'pixels of value 255'),
    (['train', 'DATA', '--output', 'run', '--labels', 'LABELS', '--val-split', 'test'], 'no images and masks of test'),
    (['train', 'DATA', '--output', 'run', '--labels', 'LABELS', '--model', 'fcn4s'], "name is 'fcn4s'"),
    (['evaluate', 'nowhere', 'DATA'], 'nowhere has no network of a run'),
    (['predict', 'nowhere', 'photo.png', '--output', 'masks'], 'nowhere has no network of a run'),
])
def test_commands_refuse_in_one_sentence(data, tmp_path, monkeypatch, fail, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {'DATA': data, 'LABELS': data / 'labels.json'}
    extra = ['--device', 'cpu', *(['--workers', '0'] if arguments[0] != 'predict' else [])]
    if arguments[0] == 'train' and '--model' not in arguments:
        extra += ['--model', 'unet', '--encoder', 'none', '--model-kwargs', 'base_width=2', '--crop-size', '16', '16']
    assert message in fail('segment', *(names.get(a, a) for a in arguments), *extra)


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['segment', 'train', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for field in dataclasses.fields(TrainSettings)[1:]:
        option = field.name.replace('_', '-')
        if field.name != 'model_kwargs':
            assert re.search(rf'--{option}( (X|H W|MIN MAX|ENCODER|{{[^}}]*}}))? [A-Z]\w+', text), field.name
