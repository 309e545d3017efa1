"""What several files of tests start from."""

import signal

import pytest
import timm
import torch
import torch.nn.functional as F

from digits import load_split, to_batch
from mlfm_zoo_cli import main

# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(capsys):
    """Runs a command that must end with exit code 0, and returns what it prints."""
    def run(*command):
        capsys.readouterr()
        assert main([*map(str, command)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out
    return run


@pytest.fixture
def fail(capsys):
    """Runs a command that must fail with one sentence, and returns it."""
    def fail(*command):
        capsys.readouterr()
        assert main([*map(str, command)]) == 1
        error = capsys.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1 and len(error) < 600, error
        assert 'Errno' not in error, error
        return error
    return fail


@pytest.fixture(scope='session')
def trained_trunk():
    """A plain network that classifies digits, and the digits."""
    torch.manual_seed(0)
    model = timm.create_model('test_mlfm_resnet', memory=False)
    train, test = load_split()
    images, labels = to_batch(train.images, model), train.labels
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    # a rate that falls to 0 ends at the same accuracy on every machine, whatever its rounding
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=6 * 22)
    model.train()
    for _ in range(6):
        for batch in torch.randperm(len(images))[:1408].split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            scheduler.step()
    return model, images, to_batch(test.images, model), test.labels
