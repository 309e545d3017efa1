"""The U-Net against a literal one, and its memory against the equations of the units written out."""

import pytest
import torch
import torch.nn.functional as F

from helpers.literal_unet import LiteralUNet
from helpers.networks import lived_in
from helpers.segmentation import create
from mlfm_zoo.segmentation import create_model


def fill_literal(literal, model):
    """Give a literal network the weights of ours, by the order of its layers."""
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith('memory.')}
    blocks = [k for k in weights if k.startswith(('encoder.', 'decoder.'))]
    encoder, decoder = ([k for k in blocks if k.startswith(p)] for p in ('encoder.', 'decoder.'))
    ups = [k for k in weights if k.startswith('upsamples.')]
    order = [*encoder, *ups, *decoder, *(k for k in weights if k.startswith('head.'))]
    assert len(order) == len(literal.state_dict()) == len(weights)
    literal.load_state_dict(dict(zip(literal.state_dict(), (weights[k] for k in order))))


@pytest.mark.parametrize('in_chans', [1, 3])
def test_unet_is_the_papers(in_chans):
    torch.manual_seed(0)
    model = create_model('unet', None, 2, in_chans, memory=False, base_width=4)
    literal = LiteralUNet(in_chans, 2, 4)
    fill_literal(literal, model)
    image = torch.randn(2, in_chans, 48, 64)
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(image), literal.train(mode)(image), rtol=1e-4, atol=1e-5)
    with torch.device('meta'):
        full, expected = create_model('unet', None, 2, 1, memory=False), LiteralUNet(1, 2)
    count = sum(p.numel() for p in full.parameters())
    norms = 2 * (2 * (64 + 128 + 256 + 512) * 2 + 2 * 1024)
    assert count == sum(p.numel() for p in expected.parameters()) == 31_030_658 - norms // 2 + norms


@pytest.mark.parametrize('update', ['add', 'cat'])
def test_memory_of_the_unet(update):
    """Equations of the units written out, at levels 1 to 4, from A_1(I) on; the literal U-Net is their trunk."""
    torch.manual_seed(0)
    model = lived_in(create_model('unet', None, 3, base_width=4, memory_update=update))
    literal = LiteralUNet(3, 3, 4).eval()
    fill_literal(literal, model)
    image = torch.randn(2, 3, 48, 64)

    def low(x):
        return 2 * F.avg_pool2d(x, 2)

    def norm(x, bn):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0, bn.eps)

    memory, band = low(image), low(image)

    def after(level, x):
        nonlocal memory, band
        if level == 0:
            return x
        unit = model.memory.encoder[level]
        i, s = unit.input_gate, unit.supplement_gate
        inner = F.relu(norm(F.conv2d(memory, i.conv.weight, i.conv.bias), i.norm))
        inner = inner + F.relu(norm(F.conv2d(band, s.conv.weight, s.conv.bias, padding=1), s.norm))
        memory = low(x + inner) if update == 'add' else low(torch.cat([x, inner], 1))
        band = low(band)
        return norm(x + inner, unit.output_gate)

    with torch.no_grad():
        torch.testing.assert_close(model(image), literal(image, after), rtol=1e-4, atol=1e-4)


def test_decoder_reads_the_memory_of_its_level():
    model = create('unet decoder')
    read = {}
    for place, units in (('encoder', model.memory.encoder[1:]), ('decoder', model.memory.decoder)):
        for unit in units:
            unit.register_forward_pre_hook(
                lambda m, args, place=place: read.update({(place, m.level): (args[0].shape, args[1])}))
    model(torch.randn(2, 3, 32, 48))
    assert sorted(read) == [('decoder', k) for k in (1, 2, 3)] + [('encoder', k) for k in (1, 2, 3, 4)]
    for level in (1, 2, 3):
        assert read['decoder', level][1] is read['encoder', level][1]
        assert read['decoder', level][0] == read['encoder', level][0]
