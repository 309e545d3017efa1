"""Segmentation networks: against torchvision, the papers' definitions and literal writings, and as networks go."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torchvision.models.segmentation import FCN as TorchvisionFCN
from torchvision.models.segmentation import fcn_resnet50
from torchvision.models.segmentation.fcn import FCNHead

from helpers.hub_server import HubServer
from helpers.literal_unet import LiteralUNet
from helpers.networks import SMALL, SMALL_GSSDNET, lived_in
from helpers.reference import REFERENCE, needs_reference
from helpers.user import IMPORTS, User
from int8 import export_onnx
from mlfm_zoo.hub.manifest import load_manifest
from mlfm_zoo.memory.network import LowFrequencyMemory
from mlfm_zoo.segmentation import NAMES, LearntUpsample, SegmentationNetwork, create_model, segmentation_loss

EVERY = {**SMALL, **SMALL_GSSDNET}
RESNET = dict(channels=(8, 16, 24, 32), stem_width=8)

# one of each kind: name, encoder, arguments
KINDS = {
    'fcn': ('fcn8s', 'mlfm_resnet10', RESNET),
    'dilated': ('fcn8s', 'mlfm_resnet10', dict(RESNET, output_stride=8, aux=True, head='torchvision')),
    'unet': ('unet', None, dict(base_width=4, aux=True)),
    'unet decoder': ('unet', None, dict(base_width=4, memory_decoder=True, memory_update='cat')),
    'smp': ('unet', 'mlfm_resnet10', dict(RESNET, aux=True)),
    'attached': ('fcn16s', 'resnet10t', dict(memory=True, memory_supplement='none')),
    'attached smp': ('deeplabv3plus', 'resnet10t', dict(memory=True, decoder_channels=16, encoder_output_stride=8)),
}


def create(kind, num_classes=5, **kwargs):
    name, encoder, options = KINDS[kind]
    torch.manual_seed(0)
    return create_model(name, encoder, num_classes=num_classes, **dict(options, **kwargs))


def logits_of(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize('factor', [2, 8, 32])
@pytest.mark.parametrize('depthwise', [False, True])
def test_upsampling_starts_bilinear(factor, depthwise):
    x = torch.randn(2, 3, 5, 4)
    expected = F.interpolate(x, scale_factor=factor, mode='bilinear', align_corners=False)
    torch.testing.assert_close(LearntUpsample(3, factor, depthwise)(x), expected)


def test_fcn_is_torchvisions():
    """With its head, fixed upsampling and its dilated ResNet50: the same parameters and outputs."""
    torch.manual_seed(0)
    theirs = fcn_resnet50(weights=None, weights_backbone=None, num_classes=7, aux_loss=True)
    ours = create_model('fcn32s', 'resnet50', 7, output_stride=8, head='torchvision', upsample='bilinear', aux=True)
    names = {'backbone.': 'encoder.', 'classifier.': 'score.', 'aux_classifier.': 'aux_head.'}
    weights = {}
    for key, value in theirs.state_dict().items():
        prefix = next(p for p in names if key.startswith(p))
        weights[names[prefix] + key[len(prefix):]] = value
    ours.load_state_dict(weights)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), theirs.eval()(image)['out'], rtol=1e-4, atol=1e-5)
        for model in (ours, theirs):
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.eval()
        (logits, aux), expected = ours(image), theirs(image)
        torch.testing.assert_close(logits, expected['out'], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(aux, expected['aux'], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name, upsampled, skips', [
    ('fcn32s', [64], []), ('fcn16s', [4, 32], [512]), ('fcn8s', [4, 4, 16], [512, 512])])
def test_fcn_is_the_papers(name, upsampled, skips):
    """VGG16 made convolutional, its score layers and its deconvolutions, as the paper has them for 21 classes.

    One thing is timm's: its features of VGG are those before the pooling, so that the skip at stride 8 reads conv4_3,
    of 512 channels, where the paper's reads pool3, of 256.
    """
    with torch.device('meta'):
        model = create_model(name, 'vgg16', head='fc')
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    expected = [s for i, o in zip(widths, widths[1:]) for s in ((o, i, 3, 3), (o,))]
    expected += [(4096, 512, 7, 7), (4096,), (4096, 4096, 1, 1), (4096,), (21, 4096, 1, 1), (21,)]
    expected += [s for chs in skips for s in ((21, chs, 1, 1), (21,))]
    expected += [(21, 21, k, k) for k in upsampled]
    assert sorted(map(tuple, (p.shape for p in model.parameters()))) == sorted(expected)
    if name == 'fcn32s':
        # VGG16's convolutions, fc6, fc7, score, deconvolution
        count = 14_714_688 + 102_764_544 + 16_781_312 + 86_037 + 1_806_336
        assert sum(p.numel() for p in model.parameters()) == count


def test_fcn8s_adds_scores_as_the_paper():
    torch.manual_seed(0)
    model = create_model('fcn8s', 'mlfm_resnet10', 4, **RESNET).eval()
    for parameter in model.skips.parameters():
        torch.nn.init.normal_(parameter)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        f8, f16, f32 = model.encoder(image)
        x = F.interpolate(model.score(f32), scale_factor=2, mode='bilinear') + model.skips[0](f16)
        x = F.interpolate(x, scale_factor=2, mode='bilinear') + model.skips[1](f8)
        expected = F.interpolate(x, scale_factor=8, mode='bilinear')
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)


def fill_literal(literal, model):
    """Gives a literal network the weights of ours, in the order in which both are written."""
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


@pytest.mark.parametrize('kind', KINDS)
def test_memory_at_identity_changes_nothing(kind):
    options = {k: v for k, v in KINDS[kind][2].items() if not k.startswith('memory_')}
    torch.manual_seed(0)
    plain = create_model(*KINDS[kind][:2], num_classes=5, **dict(options, memory=False))
    lived_in(plain)
    model = create(kind).eval()
    weights = plain.state_dict()
    missing = {k for k in model.state_dict() if k.replace('encoder.model.', 'encoder.') not in weights}
    for key, value in model.state_dict().items():
        for name in (key, key.replace('encoder.model.', 'encoder.'), key.replace('model.model.', 'model.')):
            if name in weights:
                value.copy_(weights[name])
                missing.discard(key)
    assert missing and all('memory.' in k for k in missing)
    image = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        expected = plain(image)
        assert not torch.allclose(model(image), expected, atol=1e-3) or 'attached' in kind
        model.init_identity()
        assert (model(image) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_reach_the_memory(kind):
    model = create(kind)
    for parameter in (p for n, p in model.named_parameters() if n.startswith('skips.')):
        torch.nn.init.normal_(parameter)
    labels = torch.randint(5, (3, 70, 66))
    labels[:, :5] = 255
    image = torch.randn(3, 3, 70, 66)
    segmentation_loss(model(image), labels).backward()
    memories = [m for m in model.modules() if isinstance(m, LowFrequencyMemory)]
    assert memories
    for name, parameter in memories[0].named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or name.endswith('conv.bias') or 'attached' in kind, name  # that is at identity
    # from the identity, where norms move first and the convolutions before them follow
    model.init_identity()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        segmentation_loss(model(image), labels).backward()
        optimizer.step()
    assert all(p.grad.any() for n, p in memories[0].named_parameters() if not n.endswith('conv.bias'))


@pytest.mark.parametrize('kind', KINDS)
def test_any_size_channels_and_classes(kind):
    for in_chans, num_classes, size in ((1, 1, (33, 47)), (4, 150, (33, 47)), (3, 2, (227, 333))):
        model = create(kind, num_classes, in_chans=in_chans).eval()
        with torch.no_grad():
            logits = model(torch.randn(1, in_chans, *size))
        assert logits.shape == (1, num_classes, *size) and logits.isfinite().all()
    batch = 2 if kind == 'attached smp' else 1  # DeepLabV3+ has norms of single values
    output = create(kind, 3).train()(torch.randn(batch, 3, 65, 97))
    assert isinstance(output, tuple) == bool(KINDS[kind][2].get('aux'))
    assert all(x.shape == (batch, 3, 65, 97) for x in (output if isinstance(output, tuple) else (output,)))


def test_padding_repeats_the_edge():
    model = create('fcn').eval()
    image = torch.randn(1, 3, 50, 60)
    with torch.no_grad():
        expected = model(F.pad(image, (0, 4, 0, 14), mode='replicate'))[..., :50, :60]
        torch.testing.assert_close(model(image), expected)


def test_loss_leaves_void_pixels_out():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, 6, requires_grad=True), torch.randint(4, (2, 5, 6))
    labels[0, :2] = 255
    torch.testing.assert_close(segmentation_loss(logits, labels), F.cross_entropy(logits, labels, ignore_index=255))
    segmentation_loss(logits, labels).backward()
    assert not logits.grad[0, :, :2].any() and logits.grad[0, :, 2:].all()
    other = torch.where(labels == 255, -1, labels)
    torch.testing.assert_close(
        segmentation_loss((logits, logits), other, 0.5, ignore_index=-1), 1.5 * segmentation_loss(logits, labels))
    assert segmentation_loss(logits, torch.full_like(labels, 255)) == 0
    binary = labels.clamp(max=1).masked_fill(labels == 255, 255)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][binary < 255], binary[binary < 255].float())
    torch.testing.assert_close(segmentation_loss(logits[:, :1], binary), expected)


@pytest.mark.parametrize('kind', KINDS)
def test_fused_half_and_saved(kind, tmp_path):
    model = lived_in(create(kind))
    image = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        expected = model(image)
        largest = expected.abs().max()
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / 'config.json').read_text())
        assert config['num_classes'] == 5 and {'model.safetensors', 'config.json'} <= {
            f.name for f in tmp_path.iterdir()}
        for cls in (SegmentationNetwork, type(model)):
            again = cls.from_pretrained(tmp_path)
            assert type(again) is type(model) and torch.equal(again(image), expected)
        again = again.to(memory_format=torch.channels_last)
        close = 1e-4 * largest
        assert (again(image.to(memory_format=torch.channels_last)) - expected).abs().max() <= close
        with torch.autocast('cpu', torch.bfloat16):
            assert (model(image) - expected).abs().max() <= 0.1 * largest
        assert (copy.deepcopy(model).bfloat16()(image.bfloat16()) - expected).abs().max() <= 0.1 * largest
        fused = timm.models.reparameterize_model(model)
        assert (fused(image) - expected).abs().max() <= close
        assert (model.fuse()(image) - expected).abs().max() <= close
    with pytest.raises(RuntimeError, match='fused for inference'):
        model.train()
    assert not model.training


@pytest.mark.parametrize('kind', KINDS)
def test_gradient_checkpointing(kind):
    model = create(kind)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    image, labels = torch.randn(2, 3, 64, 64), torch.randint(5, (2, 64, 64))
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        segmentation_loss(model(image), labels).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-5, msg=name)


def check_export(kind, folder):
    model = lived_in(create(kind))
    export_onnx(model, folder / 'model.onnx', 64)
    session = onnxruntime.InferenceSession(folder / 'model.onnx', providers=['CPUExecutionProvider'])
    for batch, *sides in ((1, 64, 64), (3, 65, 97), (2, 33, 47)):
        image = torch.randn(batch, 3, *sides)
        with torch.no_grad():
            expected = model(image).numpy()
        actual, = session.run(None, {'image': image.numpy()})
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    compiled = torch.compile(model, backend='aot_eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-4)


def test_export(tmp_path):
    """One ONNX graph for all sizes, and compiled."""
    check_export('unet decoder', tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_export_of_every_kind(kind, tmp_path):
    check_export(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['fcn', 'unet decoder'])
def test_compiled(kind):
    model = lived_in(create(kind))
    image = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(image), model(image), rtol=1e-3, atol=1e-3)


def test_hub(tmp_path):
    """Pushed to a Hub, and loaded from there without the encoder's own weights."""
    with HubServer() as server:
        user = User(server, tmp_path)
        network, same, pretrained = user.code('''
import contextlib, io
from mlfm_zoo.segmentation import FCN, SegmentationNetwork, create_model
with contextlib.redirect_stdout(io.StringIO()):
    model = create_model('fcn8s', 'test_mlfm_resnet', num_classes=3, pretrained=True).eval()
    model.push_to_hub('org/seg')
    again = SegmentationNetwork.from_pretrained('org/seg')
image = torch.randn(1, 3, 64, 64)
print(json.dumps([type(again).__name__, torch.equal(again(image), model(image)),
                  again._hub_mixin_config['pretrained']]))
''')
    assert network == 'FCN' and same and not pretrained


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match='has no config.json of a segmentation network'):
        SegmentationNetwork.from_pretrained(tmp_path)
    create('unet').save_pretrained(tmp_path)
    file = tmp_path / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match='model.safetensors cannot be read .*: get it again'):
        SegmentationNetwork.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match='is of a UNet, expected one that FCN'):
        type(create('fcn')).from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match='do not fit UNet: the file lacks memory.decoder'):
        create('unet decoder', memory_update='add', aux=True).load_state_dict(create('unet').state_dict())


@pytest.mark.parametrize('kwargs, message', [
    (dict(name='fcn4s'), "name is 'fcn4s', expected one of fcn32s"),
    (dict(name='fcn8s', encoder=None), "only 'unet' has one of its own"),
    (dict(name='unet', encoder=None, pretrained=True), 'has no pretrained weights'),
    (dict(name='unet', encoder=None, memory=False, memory_decoder=True), 'memory_decoder is True without memory'),
    (dict(name='unet', encoder=None, memory_update='sum'), "memory_update is 'sum', expected 'add' or 'cat'"),
    (dict(name='fcn8s', num_classes=0), 'num_classes is 0, expected 1 or more'),
    (dict(name='fcn8s', head='mlp'), "head is 'mlp', expected 'conv'"),
    (dict(name='fcn8s', encoder='vgg11', memory=True), 'memory was not attached'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{'encoder': 'test_mlfm_resnet', **kwargs})


@pytest.mark.parametrize('shape, message', [
    ((3, 64, 64), 'has 3 dimensions'), ((1, 4, 64, 64), 'has 4 channels, expected 3')])
def test_bad_images(shape, message):
    with pytest.raises(ValueError, match=message):
        create('unet')(torch.randn(shape))


def check_smp(decoder, name):
    torch.manual_seed(0)
    model = create_model(decoder, name, 3, 4, **EVERY[name])
    optimizer = torch.optim.AdamW(model.parameters())
    image, labels = torch.randn(2, 4, 70, 100), torch.randint(3, (2, 70, 100))
    segmentation_loss(model(image), labels).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if 'memory.' in n)
    optimizer.step()
    with torch.no_grad():
        assert model.eval()(image).shape == (2, 3, 70, 100)


@pytest.mark.parametrize('decoder, name', [
    ('unet', 'mlfm_efficientnet_b0'), ('unetplusplus', 'mlfm_convnext_tiny_k3_par1_4'),
    ('deeplabv3plus', 'mlfm_mobilenetv2_010'), ('fpn', 'gssdnet_o2_050'), ('upernet', 'mlfm_regnety_002')])
def test_segmentation_models(decoder, name):
    check_smp(decoder, name)


@pytest.mark.slow
@pytest.mark.parametrize('decoder', NAMES[3:])
@pytest.mark.parametrize('name', EVERY)
def test_segmentation_models_on_every_family(decoder, name):
    check_smp(decoder, name)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*EVERY, 'dct_resnet50_24s', 'vgg11', 'mobilenetv3_small_050', 'swin_s3_tiny_224'])
def test_fcn_on_every_family(name):
    kwargs = dict(img_size=96) if 'swin' in name else EVERY.get(name, {})
    model = create_model('fcn8s', name, 3, **kwargs)
    size = (96, 96) if 'swin' in name else (75, 90)
    segmentation_loss(model(torch.randn(2, 3, *size)), torch.randint(3, (2, *size))).backward()
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 3, *size)


def test_depths_and_strides_of_segmentation_models():
    for kwargs in (dict(encoder_depth=3, decoder_channels=(32, 16, 8)), dict(output_stride=16)):
        model = create_model('unet', 'test_mlfm_resnet', 2, 1, **kwargs).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 1, 50, 60)).shape == (1, 2, 50, 60)
        assert model.stride == (8 if 'encoder_depth' in kwargs else 16)


@needs_reference
def test_encoder_weights_by_tag(tmp_path):
    """The authors' ImageNet100 weights, in segmentation_models.pytorch itself and in networks of our own."""
    known = load_manifest()['mlfm_mobilenetv2_010', 'paper_in100', True]
    source = tmp_path / 'clone' / known.source_path
    source.parent.mkdir(parents=True)
    shutil.copy(REFERENCE / 'authors' / 'mobilenetv2_0.1_mlfm.pth.tar', source)
    env = dict(
        os.environ, HF_HOME=str(tmp_path / 'home'), MLFM_ZOO_PAPER_MIRROR=str(tmp_path / 'clone'), HF_HUB_OFFLINE='1',
        PYTHONPATH=os.pathsep.join(IMPORTS))
    code = '''
import timm, torch, mlfm_zoo, segmentation_models_pytorch as smp
from mlfm_zoo.segmentation import create_model
torch.manual_seed(0)
image = torch.randn(1, 3, 64, 64)
expected = timm.create_model('mlfm_mobilenetv2_010', pretrained=True, features_only=True).eval()(image)
for name in ('mlfm_mobilenetv2_010', 'mlfm_mobilenetv2_010.paper_in100'):
    encoders = [
        smp.Unet(f'tu-{name}', encoder_weights=True, classes=2).encoder.model,
        create_model('unet', name, 2, pretrained=True).network.encoder.model,
        create_model('fcn8s', name, 2, pretrained=True).encoder]
    for encoder in encoders:
        for x, y in zip(reversed(encoder.eval()(image)), reversed(expected)):
            torch.testing.assert_close(x, y)
for in_chans in (1, 4):
    model = create_model('unet', 'mlfm_mobilenetv2_010.paper_in100', 2, in_chans, pretrained=True).eval()
    assert model(torch.randn(1, in_chans, 50, 60)).shape == (1, 2, 50, 60)
'''
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_torchvisions_networks():
    """torchvision's FCN around a backbone of ours, which takes any module that puts out a dict."""
    class Backbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model('test_mlfm_resnet', features_only=True, out_indices=(3, 4), output_stride=8)

        def forward(self, x):
            return OrderedDict(zip(('aux', 'out'), self.body(x)))

    backbone = Backbone()
    channels = backbone.body.feature_info.channels()
    model = TorchvisionFCN(backbone, FCNHead(channels[1], 3), FCNHead(channels[0], 3))
    output = model(torch.randn(2, 3, 64, 96))
    (output['out'].mean() + output['aux'].mean()).backward()
    assert output['out'].shape == (2, 3, 64, 96)
    assert all(p.grad is not None for p in backbone.parameters())


def test_transformers():
    """transformers' UPerNet on one of timm's backbones, which ours are."""
    from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation
    backbone = TimmBackboneConfig(
        backbone='test_mlfm_resnet', out_indices=[1, 2, 3, 4], use_pretrained_backbone=False)
    model = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, hidden_size=16, num_labels=3, use_auxiliary_head=False))
    output = model(pixel_values=torch.randn(2, 3, 64, 96), labels=torch.randint(3, (2, 64, 96)))
    output.loss.backward()
    assert output.logits.shape == (2, 3, 64, 96)
    memory = {n: p for n, p in model.named_parameters() if '.memory.' in n}
    assert memory and all(p.grad is not None for p in memory.values())
