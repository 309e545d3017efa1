"""What is GSSDNet's own: fixed kernels that nothing changes, the definition of the networks, and their folded norms."""

import copy
import pickle

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.fx import symbolic_trace

from helpers.networks import lived_in
from mlfm_zoo.models.gssdnet import FixedConv2d, fixed_kernels

KINDS = ('blur', 'low_pass', 'order1', 'order2')


def create(name='gssdnet_o2_050', **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def fixed(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, FixedConv2d)}


def assert_kernels(model):
    """Every fixed kernel is, bit by bit, what rounding of the definition to its type gives."""
    found = fixed(model)
    assert len(found) == 14
    for name, module in found.items():
        expected = fixed_kernels(module.kind, module.num_chs).to(module.weight.dtype)
        assert torch.equal(module.weight.contiguous(), expected), name


# numbers with 1,000 classes, of the paper's table and of the original networks
@pytest.mark.parametrize('name, parameters', [
    ('gssdnet_o2_100', 4_186_574), ('gssdnet_o1_100', 4_186_574), ('gssdnet_o2_075', 2_551_510),
    ('gssdnet_o1_050', 1_308_894), ('gssdnet_vanilla_100', 4.23e6), ('gssdnet_vanilla_075', 2.59e6),
    ('gssdnet_vanilla_050', 1.33e6)])
def test_parameters(name, parameters):
    count = sum(p.numel() for p in timm.create_model(name, device='meta').parameters())
    assert count == parameters if isinstance(parameters, int) else count == pytest.approx(parameters, abs=5e3)


def test_vanilla_is_mobilenetv1():
    """timm's, in which the same layers have other names; its first convolution alone is an ordinary one."""
    ours, theirs = (
        [p.shape for p in timm.create_model(name, device='meta').parameters()]
        for name in ('gssdnet_vanilla_100', 'mobilenetv1_100'))
    assert ours[6:] == theirs[3:]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('num_chs', [1, 3, 8, 33, 64])
def test_kernels(kind, num_chs):
    """Gaussians sum to 1 and grow wider; derivatives sum to 0 and give those of a polynomial."""
    kernels = fixed_kernels(kind, num_chs)
    assert kernels.shape == (num_chs, 1, 3, 3)
    acting = [k[0] for k in kernels if not torch.equal(k[0].flatten(), torch.eye(9)[4])]
    expected = {'blur': num_chs, 'low_pass': num_chs // 2, 'order1': num_chs // 2 // 2 * 2,
                'order2': num_chs // 2 // 5 * 5}[kind]
    assert len(acting) == expected
    if kind in ('blur', 'low_pass'):
        assert all(k.sum().item() == pytest.approx(1) and torch.equal(k, k.flip(0).flip(1)) for k in acting)
        assert kind == 'blur' or all(a[1, 1] > b[1, 1] for a, b in zip(acting, acting[1:]))
        return
    y, x = (torch.arange(3.) - 1)[:, None].expand(3, 3), (torch.arange(3.) - 1).expand(3, 3)
    # of f = 3x + 5y + 7x^2/2 + 11y^2/2 + 13xy at 0; central differences have a spacing of 2, x has the other sign
    polynomial = 3 * x + 5 * y + 3.5 * x ** 2 + 5.5 * y ** 2 + 13 * x * y
    derivatives = (-6, 10, -7, -11, -52)
    for i, k in enumerate(acting):
        assert k.sum() == 0
        assert (k * polynomial).sum() == derivatives[i % (2 if kind == 'order1' else 5)]


def test_kernels_are_never_trained():
    model = create().train()
    assert not any(n.endswith('conv_dw.weight') for n, _ in model.named_parameters())
    optimizer = create_optimizer_v2(model, opt='sgd', lr=1.0, weight_decay=0.1)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    optimizer.step()
    ModelEmaV3(model, decay=0.5).update(model)
    assert_kernels(model)
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_kernels_are_right_after(dtype):
    model = create().to(dtype)
    assert_kernels(model)
    assert_kernels(model.float())  # what the narrower type lost is back
    assert_kernels(model.to(memory_format=torch.channels_last))
    assert_kernels(copy.deepcopy(model))
    assert_kernels(pickle.loads(pickle.dumps(model)))
    assert_kernels(create(device='meta').to_empty(device='cpu'))
    assert_kernels(timm.create_model('gssdnet_o2_050', dtype=dtype))
    with torch.device('meta'):
        meta = timm.create_model('gssdnet_o2_050')
    assert all(m.weight.is_meta for m in fixed(meta).values())
    assert_kernels(meta.to_empty(device='cpu'))


def test_state_dict_carries_and_checks_them():
    model = create()
    weights = model.state_dict()
    assert {f'{n}.weight' for n in fixed(model)} < set(weights)
    for change in (lambda k: 1.01 * k, torch.zeros_like, lambda k: k * float('nan')):
        changed = dict(weights, **{'stages.2.1.conv_dw.weight': change(weights['stages.2.1.conv_dw.weight'])})
        for strict in (True, False):
            with pytest.raises(RuntimeError, match='kernels'):
                create().load_state_dict(changed, strict=strict)
    narrow = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    loaded = create()
    loaded.load_state_dict(narrow)
    assert_kernels(loaded)  # not the rounded ones
    loaded = create()
    loaded.load_state_dict(weights, assign=True)
    assert_kernels(loaded)
    other_order = create('gssdnet_o1_050').state_dict()
    with pytest.raises(RuntimeError, match='operators and width'):
        create().load_state_dict(other_order)
    missing = {k: v for k, v in weights.items() if 'stages.0.1.conv_dw' not in k}
    with pytest.raises(RuntimeError, match='Missing key.*stages.0.1.conv_dw.weight'):
        create().load_state_dict(missing)


@pytest.mark.parametrize('size', [28, 32, 33])
def test_thumbnail(size):
    """Two strides fewer: an eighth of the image where others have a 32nd."""
    model = create(thumbnail=True, in_chans=1, num_classes=10)
    assert model.feature_info[-1]['reduction'] == 8
    assert [info['reduction'] for info in model.feature_info] == [1, 1, 2, 4, 8]
    with torch.inference_mode():
        features = model.forward_features(torch.randn(2, 1, size, size))
        assert features.shape == (2, 512, -(-size // 8), -(-size // 8))
        assert model(torch.randn(2, 1, size, size)).shape == (2, 10)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, create(in_chans=1, num_classes=10))]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('output_stride', [8, 16])
@pytest.mark.parametrize('name', ['gssdnet_o2_050', 'gssdnet_vanilla_050'])
def test_dilated_features(name, output_stride):
    """Every so many pixels of a dilated network's feature is the other network's."""
    model = lived_in(create(name))
    dilated = create(name, output_stride=output_stride)
    dilated.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        step = 32 // output_stride
        torch.testing.assert_close(
            dilated.forward_features(image)[:, :, ::step, ::step], model.forward_features(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('in_chans', [1, 2, 4, 8])
def test_weights_for_other_image_channels(in_chans, tmp_path):
    """Weights of RGB images in a network for others, as timm adapts first convolutions."""
    model = lived_in(create())
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=in_chans).eval()
    assert_kernels(loaded)
    gray = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        if in_chans == 1:  # the same picture as three equal channels
            expected = model(gray.expand(-1, 3, -1, -1))
            torch.testing.assert_close(loaded(gray), expected, rtol=1e-3, atol=1e-4)
        assert loaded(gray.expand(-1, in_chans, -1, -1)).isfinite().all()


def test_vanilla_weights_for_other_image_channels(tmp_path):
    """A learned kernel belongs to its channel: no one-channel network does what this one does."""
    timm.models.save_for_hf(create('gssdnet_vanilla_050'), str(tmp_path), safe_serialization=True)
    with pytest.raises(RuntimeError, match='3 image channels.* in_chans=3') as error:
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=1)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['gssdnet_o2_050', 'gssdnet_o1_050', 'gssdnet_vanilla_050'])
@pytest.mark.parametrize('size, dilation', [((2, 3, 65, 97), 32), ((1, 3, 64, 64), 8)])
def test_fuse(name, size, dilation):
    model = lived_in(create(name, output_stride=dilation))
    image = torch.randn(size)
    with torch.inference_mode():
        expected = model(image)
        torch.testing.assert_close(torch.jit.script(model)(image), expected)
        torch.testing.assert_close(symbolic_trace(model)(image), expected)
        fused = timm.models.reparameterize_model(model)
        assert (fused(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(fused, fullgraph=True, backend='eager')(image), fused(image))
        torch.testing.assert_close(torch.jit.script(fused)(image), fused(image))
        assert torch.equal(pickle.loads(pickle.dumps(fused))(image), fused(image))
    with pytest.raises(RuntimeError, match='fused'):
        fused.train()
    with pytest.raises(RuntimeError, match='fused'):
        fused.state_dict()


@pytest.mark.parametrize('option, value', [
    ('operators', 'order3'), ('operators', 2), ('thumbnail', 1), ('output_stride', 4), ('output_stride', 32.),
    ('channel_multiplier', 0), ('channel_multiplier', float('nan')), ('channel_multiplier', float('inf'))])
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=f'{option} is {value!r}, expected') as error:
        create(**{option: value})
    assert '\n' not in str(error.value)
