"""Evaluation on an image folder, and its command, with real digits as the images."""

import pytest
import timm
import torch

from digits import load_split, to_batch
from mlfm_zoo.workflow.evaluate import evaluate
from mlfm_zoo_cli import main


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Fifty held-out digits as an image folder, of the digits 0 to 4 only."""
    root = tmp_path_factory.mktemp('digits')
    _, test = load_split()
    for digit in range(5):
        (root / str(digit)).mkdir()
        for i in (test.labels == digit).nonzero().flatten().tolist()[:10]:
            test.images[i].save(root / str(digit) / f'{i}.png')
    return root


def test_counts(folder):
    model = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    result = evaluate(model, folder, class_names=[str(d) for d in range(10)], batch_size=16)
    _, test = load_split()
    chosen = torch.cat([(test.labels == digit).nonzero().flatten()[:10] for digit in range(5)])
    with torch.inference_mode():
        logits = model(to_batch([test.images[i] for i in chosen], model))
    labels = test.labels[chosen]
    assert result.total == 50
    assert result.top1 == int((logits.argmax(1) == labels).sum())
    assert result.top5 == int((logits.topk(5).indices == labels[:, None]).any(1).sum())


@pytest.mark.parametrize('parallel', [False, True])
def test_classes_are_matched_by_name(tmp_path, parallel):
    """Outputs in torchvision's order of folder names, digit1, digit10, digit2 ...: it knows them all."""
    _, test = load_split()
    for digit in range(10):
        (tmp_path / f'digit{digit + 1}').mkdir()
        for i in (test.labels == digit).nonzero().flatten().tolist()[:3]:
            test.images[i].save(tmp_path / f'digit{digit + 1}' / f'{i}.png')
    names = sorted(f'digit{i + 1}' for i in range(10))
    model = timm.create_model('test_mlfm_resnet', pretrained=True)
    order = [int(name[5:]) - 1 for name in names]  # which digit each output now stands for
    with torch.no_grad():
        for parameter in model.get_classifier().parameters():
            parameter.copy_(parameter[order])
    model.pretrained_cfg['label_names'] = names
    network = torch.nn.DataParallel(model) if parallel else model
    assert evaluate(network, tmp_path) == (30, 30, 30)


def test_missing_image(folder, tmp_path):
    """One sentence from a loader's process, whatever the file is called."""
    (tmp_path / '0').symlink_to(folder / '0')
    (tmp_path / '1').mkdir()
    missing = tmp_path / '1' / 'a\nb\udcff.png'
    missing.symlink_to('nowhere')
    for workers in (0, 1):
        with pytest.raises(ValueError) as error:
            evaluate(timm.create_model('test_mlfm_resnet', num_classes=2), tmp_path, num_workers=workers)
        assert str(error.value) == f'There is no image at {missing}: give the path of an image file.'


def test_command(tmp_path, capsys):
    _, test = load_split()
    for digit in range(10):
        (tmp_path / str(digit)).mkdir()
        test.images[int((test.labels == digit).nonzero()[0])].save(tmp_path / str(digit) / 'image.png')
    assert main(['evaluate', 'test_mlfm_resnet', str(tmp_path), '--workers', '0']) == 0
    assert 'of 10 (' in capsys.readouterr().out


def one_line_error(capsys, *args):
    assert main(['evaluate', *map(str, args)]) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1, error
    return error


def test_damaged_folders(tmp_path, capsys):
    timm.models.save_for_hf(timm.create_model('test_mlfm_resnet'), tmp_path, safe_serialization=True)
    weights, config = (tmp_path / 'model.safetensors'), (tmp_path / 'config.json')
    whole = weights.read_bytes()
    weights.write_bytes(whole[:200_000])
    assert 'is damaged' in one_line_error(capsys, f'local-dir:{tmp_path}', tmp_path)
    weights.write_bytes(whole)
    for text in ('{"num_classes": 10}', '{"archi', '[]', ''):
        config.write_text(text)
        assert 'could not be loaded' in one_line_error(capsys, f'local-dir:{tmp_path}', tmp_path)
