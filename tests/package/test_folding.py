"""Trunks folded for inference: the same outputs, no norm left that could be folded, and no checkpoint."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.utils.prune as prune
from timm.layers import BatchNormAct2d, BlurPool2d, Conv2dSame, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import group_parameters, reparameterize_model
from torch.nn.modules.batchnorm import _BatchNorm

from helpers.networks import ALL, DCT, SMALL, SMALL_GSSDNET, lived_in
from mlfm_zoo import fuse_trunk
from mlfm_zoo.memory import LowFrequencyMemoryUnit


def create(name, **kwargs):
    torch.manual_seed(0)
    return lived_in(timm.create_model(name, **{**SMALL.get(name, {}), **kwargs}))


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def fold(model, image, tolerance=1e-5):
    """A folded copy of a network, after a look at its outputs."""
    folded = fuse_trunk(copy.deepcopy(model))
    with torch.inference_mode():
        close(folded(image), model(image), tolerance)
    return folded


def norms_left(model):
    """Names of the trunk's batch norms; a memory unit keeps its own, which it does not call."""
    inside = [f'{n}.' for n, m in model.named_modules() if isinstance(m, LowFrequencyMemoryUnit)]
    return [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and not n.startswith(tuple(inside))]


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('memory', [True, False])
@pytest.mark.parametrize('size, channels_last', [((1, 65, 97), False), ((4, 96, 64), True)])
def test_same_outputs(name, memory, size, channels_last):
    """To 1e-5 of the largest value: logits and features, with memory and without; no norm of the trunk is left."""
    model = create(name, memory=memory)
    image = torch.randn(size[0], 3, *size[1:])
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    folded = fold(model, image)
    assert type(folded) is type(model) and not norms_left(folded)
    of_trunk = [n for n in norms_left(model) if not n.startswith('memory.')]
    assert bool(of_trunk) == ('convnext' not in name)  # whose norms are of layers
    with torch.inference_mode():
        expected = model.forward_intermediates(image, intermediates_only=True)
        for actual, feature in zip(folded.forward_intermediates(image, intermediates_only=True), expected):
            close(actual, feature)


@pytest.mark.slow
@pytest.mark.parametrize('memory', [True, False])
@pytest.mark.parametrize('name', ALL)
def test_same_outputs_of_every_network(name, memory):
    """In double precision too, in which deep networks do not lose the digits that they lose in single, fused or not."""
    torch.manual_seed(0)
    model, image = lived_in(timm.create_model(name, memory=memory)), torch.randn(2, 3, 65, 97)
    assert not norms_left(fold(model, image))
    fold(model.double(), image.double(), 1e-10)


@pytest.mark.parametrize('name', [*SMALL_GSSDNET, *(pytest.param(name, marks=pytest.mark.slow) for name in DCT)])
def test_same_outputs_of_other_networks(name):
    """All is folded but the norm of DCT coefficients, which have no convolution before them."""
    folded = fold(create(name, **SMALL_GSSDNET.get(name, {})), torch.randn(2, 3, 64, 64))
    assert len(norms_left(folded)) <= (name in DCT)


@pytest.mark.parametrize('name, kwargs, left', [
    ('mlfm_resnet18', dict(in_chans=1, output_stride=8), []),
    ('mlfm_seresnet50', dict(in_chans=5, aa_layer=BlurPool2d), []),
    ('mlfm_mobilenetv2_010', dict(output_stride=8, pad_type='same'), []),
    ('mlfm_regnety_002', dict(output_stride=16), []),
    ('mlfm_inception_next_tiny', dict(num_classes=0), []),
    # beyond stride 16 the downsampling pads: a shift folded ahead would miss the border
    ('mlfm_inception_next_tiny', dict(output_stride=8), ['stages.2.downsample.0', 'stages.3.downsample.0']),
])
def test_variants_of_trunks(name, kwargs, left):
    model = settled(timm.create_model(name, **SMALL[name], **kwargs))
    image = torch.randn(2, kwargs.get('in_chans', 3), 64, 96, dtype=torch.float64)
    assert norms_left(fold(model, image, 1e-10)) == left


class Toy(nn.Module):
    """A convolution and a norm with what a test puts between, before and after."""

    def __init__(self, first, second, also=None):
        super().__init__()
        self.first = first
        self.second = second
        self.also = also  # reads the output of the first

    def forward(self, x):
        x = self.first(x)
        y = self.second(x)
        return y if self.also is None else y.sum() + self.also(x).sum()


def settled(module):
    for norm in (m for m in module.modules() if hasattr(m, 'running_var') and m.running_var is not None):
        nn.init.uniform_(norm.running_var, 0.1, 3), nn.init.normal_(norm.running_mean)
        if norm.weight is not None:
            nn.init.uniform_(norm.weight, -2, 2), nn.init.normal_(norm.bias)
    return module.double().eval()


def hooked(module):
    module.register_forward_hook(lambda module, args, output: 2 * output)
    return module


def replaced(module):
    """A module whose forward method is another, as offloading libraries make it."""
    module.forward = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Tanh()).double().forward
    return module


def norm(channels=6, **kwargs):
    return nn.BatchNorm2d(channels, **kwargs)


TOYS = {  # what is built, and how many norms are folded
    'plain': (lambda: Toy(nn.Conv2d(4, 6, 3, bias=False), norm()), 1),
    'grouped': (lambda: Toy(nn.Conv2d(4, 6, 3, 2, padding=2, dilation=2, groups=2), norm()), 1),
    'reflecting': (lambda: Toy(nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect'), norm(eps=0.1)), 1),
    'same': (lambda: Toy(Conv2dSame(4, 6, 3, 2), norm()), 1),
    'no weights': (lambda: Toy(nn.Conv2d(4, 6, 3), norm(affine=False)), 1),
    'activation': (lambda: Toy(nn.Conv2d(4, 6, 3), BatchNormAct2d(6, act_layer='silu', drop_layer=nn.Dropout)), 1),
    'frozen': (lambda: freeze_batch_norm_2d(Toy(nn.Conv2d(4, 6, 3), norm())), 1),
    'frozen with activation': (lambda: freeze_batch_norm_2d(Toy(nn.Conv2d(4, 6, 3), BatchNormAct2d(6))), 1),
    'synchronised': (lambda: convert_sync_batchnorm(Toy(nn.Conv2d(4, 6, 3), norm())), 1),
    'synchronised with activation': (lambda: convert_sync_batchnorm(Toy(nn.Conv2d(4, 6, 3), BatchNormAct2d(6))), 1),
    'ahead': (lambda: Toy(norm(4), nn.Conv2d(4, 6, 3, 2, bias=False)), 1),
    'ahead, grouped': (lambda: Toy(norm(4), nn.Conv2d(4, 6, (2, 3), groups=2)), 1),
    'ahead and back': (lambda: Toy(norm(4), Toy(nn.Conv2d(4, 6, 1, groups=2), norm())), 2),
    'ahead, padded': (lambda: Toy(norm(4), nn.Conv2d(4, 6, 3, padding=1)), 0),
    'ahead, same': (lambda: Toy(norm(4), Conv2dSame(4, 6, 3)), 0),
    'ahead, activation': (lambda: Toy(BatchNormAct2d(4), nn.Conv2d(4, 6, 3)), 0),
    'ahead, read twice': (lambda: Toy(norm(4), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)), 0),
    'read twice': (lambda: Toy(nn.Conv2d(4, 6, 3), norm(), nn.ReLU()), 0),
    'no statistics': (lambda: Toy(nn.Conv2d(4, 6, 3), norm(track_running_stats=False)), 0),
    'pooled between': (lambda: Toy(nn.Sequential(nn.Conv2d(4, 6, 3), nn.MaxPool2d(2)), norm()), 0),
    'convolution hooked': (lambda: Toy(hooked(nn.Conv2d(4, 6, 3)), norm()), 0),
    'norm hooked': (lambda: Toy(nn.Conv2d(4, 6, 3), hooked(norm())), 0),
    'hooked around the convolution alone': (lambda: Toy(hooked(nn.Sequential(nn.Conv2d(4, 6, 3))), norm()), 0),
    'hooked around the norm alone': (lambda: Toy(nn.Conv2d(4, 6, 3), hooked(nn.Sequential(norm()))), 0),
    'hooked around both': (lambda: Toy(hooked(nn.Sequential(nn.Conv2d(4, 6, 3), norm())), nn.ReLU()), 1),
    'ahead, hooked around the convolution alone': (lambda: Toy(norm(4), hooked(nn.Sequential(nn.Conv2d(4, 6, 3)))), 0),
    'pruned': (lambda: Toy(prune.l1_unstructured(nn.Conv2d(4, 6, 3), 'weight', 0.5), norm()), 0),
    'forward replaced': (lambda: Toy(replaced(nn.Conv2d(4, 6, 3)), norm()), 0),
    'normed weights': (
        lambda: Toy(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), norm()), 0),
    'of another class': (lambda: Toy(nn.Conv2d(4, 6, 3), type('MyNorm', (nn.BatchNorm2d,), {})(6)), 0),
    'other layers': (lambda: Toy(nn.ConvTranspose2d(4, 6, 3), norm()), 0),
}


@pytest.mark.parametrize('toy', TOYS)
def test_what_is_folded_is_exact(toy):
    """To 1e-12 in double precision; what would not be exact stays."""
    make, folds = TOYS[toy]
    torch.manual_seed(0)
    model = settled(make())
    norms = sum(hasattr(m, 'running_var') for m in model.modules())
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    expected = model(x).detach()  # with gradients, so that pruned weights are computed ones, which torch does not copy
    folded = fuse_trunk(model)
    held = [m for m in folded.modules() if type(m).__name__.startswith('Folded')]
    assert len(held) == min(folds, 1)
    assert sum(hasattr(m, 'running_var') for m in folded.modules()) == norms - folds
    with torch.no_grad():
        close(folded(x), expected, 1e-12)


@pytest.mark.parametrize('wrap', [nn.DataParallel, lambda model: torch.compile(model, backend='eager')])
def test_wrapped_networks(wrap):
    model = create('test_mlfm_resnet', memory=False)
    wrapped, image = wrap(copy.deepcopy(model)), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wrapped(image)  # compiled before it is folded
        assert fuse_trunk(wrapped) is wrapped and not norms_left(wrapped)
        close(wrapped(image), model(image))


def test_layers_used_twice_stay():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other, self.bn1, self.bn2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), norm(4), norm(4)

        def forward(self, x):
            x = self.bn1(self.conv(self.bn2(self.conv(x))))  # one convolution before two norms
            return x + nn.functional.conv2d(self.bn2(self.other(x)), self.other.weight)  # and one norm twice

    torch.manual_seed(0)
    model = settled(Shared())
    assert norms_left(fold(model, torch.randn(2, 4, 5, 5, dtype=torch.float64), 1e-12)) == ['bn1', 'bn2']


def test_half_precision():
    """Folded in single precision, and rounded once."""
    for dtype in (torch.bfloat16, torch.float16):
        model = create('mlfm_resnet18').to(dtype)
        expected = fuse_trunk(copy.deepcopy(model).float()).to(dtype).conv1.weight
        folded = fold(model, torch.randn(2, 3, 64, 64, dtype=dtype), 0.1)
        assert torch.equal(folded.conv1.weight, expected)


def test_meta_device_and_training_mode():
    with torch.device('meta'), torch.no_grad():
        model = timm.create_model('test_mlfm_resnet').fuse(trunk=True)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 10)
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize('name', ['test_mlfm_resnet', 'mlfm_mobilenetv2_010', 'mlfm_inception_next_tiny'])
def test_in_every_form(name):
    """Twice or after fuse(), copied, pickled, checkpointing, with gradients, another head, layer groups."""
    model = create(name)
    model.set_grad_checkpointing()
    image = torch.randn(2, 3, 64, 64)
    folded = fold(model, image)
    names = [n for n, _ in folded.named_modules()]
    assert folded.fuse(trunk=True) is folded and folded.fuse() is folded
    assert [n for n, _ in folded.named_modules()] == names
    with torch.no_grad():
        expected = folded(image)
        for same in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)), reparameterize_model(folded),
                     copy.deepcopy(model).fuse(trunk=True), copy.deepcopy(model).fuse().fuse(trunk=True)):
            assert torch.equal(same(image), expected)
    gradients = []
    for network in (model, folded):
        given = image.clone().requires_grad_()
        network(given).square().sum().backward()
        gradients.append(given.grad)
    close(gradients[1], gradients[0], 1e-4)
    groups = group_parameters(folded, folded.group_matcher(), reverse=True)
    assert groups.keys() == {n for n, _ in folded.named_parameters()}
    folded.reset_classifier(7)
    assert folded(image).shape == (2, 7) and folded.get_classifier().out_features == 7


@pytest.mark.parametrize('name', [
    name if name == 'test_mlfm_resnet' else pytest.param(name, marks=pytest.mark.slow) for name in SMALL])
def test_exports_and_compiles(name):
    model = create(name)
    folded = copy.deepcopy(model).fuse(trunk=True)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        dynamic = {0: torch.export.Dim('batch', min=1, max=16)}
        exported = torch.export.export(folded, (image,), dynamic_shapes=(dynamic,)).module()
        close(exported(image[:1]), expected[:1])
        close(torch.compile(folded, backend='aot_eager', fullgraph=True)(image), expected)
        close(torch.jit.script(folded)(image), expected)
        close(torch.jit.trace(folded, image)(image), expected)
        close(torch.jit.script(fuse_trunk(create(name, memory=False)))(image), create(name, memory=False)(image))


@pytest.mark.parametrize('memory', [True, False])
def test_features(memory):
    features = lived_in(timm.create_model('test_mlfm_resnet', features_only=True, memory=memory))
    image = torch.randn(4, 3, 64, 64)
    folded = fuse_trunk(copy.deepcopy(features))
    with torch.no_grad():
        for actual, expected in zip(folded(image), features(image)):
            close(actual, expected)


@pytest.mark.parametrize('memory', [True, False])
def test_no_checkpoint_and_no_training(memory, tmp_path):
    plain = timm.create_model('test_mlfm_resnet', memory=memory)
    model = fuse_trunk(copy.deepcopy(plain))
    weights = {k: v.clone() for k, v in model.named_parameters()}
    for save in (model.state_dict, lambda: timm.models.save_for_hf(model, tmp_path, safe_serialization=True)):
        with pytest.raises(RuntimeError, match=r'is fused, which no checkpoint can hold: save the network before fuse'):
            save()
    assert not list(tmp_path.glob('*.safetensors'))
    for strict in (True, False):
        with pytest.raises(RuntimeError, match='is fused, .* before fuse'):
            model.load_state_dict(plain.state_dict(), strict=strict)
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    with pytest.raises(RuntimeError, match='fused for inference, .*: train the network as it was before fuse') as error:
        model.train()
    assert '\n' not in str(error.value)
    assert not memory or not any(m.training for m in model.modules())
    assert plain.train().training  # what was copied can be trained
    assert fuse_trunk(model.eval()) is model


def test_a_network_that_cannot_be_traced_stays():
    class Asking(timm.models.ResNet):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    model = Asking(timm.models.BasicBlock, (1, 1, 1, 1), channels=(4, 4, 4, 4))
    said = r'cannot trace Asking \(TraceError.*: call timm.models.reparameterize_model'
    with pytest.raises(RuntimeError, match=said) as error:
        fuse_trunk(model)
    assert '\n' not in str(error.value)
    assert norms_left(model) and model.training and model.state_dict()
    reparameterize_model(model)  # as the error says, also without a memory
