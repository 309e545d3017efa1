"""What makes timm's networks read coefficients, and a learned selection a fixed one."""

import copy

import pytest
import timm
import torch

import mlfm_zoo
from helpers.networks import lived_in
from mlfm_zoo.dct import freeze_selection, gate_of, to_dct


@pytest.mark.parametrize('name, channels', [
    ('resnet18', '24s'), ('resnet18', '192'), ('resnet50d', '40t'), ('seresnet50', '24s'), ('resnext50_32x4d', '192'),
    ('resnet26t', '24s'), ('mobilenetv2_050', '24s'), ('mobilenetv2_050', '192'), ('efficientnet_b0', '40t'),
    ('tf_efficientnet_lite0', '192')])
def test_any_resnet_and_efficientnet(name, channels):
    model = to_dct(timm.create_model(name, num_classes=5), channels).train()
    model(torch.randn(2, 3, 128, 128)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    expected = [info['reduction'] for info in model.feature_info]
    features = model.eval().forward_intermediates(torch.randn(1, 3, 256, 256), intermediates_only=True)
    assert [256 // f.shape[-1] for f in features] == expected


@pytest.mark.slow
@pytest.mark.parametrize('module', ['resnet', 'efficientnet'])
def test_every_resnet_and_efficientnet_of_timm(module):
    """Each either is turned, and then keeps its reductions, or is refused in one sentence; on the meta device."""
    turned, refused = 0, {}
    for name in timm.list_models(module=module):
        model = timm.create_model(name, device='meta')
        try:
            to_dct(model, '40t')
        except ValueError as error:
            assert '\n' not in str(error)
            refused[name] = str(error)
            continue
        last, features = model.forward_intermediates(torch.randn(1, 3, 512, 256, device='meta'))
        for feature, info in zip(features, model.feature_info, strict=True):
            assert feature.shape[1:] == (info['num_chs'], 512 // info['reduction'], 256 // info['reduction']), name
        assert model.forward_head(last).shape == (1, model.num_classes)
        turned += 1
    assert turned > (60 if module == 'resnet' else 100), refused


def test_first_columns_are_the_initialisation():
    torch.manual_seed(0)
    plain = timm.create_model('resnet50')
    turned = to_dct(copy.deepcopy(plain), '24s')
    assert torch.equal(turned.layer1[0].conv1.weight, plain.layer1[0].conv1.weight[:, :24])
    assert torch.equal(turned.layer1[0].downsample[0].weight, plain.layer1[0].downsample[0].weight[:, :24])
    assert torch.equal(turned.layer3[2].conv2.weight, plain.layer3[2].conv2.weight)
    plain = lived_in(timm.create_model('mobilenetv2_050'))
    turned, block = to_dct(copy.deepcopy(plain), '12s'), plain.blocks[0][0]
    assert torch.equal(turned.blocks[0][0].conv_dw.weight, block.conv_dw.weight[:12])
    assert torch.equal(turned.blocks[0][0].bn1.running_var, block.bn1.running_var[:12])
    assert torch.equal(turned.blocks[0][0].conv_pw.weight, block.conv_pw.weight[:, :12])


def test_refused():
    for model in (timm.create_model('mlfm_resnet18'), mlfm_zoo.attach_memory(timm.create_model('resnet18'))):
        with pytest.raises(ValueError, match='build it with memory=False'):
            to_dct(model)
    with pytest.raises(ValueError, match='ConvNeXt cannot read DCT'):
        to_dct(timm.create_model('convnext_atto'))
    model = timm.create_model('skresnet18').eval()
    with pytest.raises(ValueError, match='begins with a convolution'):
        to_dct(model)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)  # which is left whole


@pytest.mark.parametrize('name', ['dct_resnet50_192_gate', 'dct_mobilenetv2_100_192_gate'])
@pytest.mark.parametrize('dct_input', ['rgb', 'coefficients'])
def test_frozen_selection(name, dct_input, tmp_path):
    """With the same channels open, gated and frozen networks agree."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, dct_input=dct_input).eval()
    bias = gate_of(model).conv2.bias.data.view(-1, 2)
    kept = [0, 3, 9, 64, 65, 130, 191]
    gate_of(model).conv2.weight.data.zero_()
    bias[:] = torch.tensor([2.0, 0.1])
    bias[kept] = torch.tensor([0.1, 2.0])
    x = torch.randn(2, 3, 64, 64) if dct_input == 'rgb' else torch.randn(2, 192, 8, 8)
    x_kept = x if dct_input == 'rgb' else x[:, kept]
    frozen, channels = freeze_selection(copy.deepcopy(model), len(kept))
    assert channels == kept
    timm.models.save_for_hf(frozen, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert loaded.pretrained_cfg['input_size'][0] == x_kept.shape[1]
    with torch.inference_mode():
        torch.testing.assert_close(frozen(x_kept), model(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(loaded(x_kept), frozen(x_kept))
    with pytest.raises(ValueError, match='no gate'):
        freeze_selection(frozen, 3)
    for k, counts in ((0, None), (193, None), (3, torch.ones(10))):
        with pytest.raises(ValueError, match='expected those of 192 channels'):
            freeze_selection(model, k, counts)
    assert freeze_selection(model, 24, torch.ones(192))[1] == list(range(24))  # low ones first
