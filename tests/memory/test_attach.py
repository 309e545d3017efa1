"""Memory attached at identity to networks that have none, and calibrated to a trained trunk."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters, reparameterize_model
from torch.nn.utils import parametrizations, prune

import mlfm_zoo
from helpers.networks import ALL, assert_near, assert_nothing_overwritten, lived_in
from mlfm_zoo.memory.attach import FAMILIES

# one or more of each class, with what makes it special: groups, deep stems, attention, other stages, other norms
NETWORKS = [
    'resnext50_32x4d', 'resnet18d', 'ecaresnet26t', 'seresnet18', 'mnasnet_small', 'mixnet_s', 'efficientnetv2_rw_t',
    'tf_efficientnet_lite0', 'regnetz_005', 'regnetv_040', 'regnety_002', 'convnextv2_atto', 'convnext_atto_ols',
    'convnext_tiny_hnf', 'inception_next_atto', 'mobilenetv3_small_050', 'lcnet_050', 'fbnetv3_b', 'hardcorenas_a',
    'mobilenetv4_conv_small_035', 'mobilenetv4_conv_aa_medium', 'tf_mobilenetv3_small_minimal_100', 'repvgg_a0',
    'mobileone_s0', 'regnetz_b16', 'gernet_s', 'resnet51q', 'resnext26ts', 'mobilevit_xxs', 'resnet50_mlp',
]

# trunks of which no registered network is, by the name that a test goes by, with what builds each
TRUNKS = {
    'mobilenetv3': dict(model_name='mobilenetv3_small_050'),
    'lcnet': dict(model_name='lcnet_050'),
    'mobilenetv4': dict(model_name='mobilenetv4_conv_small_035'),
    'mobilenetv4_aa': dict(model_name='mobilenetv4_conv_small_035', aa_layer='avg'),
    'hybrid': dict(model_name='mobilenetv4_hybrid_medium_075'),
    'tf_mobilenetv3': dict(model_name='tf_mobilenetv3_small_minimal_100'),
    'byobnet': dict(model_name='test_byobnet'),
    'repvgg': dict(model_name='repvgg_a0', width_factor=0.25),
    'mobileone': dict(model_name='mobileone_s0', width_factor=0.5),
    'gernet': dict(model_name='gernet_s', width_factor=0.25),
    'max_pool': dict(model_name='test_byobnet', stem_type='tiered', stem_pool='maxpool'),
    'max2_pool': dict(model_name='test_byobnet', stem_type='7x7', stem_pool='max2', downsample='', aa_layer='avg'),
    'avg2_pool': dict(model_name='test_byobnet', stem_chs=(8, 24), stem_pool='avg2', num_features=40, head_type='mlp'),
    'quad': dict(model_name='test_byobnet', stem_type='quad2', num_features=40),
    'clip': dict(model_name='resnet50_clip', width_factor=0.125, img_size=64),
    'mobilevit': dict(model_name='mobilevit_xxs'),
}
# much the same as another: in the slow suite
ALIKE = ('lcnet', 'mobilenetv4', 'hybrid', 'tf_mobilenetv3', 'mobileone', 'gernet', 'max2_pool', 'quad')
trunks = pytest.mark.parametrize('trunk', [
    pytest.param(trunk, marks=[pytest.mark.slow] * (trunk in ALIKE)) for trunk in TRUNKS])


def build(trunk, **kwargs):
    """One of TRUNKS whose norms and scales tell on its output, and the same with a memory at identity."""
    torch.manual_seed(0)
    plain = lived_in(timm.create_model(**TRUNKS[trunk], num_classes=10, **kwargs))
    return plain, mlfm_zoo.attach_memory(copy.deepcopy(plain))


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_and_trunk_stay(name):
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, num_classes=10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        expected = model(image)
        assert mlfm_zoo.supports_memory(model)
        assert mlfm_zoo.attach_memory(model) is model
        assert_near(model(image), expected)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert {k.split('.')[0] for k in after.keys() - before.keys()} == {'memory'}
    assert not model.training and not any(m.training for m in model.modules())


@pytest.mark.parametrize('name', ['resnet18', 'convnextv2_atto', 'regnetz_005'])
def test_every_memory_parameter_leaves_the_identity(name):
    """Trained from the second step at the latest; convolution biases that a norm cancels aside."""
    torch.manual_seed(0)
    model = mlfm_zoo.attach_memory(timm.create_model(name, num_classes=5)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
        without = [n for n, p in model.memory.named_parameters()
                   if not n.endswith('conv.bias') and not (p.grad is not None and p.grad.abs().max() > 0)]
        optimizer.step()
    assert not without


def test_options_and_refusals():
    model = mlfm_zoo.attach_memory(timm.create_model('resnet34'), memory_update='cat', memory_split=True)
    assert len(model.memory.units()) == 8 and model.memory.stem.update == 'cat'
    assert not mlfm_zoo.supports_memory(model) and 'has a memory already' in mlfm_zoo.supports_memory(model).reason
    with pytest.raises(ValueError, match='has a memory already'):
        mlfm_zoo.attach_memory(model)
    support = mlfm_zoo.supports_memory('vit_tiny_patch16_224')
    assert not support and 'VisionTransformer' in support.reason
    assert 'no model named' in mlfm_zoo.supports_memory('resnet_of_mine').reason
    assert mlfm_zoo.supports_memory('resnet50') == (True, '')
    plain = timm.create_model('resnet18')
    with pytest.raises(ValueError, match='memory_update'):
        mlfm_zoo.attach_memory(plain, memory_update='mul')
    with pytest.raises(TypeError, match="'memory_gate' is not an option .* expected memory_update, .*split"):
        mlfm_zoo.attach_memory(plain, memory_gate=1)
    assert type(plain) is timm.models.ResNet and not hasattr(plain, 'memory')


def training_logits(model, images):
    """Logits in training mode, where norms take the statistics of the batch; the model stays as it is."""
    with torch.no_grad():
        return copy.deepcopy(model).train()(images)


def accuracy(model, images, labels, training=False):
    with torch.no_grad():
        logits = training_logits(model, images) if training else model.eval()(images)
    return (logits.argmax(1) == labels).float().mean().item()


def test_calibration_keeps_accuracy_in_both_modes(trained_trunk):
    trunk, images, test_images, labels = trained_trunk
    expected = accuracy(trunk, test_images, labels)
    expected_training = accuracy(trunk, test_images, labels, training=True)
    assert expected > 0.9 and expected_training > 0.9
    model = mlfm_zoo.attach_memory(copy.deepcopy(trunk))
    assert accuracy(model, test_images, labels) == expected
    uncalibrated = training_logits(model, test_images)
    model.train()
    mlfm_zoo.calibrate_memory(model, [(batch, None) for batch in images.split(128)])
    assert model.training
    assert accuracy(model, test_images, labels) == expected
    assert accuracy(model, test_images, labels, training=True) > expected_training - 0.02
    # what calibration brings: in training mode the network answers much more as its trunk does
    trunk_logits, calibrated = training_logits(trunk, test_images), training_logits(model, test_images)
    assert (calibrated - trunk_logits).square().mean() < 0.5 * (uncalibrated - trunk_logits).square().mean()


@pytest.mark.parametrize('wrap', [torch.nn.DataParallel, lambda model: torch.compile(model, backend='eager')])
def test_calibration_of_wrapped_networks(trained_trunk, wrap):
    trunk, images, *_ = trained_trunk
    plain = mlfm_zoo.attach_memory(copy.deepcopy(trunk)).eval()
    inside = copy.deepcopy(plain)
    wrapped = wrap(inside)
    wrapped(images[:4])  # compiled before it is calibrated
    mlfm_zoo.calibrate_memory(plain, images.split(128))
    assert mlfm_zoo.calibrate_memory(wrapped, images.split(128)) is wrapped
    for name, value in plain.state_dict().items():
        assert torch.equal(inside.state_dict()[name], value), name


def test_calibration_refuses(trained_trunk):
    trunk, images, *_ = trained_trunk
    with pytest.raises(ValueError, match='no memory to calibrate'):
        mlfm_zoo.calibrate_memory(trunk, [images[:2]])
    with pytest.raises(ValueError, match='not at identity'):
        mlfm_zoo.calibrate_memory(timm.create_model('test_mlfm_resnet', pretrained=True), [images[:2]])
    with pytest.raises(ValueError, match='loader is empty'):
        mlfm_zoo.calibrate_memory(mlfm_zoo.attach_memory(timm.create_model('test_resnet')), [])
    for change in (prune.identity, parametrizations.weight_norm):  # both compute the weight from other tensors
        model = mlfm_zoo.attach_memory(copy.deepcopy(trunk))
        change(model.memory.layer2[0].output_gate, 'bias')
        with pytest.raises(ValueError, match='pruned or parametrized'):
            mlfm_zoo.calibrate_memory(model, [images[:2]])


@pytest.mark.parametrize('trunk_fused', [False, True])
@trunks
def test_nothing_handed_is_overwritten(trunk, trunk_fused):
    _, model = build(trunk)
    lived_in(model)
    if trunk_fused:
        model.fuse(trunk=True)
    assert_nothing_overwritten(model)


@trunks
def test_any_size(trunk):
    """The memory has the trunk's size, however that rounds odd sides; of sizes that it takes."""
    plain, model = build(trunk)
    taken = 0
    with torch.inference_mode():
        for size in [(32, 32), (33, 47), (97, 71), (225, 193)]:
            image = torch.randn(1, 3, *size)
            try:
                expected = plain(image)
            except RuntimeError:  # branches that round in different ways
                continue
            assert_near(model(image), expected)
            taken += 1
    assert taken == 4 or trunk == 'clip' and taken >= 2


@pytest.mark.parametrize('name', ['resnetaa34d', 'seresnetaa50d', 'resnet50_clip_gap'])
def test_pooling_that_rounds_down(name):
    model, image = timm.create_model(name, device='meta').eval(), torch.empty(1, 3, 225, 193, device='meta')
    shapes = [f.shape for f in model.forward_intermediates(image, intermediates_only=True)]
    mlfm_zoo.attach_memory(model)
    assert [f.shape for f in model.forward_intermediates(image, intermediates_only=True)] == shapes


@trunks
def test_intermediates_are_those_of_the_trunk(trunk):
    plain, model = build(trunk)
    image = torch.randn(2, 3, 64, 96)
    extra = 'exclude_final_conv' if isinstance(plain, timm.models.ByobNet) else 'extra_blocks'
    with torch.inference_mode():
        for kwargs in ({}, {extra: True}):
            everything = plain.forward_intermediates(image, intermediates_only=True, **kwargs)
            for indices in (None, 1, 2, *([i] for i in range(len(everything))), [0, 2]):
                expected_last, expected = plain.forward_intermediates(image, indices, **kwargs)
                last, actual = model.forward_intermediates(image, indices, **kwargs)
                early = model.forward_intermediates(image, indices, stop_early=True, intermediates_only=True, **kwargs)
                assert_near(last, expected_last)
                assert len(actual) == len(early) == len(expected)
                for feature, stopped, e in zip(actual, early, expected):
                    assert_near(feature, e)
                    assert_near(stopped, e)


@pytest.mark.parametrize('trunk', [
    'mobilenetv3', 'mobilenetv4_aa', 'avg2_pool', 'resnet34 split', 'convnext_atto', 'mobilenetv2_035',
    *(pytest.param(trunk, marks=pytest.mark.slow) for trunk in (
        'hybrid', 'mobileone', 'clip', 'mobilevit', 'resnet34', 'regnety_002', 'inception_next_atto'))])
def test_pruned_networks(trunk):
    """Memory attached to what is left of a trunk keeps its features; one that is pruned with it keeps its own."""
    torch.manual_seed(0)
    name, _, split = trunk.partition(' ')
    options = dict(memory_split=True) if split else {}
    plain, image = lived_in(timm.create_model(**TRUNKS.get(trunk, dict(model_name=name)))), torch.randn(1, 3, 64, 96)
    whole = lived_in(mlfm_zoo.attach_memory(copy.deepcopy(plain), **options))
    size = sum(p.numel() for p in whole.parameters())
    with torch.inference_mode():
        for index in range(len(plain.feature_info)):
            rest = copy.deepcopy(plain)
            rest.prune_intermediate_layers([index])
            mlfm_zoo.attach_memory(rest, **options)
            expected, = plain.forward_intermediates(image, [index], intermediates_only=True)
            assert_near(rest.forward_intermediates(image, [index], intermediates_only=True)[0], expected)
            pruned = copy.deepcopy(whole)
            assert pruned.prune_intermediate_layers([index]) == [index]
            assert sum(p.numel() for p in pruned.parameters()) < size
            expected, = whole.forward_intermediates(image, [index], intermediates_only=True)
            assert torch.equal(pruned.forward_intermediates(image, [index], intermediates_only=True)[0], expected)
            assert pruned.memory.state_dict().keys() == rest.memory.state_dict().keys()


@pytest.mark.parametrize('trunk', [
    'mobilenetv3',
    *(pytest.param(name, marks=pytest.mark.slow)
      for name in ('hybrid', 'tf_mobilenetv3', 'repvgg', 'max2_pool', 'clip', 'mobilevit'))])
def test_compiled_scripted_and_exported(trunk):
    _, model = build(trunk)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        torch.compiler.reset()
        assert_near(torch.compile(model, fullgraph=True, backend='eager')(image), expected)
        assert_near(torch.jit.script(model)(image), expected)
        dynamic = {0: torch.export.Dim('batch')}
        # the trunk alone takes more than a minute for the padding of the one, and is tied to a size in the other
        if trunk not in ('tf_mobilenetv3', 'mobilevit'):
            dynamic |= {side + 2: 32 * torch.export.Dim('hw'[side], min=1, max=8) for side in (0, 1)}
        exported = torch.export.export(model, (image,), dynamic_shapes=(dynamic,)).module()
        other = torch.randn(3, 3, 64, 96 if len(dynamic) == 1 else 64)
        assert_near(exported(other), model(other))


@trunks
def test_grad_checkpointing(trunk):
    _, model = build(trunk)
    gradients = []
    for enable in (False, True):
        model.train().set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for without, with_checkpointing in zip(*gradients):
        torch.testing.assert_close(with_checkpointing, without)


@pytest.mark.parametrize('name', [*ALL, *TRUNKS])
def test_layer_groups(name):
    """In coarse groups a unit is its stage's; in fine ones it lies between the blocks before it and the next."""
    model = build(name)[1] if name in TRUNKS else timm.create_model(name, device='meta')
    fine, coarse = (group_parameters(model, model.group_matcher(coarse), reverse=True) for coarse in (False, True))
    assert fine.keys() == coarse.keys() == {n for n, _ in model.named_parameters()}
    units = {n: u for n, u in model.memory.named_modules() if u in model.memory.units()}
    before = 0
    for unit_name, unit in units.items():
        names = [f'memory.{unit_name}.{n}' for n, _ in unit.named_parameters()]
        assert len({fine[n] for n in names}) == len({coarse[n] for n in names}) == 1, unit_name
        stage = unit_name.split('.')[0] if name.startswith(('mlfm_res', 'mlfm_seres')) else unit_name
        trunk = [n for n, _ in model.named_parameters() if re.match(rf'{re.escape(stage)}\b', n)]
        assert {coarse[n] for n in trunk} <= {coarse[names[0]]}, unit_name
        assert before <= fine[names[0]] <= max([fine[n] for n in trunk], default=0) + 1, unit_name
        before = fine[names[0]]
    last = max(fine.values())
    heads = [n for n, _ in model.named_parameters() if n.startswith(('fc.', 'classifier.'))]
    assert before < last and all(fine[n] == last for n in heads)


@trunks
def test_reparameterized_with_its_memory(trunk):
    """timm's function puts branches of RepVGG and MobileOne together and fuses the memory; `fuse` fuses that alone."""
    plain, model = build(trunk)
    lived_in(model)  # so that the memory is no identity
    images = torch.randn(2, 3, 65, 97) if trunk != 'clip' else torch.randn(2, 3, 64, 96)
    reparameterized, fused = reparameterize_model(model), copy.deepcopy(model).fuse()
    branches = [m for m in model.modules() if hasattr(m, 'reparameterize')]
    assert bool(branches) == (trunk in ('repvgg', 'mobileone'))
    for module in (m for m in reparameterized.modules() if hasattr(m, 'reparameterize')):
        assert module.reparam_conv is not None and not hasattr(module, 'conv_kxk')
    assert all(m.reparam_conv is None for m in fused.modules() if hasattr(m, 'reparameterize'))
    for deployed in (reparameterized, fused):
        assert all(unit.is_fused() for unit in deployed.memory.units())
        with torch.inference_mode():
            assert_near(deployed(images), model(images), tolerance=1e-4)
    # and the other way round: a memory for a trunk that is put together already
    deployed = mlfm_zoo.attach_memory(reparameterize_model(plain))
    with torch.inference_mode():
        assert_near(deployed(images), plain(images), tolerance=1e-4)


# what keeps norms of these: attention, which several layers read a norm for or which is not traced, and a head
UNFOLDED = {'hybrid': 8, 'mobilevit': 9, 'avg2_pool': 1}


@trunks
def test_trunk_folded(trunk):
    """Norms and branches of the trunk are folded exactly, and none is left that could be."""
    _, model = build(trunk)
    lived_in(model)
    folded = copy.deepcopy(model).fuse(trunk=True)
    images = torch.randn(2, 3, 65, 97) if trunk != 'clip' else torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        assert_near(folded(images), model(images))
    left = [n for n, m in folded.named_modules()
            if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d) and not n.startswith('memory.')]
    assert len(left) == UNFOLDED.get(trunk, 0)


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_trunk_folded_of_timms(name):
    torch.manual_seed(0)
    model = lived_in(mlfm_zoo.attach_memory(timm.create_model(name, num_classes=10))).double()
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    with torch.inference_mode():
        assert_near(copy.deepcopy(model).fuse(trunk=True)(images), model(images), tolerance=1e-10)


@trunks
@pytest.mark.parametrize('in_chans', [1, 4])
def test_weights_adapt_to_other_images(trunk, in_chans, tmp_path):
    _, model = build(trunk)
    lived_in(model)
    convs = model._traits['first_conv']
    assert all(isinstance(model.get_submodule(name), torch.nn.Conv2d) for name in convs)
    assert {model.get_submodule(name).in_channels for name in convs} == {3}
    torch.manual_seed(1)
    other = mlfm_zoo.attach_memory(timm.create_model(**TRUNKS[trunk], num_classes=10, in_chans=in_chans)).eval()
    seen = {n for n, p in other.named_parameters() if p.shape != model.get_parameter(n).shape}
    assert {f'{name}.weight' for name in other._traits['first_conv']} == seen
    timm.models.load_pretrained(
        other, dict(model.pretrained_cfg, state_dict=model.state_dict(), num_classes=10), 10, in_chans)
    for name in other._traits['first_conv']:
        expected = timm.models.adapt_input_conv(in_chans, model.get_submodule(name).weight)
        torch.testing.assert_close(other.get_submodule(name).weight, expected)
    if in_chans == 1:  # a gray image is one whose three channels are equal
        gray = torch.randn(2, 1, 64, 64)
        with torch.inference_mode():
            assert_near(other(gray), model(gray.repeat(1, 3, 1, 1)), tolerance=1e-3)


def test_names_of_the_convolutions_that_see_the_image():
    for name, expected in [
            ('repvgg_d2se', {'stem.conv_kxk.conv', 'stem.conv_1x1.conv'}),
            ('mobileone_s0', {'stem.conv_kxk.0.conv', 'stem.conv_scale.conv'}),
            ('resnet51q', {'stem.conv1'}), ('resnet61q', {'stem.conv1.conv'}), ('lcnet_035', {'conv_stem'})]:
        model = mlfm_zoo.attach_memory(timm.create_model(name, device='meta'))
        assert {n for n in model._traits['first_conv'] if not n.startswith('memory.')} == expected
    model = reparameterize_model(timm.create_model('repvgg_a0', width_factor=0.25))
    assert mlfm_zoo.attach_memory(model)._traits['first_conv'][0] == 'stem.reparam_conv'


@pytest.mark.parametrize('name', ['mnasnet_small', 'mobilenetv3_small_050'])
def test_no_sequence_without_the_memory(name):
    model = timm.create_model(name)
    assert model.as_sequential()
    with pytest.raises(NotImplementedError, match='would bypass the memory'):
        mlfm_zoo.attach_memory(model).as_sequential()


SITES = {
    'mobilenetv3': {'stem': 1, 'blocks.0': 2, 'blocks.1': 3, 'blocks.2': 4, 'blocks.3': 4, 'blocks.4': 5},
    'lcnet': {'stem': 1, 'blocks.1': 2, 'blocks.2': 3, 'blocks.3': 4, 'blocks.4': 4, 'blocks.5': 5},
    'mobilenetv4': {'stem': 1, 'blocks.0': 2, 'blocks.1': 3, 'blocks.2': 4, 'blocks.3': 5},
    'repvgg': {'stem': 1, 'stages.0': 2, 'stages.1': 3, 'stages.2': 4, 'stages.3': 5},
    'gernet': {'stem': 1, 'stages.0': 2, 'stages.1': 3, 'stages.2': 4, 'stages.4': 5},
    'clip': {'stem.2': 1, 'stem.3': 2, 'stages.0': 2, 'stages.1': 3, 'stages.2': 4, 'stages.3': 5},
    'mobilevit': {'stem': 1, 'stages.0': 1, 'stages.1': 2, 'stages.2': 3, 'stages.3': 4, 'stages.4': 5},
}


@pytest.mark.parametrize('trunk', SITES)
def test_sites(trunk):
    model = build(trunk)[1]
    units = {n.removeprefix('memory.'): m for n, m in model.named_modules() if m in set(model.memory.units())}
    assert {name: unit.level for name, unit in units.items()} == SITES[trunk]


def test_trunks_that_no_memory_follows():
    support = mlfm_zoo.supports_memory('mobilevitv2_050')
    assert not support and 'MobileViTv2' in support.reason and support.reason.count('.') == 1
    blocks = [timm.models.ByoBlockCfg(type='basic', d=1, c=16, s=stride) for stride in (3, 2)]
    model = timm.models.ByobNet(timm.models.ByoModelCfg(blocks=blocks, stem_chs=8, stem_pool=''))
    support = mlfm_zoo.supports_memory(model)
    assert not support and 'stride 3' in support.reason
    with pytest.raises(ValueError, match='stride 3.*memory was not attached') as error:
        mlfm_zoo.attach_memory(model)
    assert '\n' not in str(error.value) and type(model) is timm.models.ByobNet
    for name in ('mobilenetv3_small_050', 'test_byobnet'):
        features = timm.create_model(name, features_only=True)
        assert not mlfm_zoo.supports_memory(features)
        with pytest.raises(ValueError, match='expected one of ByobNet, .*MobileNetV3, '):
            mlfm_zoo.attach_memory(features)


# files of timm that hold networks of the classes that take a memory
FILES = (
    'resnet', 'res2net', 'resnest', 'sknet', 'efficientnet', 'regnet', 'convnext', 'inception_next', 'mobilenetv3',
    'hardcorenas', 'byobnet', 'byoanet', 'mobilevit')


def shapes_of(model, size):
    """Shapes of all features, or None of an image that the model does not take."""
    try:
        last, features = model.forward_intermediates(torch.empty(1, 3, *size, device='meta'))
        return [feature.shape for feature in (last, *features)]
    except (RuntimeError, AssertionError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize('file', FILES)
def test_every_timm_model_of_the_classes(file):
    """At an odd size, or at the model's own where the trunk takes no odd one."""
    refused = []
    for name in timm.list_models(module=file):
        model = timm.create_model(name, device='meta').eval()
        support = mlfm_zoo.supports_memory(model)
        if not support:
            refused.append(name)
            continue
        sizes = ((225, 193), model.pretrained_cfg['input_size'][-2:])
        size, expected = next((size, shapes) for size in sizes if (shapes := shapes_of(model, size)))
        mlfm_zoo.attach_memory(model)
        assert len(model.memory.units()) >= 4, name
        assert shapes_of(model, size) == expected, name
    assert refused == (timm.list_models('mobilevitv2_*') if file == 'mobilevit' else [])


def test_no_file_of_such_models_is_missing():
    """By what timm's functions say they return; of inception_next they do not."""
    functions = [timm.models.model_entrypoint(name) for name in timm.list_models()]
    classes = [cls for cls in FAMILIES if cls.__module__.startswith('timm.')]
    files = {f.__module__ for f in functions if f.__annotations__.get('return') in classes}
    files = {f.rsplit('.', 1)[-1] for f in files if f.startswith('timm.')}
    assert len(classes) == 7 and files | {'inception_next'} == set(FILES)
