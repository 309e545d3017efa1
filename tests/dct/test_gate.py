"""The gate learns which channels matter; its task, and how often it opens each channel."""

import copy
import pickle

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from mlfm_zoo.dct import ChannelGate, GateTask, draw_open, freeze_selection, gate_of, share_open


def test_gate_learns_which_channels_matter():
    """A toy task whose answer lies in three channels: the penalty closes the others, and these stay open."""
    torch.manual_seed(0)
    gate, head = ChannelGate(12), nn.Linear(3, 3)
    optimizer = torch.optim.Adam([*gate.parameters(), *head.parameters()], lr=0.02)
    assert gate.penalty is None
    for _ in range(300):
        x = torch.randn(64, 12, 2, 2)
        target = x.mean((2, 3))[:, :3].argmax(1)
        loss = nn.functional.cross_entropy(head(8 * gate(x).mean((2, 3))[:, :3]), target) + 0.02 * gate.penalty
        optimizer.zero_grad()
        loss.backward()
        assert gate.conv2.weight.grad.abs().sum() > 0
        optimizer.step()
    gate.eval()
    with torch.inference_mode():
        x = torch.randn(64, 12, 2, 2)
        decision = gate.decide(x)
        assert torch.equal(gate.decide(x), decision)
    often = decision.mean((0, 2, 3))
    assert (often[:3] > 0.9).all() and (often[3:] < 0.1).all(), often


def test_task():
    """The task of timm's for a gate: its loss, its report, and a model that can be copied after a step."""
    torch.manual_seed(0)
    model = timm.create_model('dct_resnet50_192_gate', num_classes=4, layers=(1, 1, 1, 1))
    task = GateTask(model, nn.CrossEntropyLoss(), penalty=0.1)
    image, target = torch.randn(4, 3, 64, 64), torch.arange(4)
    result = task(image, target)
    expected = nn.functional.cross_entropy(result['output'], target) + 0.1 * gate_of(model).penalty
    torch.testing.assert_close(result['loss'], expected)
    assert 0 < result['open_channels'] <= 192 and not result['open_channels'].requires_grad
    result['loss'].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    task.setup_ema()
    assert gate_of(copy.deepcopy(model)).penalty is None and gate_of(pickle.loads(pickle.dumps(model))).penalty is None
    model.eval()
    assert set(task(image, target)) == {'loss', 'output'} and gate_of(model).penalty is None
    with pytest.raises(ValueError, match='no gate'):
        GateTask(timm.create_model('dct_resnet50_24s'), nn.CrossEntropyLoss(), penalty=0.1)


def test_share_open(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('dct_mobilenetv2_100_192_gate', num_classes=5)
    gate = gate_of(model)
    with torch.no_grad():
        gate.conv2.weight.zero_()
        gate.conv2.bias.view(-1, 2)[:] = torch.tensor([2.0, 0.1])
        gate.conv2.bias.view(-1, 2)[[0, 70]] = torch.tensor([0.1, 2.0])
    batches = [(torch.randn(3, 3, 32, 32), torch.zeros(3)), torch.randn(1, 3, 40, 32)]
    share = share_open(model.train(), batches)
    assert model.training
    assert share.nonzero()[:, 0].tolist() == [0, 70] and share[0] == 1
    frozen, channels = freeze_selection(model, 2, share)
    assert channels == [0, 70]
    draw_open(share, tmp_path / 'open.png')
    with Image.open(tmp_path / 'open.png') as image:
        assert min(image.size) > 200
    with pytest.raises(ValueError, match='no gate'):
        share_open(frozen, batches)
    with pytest.raises(ValueError, match='no image'):
        share_open(timm.create_model('dct_resnet50_192_gate', layers=(1, 1, 1, 1)), [])
    with pytest.raises(ValueError, match='expected all 192'):
        draw_open(share[:24], tmp_path / 'no.png')
