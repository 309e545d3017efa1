"""Evaluation on an image folder, and its command, with real digits as the images."""

import json

import pytest
import timm
import torch

from digits import load_split, to_batch, write_digits
from mlfm_zoo.workflow.evaluate import evaluate


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """Sixty held-out digits as an image folder."""
    return write_digits(tmp_path_factory.mktemp('digits'), 1, 60) / 'val'


def test_counts(digits):
    torch.manual_seed(0)
    model = timm.create_model('test_mlfm_resnet').eval()  # untrained, so that it errs
    _, test = load_split()
    with torch.inference_mode():
        logits = model(to_batch(test.images[:60], model))
    labels = test.labels[:60, None]
    top1, top5 = (int((logits.topk(k).indices == labels).sum()) for k in (1, 5))
    assert evaluate(model, digits, batch_size=16) == (top1, top5, 60) and top1 < top5


@pytest.mark.parametrize('parallel', [False, True])
def test_classes_are_matched_by_name(digits, tmp_path, parallel):
    """Outputs in torchvision's order of folder names, digit1, digit10, digit2 ...: it knows them all."""
    for digit in range(10):
        (tmp_path / f'digit{digit + 1}').symlink_to(digits / str(digit))
    names = sorted(f'digit{i + 1}' for i in range(10))
    model = timm.create_model('test_mlfm_resnet', pretrained=True)
    order = [int(name[5:]) - 1 for name in names]  # which digit each output now stands for
    with torch.no_grad():
        for parameter in model.get_classifier().parameters():
            parameter.copy_(parameter[order])
    model.pretrained_cfg['label_names'] = names
    network = torch.nn.DataParallel(model) if parallel else model
    assert evaluate(network, tmp_path) == (60, 60, 60)


def test_missing_image(digits, tmp_path):
    """One sentence from a loader's process, whatever the file is called."""
    (tmp_path / '0').symlink_to(digits / '0')
    (tmp_path / '1').mkdir()
    missing = tmp_path / '1' / 'a\nb\udcff.png'
    missing.symlink_to('nowhere')
    for workers in (0, 1):
        with pytest.raises(ValueError) as error:
            evaluate(timm.create_model('test_mlfm_resnet', num_classes=2), tmp_path, num_workers=workers)
        assert str(error.value) == f'There is no image at {missing}: give the path of an image file.'


def test_command(digits, run):
    assert run('evaluate', 'test_mlfm_resnet', digits, '--workers', '0').startswith('top-1: 60 of 60 (100.00 %)\n')


def test_damaged_folders(tmp_path, fail):
    timm.models.save_for_hf(timm.create_model('test_mlfm_resnet'), tmp_path, safe_serialization=True)
    weights, config = (tmp_path / 'model.safetensors'), (tmp_path / 'config.json')
    whole = weights.read_bytes()
    weights.write_bytes(whole[:200_000])
    assert 'is damaged' in fail('evaluate', f'local-dir:{tmp_path}', tmp_path)
    weights.write_bytes(whole)
    good = json.loads(config.read_text())
    of_other_types = [dict(label_names=5), dict(label_descriptions=[1]), dict(pretrained_cfg=[]), *(
        dict(pretrained_cfg={**good['pretrained_cfg'], name: 'x'})
        for name in ('mean', 'input_size', 'interpolation', 'crop_pct'))]
    for text in ('{"num_classes": 10}', '{"archi', '[]', '', '{"a":' * 99999, *(
            json.dumps({**good, **changed}) for changed in of_other_types)):
        config.write_text(text)
        assert 'could not be loaded' in fail('evaluate', f'local-dir:{tmp_path}', tmp_path)
