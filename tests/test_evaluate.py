"""Evaluation on an image folder, and its command, with real digits as the images."""

import pytest
import timm
import torch

from digits import load_split, to_batch
from mlfm_zoo.__main__ import main
from mlfm_zoo.evaluate import evaluate


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


def test_command(folder, capsys):
    assert main(['evaluate', 'test_mlfm_resnet', str(folder), '--workers', '0']) == 0
    assert 'of 50 (' in capsys.readouterr().out


@pytest.mark.parametrize('model, data, message', [
    ('test_mlfm_resnet', 'nowhere', 'no folder at nowhere'),
    ('test_mlfm_resnet', '', 'holds no images'),
    ('mlfm_resnet99', '', 'Unknown model'),
    ('mlfm_resnet50', '', 'No pretrained weights exist'),
    ('local-dir:nowhere', '', 'nowhere'),
])
def test_bad_input(model, data, message, tmp_path, capsys):
    assert main(['evaluate', model, data or str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and error.count('\n') == 1, error
