"""Detectors against torchvision's own; what is frozen, what learns, what is refused."""

import math
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_model, save_file, save_model
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from helpers.detectors import FEW, NETWORKS, SMALL_DCT, TINY, samples
from helpers.networks import SMALL
from mlfm_zoo.dct import DCTStem
from mlfm_zoo.detection import create_model


@pytest.fixture(scope='module')
def warm_start(tmp_path_factory):
    """A pretrained ResNet18 whose memory is at identity."""
    torch.manual_seed(0)
    model = timm.create_model('mlfm_resnet18', zero_init_last=False)
    model.memory.init_identity()
    file = tmp_path_factory.mktemp('weights') / 'model.safetensors'
    save_file(model.state_dict(), file)
    return dict(pretrained_cfg_overlay=dict(file=str(file)))


@pytest.mark.parametrize('detector, theirs', [
    ('mask_rcnn', maskrcnn_resnet50_fpn), ('faster_rcnn', fasterrcnn_resnet50_fpn)])
def test_plain_resnet50_is_torchvisions(detector, theirs):
    """The same parameters; with the same weights the same losses and detections."""
    torch.manual_seed(0)
    expected = theirs(weights=None, weights_backbone=None, num_classes=5, min_size=64, max_size=96, **FEW)
    for tensor in expected.backbone.body.state_dict().values():
        if tensor.ndim == 1:
            tensor.add_(0.1 * torch.rand_like(tensor))
    actual = create_model(detector, 'resnet50', 5, min_size=64, max_size=96, **FEW)
    weights = {re.sub(r'^backbone\.body\.', 'backbone.body.model.', k): v for k, v in expected.state_dict().items()}
    assert {k: v.shape for k, v in actual.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    assert [p.requires_grad for p in actual.parameters()] == [p.requires_grad for p in expected.parameters()]
    actual.load_state_dict(weights)

    images, targets = samples()
    losses = []
    for model in (expected, actual):
        torch.manual_seed(1)
        losses.append(model.train()(images, targets))
    torch.testing.assert_close(losses[1], losses[0])
    with torch.inference_mode():
        predictions = [model.eval()(images) for model in (expected, actual)]
    assert len(predictions[0][0]['boxes']) > 5
    torch.testing.assert_close(predictions[1], predictions[0])


@pytest.mark.parametrize('name', NETWORKS)
def test_networks(name):
    """Strides of the pyramid, a training step on padded images of odd sizes, and predictions."""
    torch.manual_seed(0)
    model = create_model('mask_rcnn', name, backbone_kwargs=NETWORKS[name], **TINY)
    with torch.no_grad():
        maps = model.backbone.eval()(torch.rand(1, 3, 64, 96))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(16, *size) for size in sizes]
    images, targets = samples()
    losses = model.train()(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    # a batch norm takes a bias before it away again
    silent = [n for n, p in model.named_parameters()
              if (p.grad is None or not torch.isfinite(p.grad).all()) and not n.endswith('conv.bias')]
    assert not silent
    with torch.inference_mode():
        predictions = model.eval()(images)
    assert [p['masks'].shape[-2:] for p in predictions] == [image.shape[-2:] for image in images]


@pytest.mark.parametrize('name, enlarge', [
    ('dct_resnet50_24s', 2), ('dct_mobilenetv2_100_6s', 4), ('dct_resnet50_ycbcr', 1)])
def test_dct_sees_the_enlarged_image(name, enlarge):
    """Coefficients of the resized, normalized image, enlarged by Pillow, whatever it is normalized with."""
    pixels = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    enlarged = torch.stack([
        torch.from_numpy(np.array(Image.fromarray(plane.numpy()).resize((96 * enlarge, 64 * enlarge), 2)))
        for plane in pixels])
    for options in ({}, dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])):
        model = create_model('faster_rcnn', name, backbone_kwargs=NETWORKS[name], **dict(TINY, **options)).eval()
        outputs, stem = [], next(m for m in model.modules() if isinstance(m, DCTStem))
        handle = stem.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output))
        with torch.inference_mode():
            model([pixels])
        handle.remove()
        stem.mean, stem.std = (0, 0, 0), (1, 1, 1)
        stem.init_non_persistent_buffers()
        torch.testing.assert_close(outputs[0], stem(enlarged[None]), rtol=1e-3, atol=1e-3)


def test_dct_resnet_has_the_strides_of_the_paper():
    model = create_model('mask_rcnn', 'dct_resnet50_24s', fpn_channels=16)
    body = model.backbone.body.model
    strides = [math.prod(b.conv2.stride[0] for b in getattr(body, f'layer{i}')) for i in (1, 2, 3, 4)]
    assert strides == [1, 2, 2, 2] and model.transform.min_size == (800,) and model.transform.max_size == 1333
    with pytest.raises(ValueError, match=r'divided by 8, 8, 16, 32, expected by 4, 8, 16, 32'):
        create_model(backbone='dct_resnet50_24s', backbone_kwargs=dict(SMALL_DCT, layer2_stride=1))


@pytest.mark.parametrize('name', ['mlfm_mobilenetv2_010', 'dct_resnet50_24s'])
def test_grey_images(name):
    model = create_model('mask_rcnn', name, in_chans=1, backbone_kwargs=NETWORKS[name], **TINY)
    images, targets = samples(1)
    sum(model(images, targets).values()).backward()
    assert len(model.transform.image_mean) == 1
    with torch.inference_mode():
        assert len(model.eval()(images)) == 2


def train_a_little(model, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.train()(*samples()).values()).backward()
        optimizer.step()


def test_what_is_frozen(warm_start):
    """As in torchvision stem, first stage and all norms; not the gates of a memory at identity, which all learn."""
    model = create_model('mask_rcnn', 'mlfm_resnet18', pretrained=True, backbone_kwargs=warm_start, **TINY)
    body = model.backbone.body.model
    before = {k: v.clone() for k, v in body.state_dict().items()}
    train_a_little(model)
    moved = {k for k, v in body.state_dict().items() if not torch.equal(v, before[k])}
    gates = {k for k in before if '_gate' in k and 'output_gate' not in k and 'conv.bias' not in k}
    convs = {k for k in before if re.match(r'layer[234]\..*(conv\d|downsample\.0)', k)}
    assert {k for k in moved if not k.endswith('conv.bias')} == gates | convs
    norms = [m for n, m in body.named_modules() if 'bn' in n or 'downsample.1' in n or 'output_gate' in n]
    assert norms and all(isinstance(m, FrozenBatchNorm2d) for m in norms)
    resumed = create_model('mask_rcnn', 'mlfm_resnet18', pretrained=True, backbone_kwargs=warm_start, **TINY)
    resumed.load_state_dict(model.state_dict())
    assert [p.requires_grad for p in resumed.parameters()] == [p.requires_grad for p in model.parameters()]
    # trained gates are frozen with the rest: these have left the identity
    trained = {k.removeprefix('backbone.body.model.'): v for k, v in model.state_dict().items()}
    again = create_model('mask_rcnn', 'mlfm_resnet18', freeze_norms=True, trainable_stages=3, **TINY)
    again.backbone.body.model.load_state_dict({k: trained[k] for k in again.backbone.body.model.state_dict()})
    assert not [m for m in again.backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = {n for n, p in again.backbone.body.model.named_parameters() if not p.requires_grad}
    assert frozen == {k for k in again.backbone.body.model.state_dict()
                      if re.match(r'(memory\.(stem|pool|layer1).*conv\.|conv1|layer1.*conv)', k)}


def test_memory_at_identity_leaves_the_trunk_alone(warm_start):
    """Frozen, a warm start detects what its trunk does, in training mode too."""
    with_memory = create_model('faster_rcnn', 'mlfm_resnet18', pretrained=True, backbone_kwargs=warm_start, **TINY)
    plain = create_model('faster_rcnn', 'resnet18', freeze_norms=True, **TINY)
    weights = {k: v for k, v in with_memory.state_dict().items() if '.memory.' not in k}
    plain.load_state_dict(weights)
    x = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(
        dict(with_memory.train().backbone(x)), dict(plain.train().backbone(x)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('trainable, frozen', [
    (5, ''), (4, 'stem|bn|conv_stem|blocks.0'), (2, 'bn|conv_stem|blocks.[012]'), (0, '.*')])
def test_trainable_stages(trainable, frozen):
    model = create_model('faster_rcnn', 'mobilenetv2_035', trainable_stages=trainable, freeze_norms=False, **TINY)
    for name, parameter in model.backbone.body.model.named_parameters():
        assert parameter.requires_grad != bool(frozen and re.match(frozen, name)), name
    assert all(p.requires_grad for n, p in model.named_parameters() if '.body.' not in n)


@pytest.mark.parametrize('name', ['mlfm_resnet18', 'dct_resnet50_24s'])
def test_saved_weights(name, tmp_path):
    """Safetensors of a detector, into one whose norms are frozen too."""
    torch.manual_seed(0)
    model, frozen = (
        create_model('mask_rcnn', name, freeze_norms=freeze, backbone_kwargs=NETWORKS[name], **TINY)
        for freeze in (False, True))
    train_a_little(model, 1)
    save_model(model, tmp_path / 'model.safetensors')
    missing, unexpected = load_model(frozen, tmp_path / 'model.safetensors', strict=False)
    assert not missing and all(k.endswith('num_batches_tracked') for k in unexpected)
    images, _ = samples()
    with torch.inference_mode():
        torch.testing.assert_close(frozen.eval()(images), model.eval()(images), rtol=1e-3, atol=1e-3)


def test_torchscript():
    torch.manual_seed(0)
    model = create_model('mask_rcnn', 'mlfm_resnet18', backbone_kwargs=SMALL['mlfm_resnet18'], **TINY).eval()
    images = [torch.rand(3, 64, 96)]  # torchvision rounds sizes that it has to change in other ways when scripted
    with torch.inference_mode():
        _, scripted = torch.jit.script(model)(images)
        torch.testing.assert_close(scripted, model(images))


@pytest.mark.parametrize('arguments, error', [
    (dict(detector='yolo'), "detector is 'yolo', expected 'faster_rcnn' or 'mask_rcnn'"),
    (dict(backbone='vit_tiny_patch16_224'), 'features of vit_tiny_patch16_224 are the image divided by 16'),
    (dict(num_classes=1), 'num_classes is 1, expected 2 or more'),
    (dict(trainable_stages=6), 'trainable_stages is 6, expected 0 or 1 or 2'),
    (dict(backbone='dct_resnet50_24s', backbone_kwargs=dict(SMALL_DCT, dct_input='coefficients'), in_chans=3),
     'which takes images and whose strides are its own'),
    (dict(minimal_size=3), "minimal_size is not an argument of torchvision's MaskRCNN"),
])
def test_refused_arguments(arguments, error):
    with pytest.raises((ValueError, TypeError), match=error) as raised:
        create_model(**dict(dict(backbone='resnet18'), **arguments))
    assert str(raised.value).count('. ') == 0
