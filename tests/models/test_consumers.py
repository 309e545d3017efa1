"""Libraries that take timm's networks take these: tracers, feature extractors, attribution, sharding, OpenVINO."""

import copy
from functools import partial

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor

import mlfm_zoo
from helpers.networks import ALL, SMALL, lived_in

# with units half-way through stages too
NETWORKS = {**SMALL, 'mlfm_resnet34': dict(channels=(8, 16, 24, 32))}

# the same as functions that build them, and one with a unit inside its stem
STAGED = {name: partial(timm.create_model, name, num_classes=5, **kwargs) for name, kwargs in NETWORKS.items()}
STAGED['byobnet'] = lambda: mlfm_zoo.attach_memory(
    timm.create_model('test_byobnet', num_classes=5, stem_type='tiered', stem_pool='maxpool'))


@pytest.mark.parametrize('name', [
    *NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in NETWORKS)])
def test_symbolic_trace(name):
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, **NETWORKS.get(name, {})))
    traced = torch.fx.symbolic_trace(model)
    for shape in ((1, 3, 64, 64), (2, 3, 97, 65)):
        image = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(traced(image), model(image))
    with pytest.raises(ValueError, match='smaller than one cell'):
        traced(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize('name', NETWORKS)
def test_torchvision_extractor(name):
    """Its nodes are what the modules of `feature_info` return."""
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, **NETWORKS[name]))
    names = [info['module'] for info in model.feature_info]
    expected = {}
    handles = [
        model.get_submodule(module).register_forward_hook(
            lambda m, args, out, module=module: expected.__setitem__(module, out.clone()))
        for module in names]
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model(image)
        for handle in handles:
            handle.remove()
        found = create_feature_extractor(model, names)(image)
    for module in names:
        torch.testing.assert_close(found[module], expected[module])


@pytest.mark.parametrize('name', NETWORKS)
def test_children_in_a_row(name):
    """Idioms that call the children one after the other, and so leave the memory out, raise."""
    model = timm.create_model(name, **NETWORKS[name]).eval()
    image = torch.randn(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match='leaves the memory out: take features with features_only=True'):
        nn.Sequential(*list(model.children())[:-2])(image)
    stages = [n for n, _ in model.named_children() if n.startswith(('layer', 'stages', 'blocks', 's2'))]
    pyramid = BackboneWithFPN(model, {stages[-1]: '0'}, [model.num_features], 16)
    with pytest.raises(RuntimeError, match='leaves the memory out'):
        pyramid(image)


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_grad_cam_library(name):
    """Its map is made of the last stage's output and of the gradient that the rest of the network passes to it."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, num_classes=5, **NETWORKS[name]))
    model.get_classifier().weight.data *= 1000  # a map of tiny values is lost beside the 1e-7 that the library adds
    image, targets = torch.randn(5, 3, 64, 96), range(5)
    stage = model.get_submodule(model.feature_info[-1]['module'])
    kept = []
    handle = stage.register_forward_hook(lambda module, args, output: kept.append(output))
    model(image)
    handle.remove()
    feature = kept[0].detach().requires_grad_()
    handle = stage.register_forward_hook(lambda module, args, output: feature)
    model(image).trace().backward()  # each image has a class of its own
    handle.remove()
    expected = (feature.grad.mean((2, 3), keepdim=True) * feature).detach().sum(1, keepdim=True).relu()
    expected = F.interpolate(expected, size=(64, 96), mode='bilinear')[:, 0]
    expected = expected - expected.amin((1, 2), keepdim=True)
    with GradCAM(model, [stage]) as cam:
        found = torch.from_numpy(cam(image, [ClassifierOutputTarget(target) for target in targets]))
    assert (expected.amax((1, 2)) > 0).any()
    torch.testing.assert_close(found, expected / (1e-7 + expected.amax((1, 2), keepdim=True)), rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
    import torch.distributed as dist
    file = tmp_path_factory.mktemp('store') / 'store'
    dist.init_process_group('gloo', store=dist.FileStore(str(file), 1), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh('cpu', (1,))
    dist.destroy_process_group()


def twins(name):
    """Two networks of the same weights."""
    torch.manual_seed(0)
    model = STAGED[name]()
    return model, copy.deepcopy(model)


def stages(model):
    """The names of the modules of `feature_info` that have parameters, and of a stem of several layers."""
    names = [info['module'] for info in model.feature_info]
    names = dict.fromkeys('stem' if name.startswith('stem.') else name for name in names)
    return [name for name in names if [*model.get_submodule(name).parameters()]]


def backward(*networks):
    image, weights = torch.randn(2, 3, 64, 64), torch.randn(2, 5)
    for network in networks:
        (network(image) * weights).sum().backward()


@pytest.mark.parametrize('name', STAGED)
def test_sharded_stages(name, one_process):
    """FSDP2 on the stages: gradients of the network without it."""
    from torch.distributed.fsdp import fully_shard
    model, same = twins(name)
    for stage in stages(model):
        fully_shard(model.get_submodule(stage), mesh=one_process)
    fully_shard(model, mesh=one_process)
    backward(model, same)
    for (parameter, sharded), plain in zip(model.named_parameters(), same.parameters()):
        if plain.grad is not None:
            torch.testing.assert_close(sharded.grad.full_tensor(), plain.grad, msg=parameter)


@pytest.mark.parametrize('name', STAGED)
def test_checkpointed_stages(name):
    """A checkpoint around each stage calls it again in the backward pass: the gradients of the network without one."""
    model, same = twins(name)
    for stage in stages(model):
        model.set_submodule(stage, checkpoint_wrapper(model.get_submodule(stage)))
    backward(model, same)
    for (parameter, checkpointed), plain in zip(model.named_parameters(), same.parameters()):
        torch.testing.assert_close(checkpointed.grad, plain.grad, msg=parameter)


def test_reentrant_checkpoint_around_units():
    model, same = twins('mlfm_resnet34')
    model.layer2 = checkpoint_wrapper(model.layer2, CheckpointImpl.REENTRANT)
    with pytest.raises(RuntimeError, match='use use_reentrant=False'):
        backward(model, same)


@pytest.mark.slow
def test_deep_lift():
    """Attributions sum to the difference of the logit. Only where the trunk's own layers allow it: no max pooling."""
    from captum.attr import DeepLift
    torch.manual_seed(0)
    model = lived_in(timm.create_model('mlfm_regnetx_002', num_classes=5)).double()
    image, baseline = torch.randn(2, 1, 3, 64, 64).double()
    found = DeepLift(model).attribute(image, baseline, target=3).sum()
    with torch.no_grad():
        expected = model(image)[0, 3] - model(baseline)[0, 3]
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize('name, fuse', [('mlfm_mobilenetv2_010', False), *((name, True) for name in NETWORKS)])
def test_openvino(name, fuse):
    import openvino
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, **NETWORKS[name]))
    if fuse:
        model.fuse()
    converted = openvino.convert_model(model, example_input=torch.randn(1, 3, 64, 64))
    engine = openvino.compile_model(converted, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    for shape in ((1, 3, 64, 64), (2, 3, 97, 65)):
        image = torch.randn(shape)
        with torch.no_grad():
            expected = model(image)
        found = torch.from_numpy(engine(image.numpy())[0])
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
