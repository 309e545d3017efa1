"""What several files of tests start from."""

import signal

import pytest
import timm
import torch
import torch.nn.functional as F

from digits import load_split, to_batch

# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
