"""The DCT stem against scipy, the subsets, the gate, and what turns timm's networks to coefficients."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.fft import dctn
from torch import nn

import mlfm_zoo
from mlfm_zoo.cli import main
from mlfm_zoo.cli.arguments import key_value
from mlfm_zoo.convert import convert_state_dict
from mlfm_zoo.dct import (
    SUBSETS,
    ChannelGate,
    DCTStem,
    GateTask,
    draw_open,
    freeze_selection,
    gate_of,
    measure_statistics,
    select_channels,
    share_open,
    to_dct,
)
from mlfm_zoo.workflow.cost import count_cost
from helpers.networks import DCT, lived_in

ON_BLOCKS = [name for name in DCT if 'ycbcr' not in name]

MEAN, STD = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
PLAIN = ([0.0] * 192, [1.0] * 192)


def pixels(*shape):
    """A smooth image from 0 to 255, and normalised."""
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(shape[0], 3, 9, 9), shape[-2:], mode='bicubic').clamp(0, 1)
    return 255 * image, (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def by_scipy(image):
    """All 192 coefficients of pixels (3, H, W), padded by repetition, after JFIF's equations."""
    r, g, b = np.pad(image.double().numpy(), [(0, 0), *((0, -side % 8) for side in image.shape[1:])], mode='edge')
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = (y - 128, (b - y) / 1.772, (r - y) / 1.402)
    height, width = y.shape
    out = np.empty((192, height // 8, width // 8))
    for p, plane in enumerate(planes):
        for i in range(height // 8):
            for j in range(width // 8):
                block = plane[8 * i:8 * i + 8, 8 * j:8 * j + 8]
                out[64 * p:64 * p + 64, i, j] = dctn(block, norm='ortho').ravel()
    return torch.from_numpy(out)


@pytest.mark.parametrize('size', [(16, 24), (8, 8), (17, 23), (1, 9), (40, 33)])
def test_stem_against_scipy(size):
    raw, normalised = pixels(2, 3, *size)
    expected = torch.stack([by_scipy(image) for image in raw])
    actual = DCTStem('192', statistics=PLAIN)(normalised).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-3)  # of values up to 1024
    torch.testing.assert_close(
        DCTStem('192', statistics=PLAIN).double()(normalised.double()), expected, rtol=0, atol=1e-3)
    chosen = list(select_channels('24d'))
    stem = DCTStem('24d')
    mean, std = (torch.tensor(values).double()[chosen, None, None] for values in stem.statistics)
    torch.testing.assert_close(
        stem(normalised).double(), (expected[:, chosen] - mean) / std, rtol=0, atol=5e-3)


@pytest.mark.parametrize('in_chans', [1, 3])
def test_inverse(in_chans):
    _, normalised = pixels(2, 3, 24, 40)
    stem, image = DCTStem('192', in_chans), normalised[:, :in_chans]
    torch.testing.assert_close(stem.inverse(stem(image)), image, rtol=0, atol=1e-4)
    few = DCTStem('24s', in_chans)
    assert few.inverse(few(image)).shape == image.shape


def test_grey_is_rgb_of_equal_channels():
    grey = torch.rand(2, 1, 16, 16)
    rgb = grey.expand(-1, 3, -1, -1)
    normalised = (rgb - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    one = DCTStem('64s', 1, mean=(0.5,), std=(0.5,))
    torch.testing.assert_close(one((grey - 0.5) / 0.5), DCTStem('64s')(normalised), rtol=1e-3, atol=1e-3)


def test_stem_is_fixed():
    stem, image = DCTStem('48t'), torch.randn(2, 3, 32, 32)
    expected = stem(image)
    assert not stem.state_dict() and not list(stem.parameters())
    weight = stem.weight.clone()
    assert torch.equal(copy.deepcopy(stem).half().float().weight, weight)
    assert torch.equal(DCTStem('48t', device='meta').to_empty(device='cpu').weight, weight)
    assert torch.equal(pickle.loads(pickle.dumps(stem))(image), expected)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = stem(image)
    assert inside.dtype == torch.float32 and torch.equal(inside, expected)
    torch.testing.assert_close(torch.jit.script(stem)(image), expected)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(stem, fullgraph=True, backend='eager')(image), expected)


def test_subsets():
    for name, channels in SUBSETS.items():
        count = int(name.rstrip('std'))
        assert len(channels) == len(set(channels)) == count and select_channels(name) == channels
        planes = [[c % 64 for c in channels if c // 64 == p] for p in range(3)]
        assert planes[1] == planes[2] and [len(p) for p in planes] == [len(planes[0]), *[len(planes[1])] * 2]
    assert select_channels('24s')[:16] == tuple(8 * row + column for row in range(4) for column in range(4))
    assert select_channels('64s')[:8] == (0, 1, 2, 3, 4, 5, 6, 8) and 53 in select_channels('64s')
    assert select_channels(64) == select_channels('64s') and select_channels(192) == tuple(range(192))
    triangle = [c for c in select_channels('48t') if c < 64]
    assert max(c // 8 + c % 8 for c in triangle) - 1 <= min(
        c // 8 + c % 8 for c in set(range(64)) - set(triangle)) <= max(c // 8 + c % 8 for c in triangle) + 1
    for text in ('3s', '40t', '100s', '191t'):
        assert len(select_channels(text)) == int(text[:-1])
    for bad in ('', '24', '24x', '2s', '193s', [], [0, 0], [192], [-1], [0.5], True, '1000s'):
        with pytest.raises(ValueError) as error:
            select_channels(bad)
        assert '\n' not in str(error.value)


def test_measured_statistics():
    batches = [(pixels(2, 3, 32, 40)[1] + 0.1 * i, torch.zeros(2)) for i in range(3)]
    statistics = measure_statistics(batches)
    stem = DCTStem('192', statistics=statistics)
    values = torch.cat([stem(batch).transpose(0, 1).flatten(1) for batch, _ in batches], 1)
    assert values.mean(1).abs().max() < 1e-2
    varying = torch.tensor(statistics.std) > 1e-2
    torch.testing.assert_close(values.std(1)[varying], torch.ones(int(varying.sum())), rtol=2e-2, atol=0)
    with pytest.raises(ValueError, match='no image'):
        measure_statistics([])
    model = timm.create_model('dct_resnet50_24s', dct_statistics=json.loads(json.dumps(statistics)))
    assert model.conv1.statistics == statistics


def photos(folder):
    """A folder of two classes of smooth pictures."""
    for i, image in enumerate(pixels(4, 3, 60, 80)[0].permute(0, 2, 3, 1).byte().numpy()):
        (folder / f'class{i % 2}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f'class{i % 2}' / f'{i}.png')
    return folder


def test_statistics_of_a_folder(tmp_path, capsys):
    """The command, and a network that takes what it wrote; timm's own transform gives the images to compare with."""
    data, file = photos(tmp_path / 'data'), tmp_path / 'statistics.json'
    arguments = ['--img-size', '48', '--workers', '0', '--batch-size', '3']
    assert main(['dct-statistics', str(data), '--output', str(file), *arguments]) == 0
    assert 'dct_statistics="$(cat' in capsys.readouterr().out and len(file.read_text()) < 10_000
    model = timm.create_model('dct_resnet50_24s', **dict([key_value(f'dct_statistics={file.read_text()}')]))
    config = timm.data.resolve_data_config(dict(img_size=48), model=model)
    transform = timm.data.create_transform(**config)
    images = torch.stack([transform(Image.open(path)) for path in sorted(data.rglob('*.png'))])
    coefficients = model.conv1(images).transpose(0, 1).flatten(1)
    assert coefficients.mean(1).abs().max() < 1e-2
    varying = torch.tensor(model.conv1.statistics.std)[list(model.conv1.channels)] > 1e-2
    torch.testing.assert_close(
        coefficients.std(1, correction=0)[varying], torch.ones(int(varying.sum())), rtol=1e-3, atol=0)
    (tmp_path / 'empty').mkdir()
    bad = tmp_path / 'bad'
    photos(bad)
    (bad / 'class0' / '0.png').write_bytes(b'no image')
    for command in (
            [tmp_path / 'empty'], [data, '--model', 'no_such'], [data, '--output', tmp_path / 'none' / 'a.json'],
            [data, '--output', tmp_path / 'a.txt'], [bad, '--workers', '1', '--img-size', '32']):
        assert main(['dct-statistics', '--output', str(tmp_path / 'no.json'), *map(str, command)]) == 1
        assert capsys.readouterr().err.count('\n') == 1
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'statistics.json', 'empty', 'bad'}


@pytest.mark.parametrize('statistics', [
    5, 'st.json', [1, 2], [[0] * 192], [[0] * 192, [0] * 192], [[0] * 192, [float('nan')] * 192], [[0], [1]], {}])
def test_statistics_are_checked(statistics):
    with pytest.raises(ValueError, match='two lists, 192 means and 192 standard deviations') as error:
        timm.create_model('dct_resnet50_24s', dct_statistics=statistics)
    assert '\n' not in str(error.value)


def test_normalisation_is_that_of_the_config():
    overlay = dict(pretrained_cfg_overlay=dict(mean=(0.5,) * 3, std=(0.25,) * 3))
    assert timm.create_model('dct_resnet50_24s', **overlay).conv1.mean == (0.5,) * 3
    config = timm.get_pretrained_cfg('dct_resnet50_24s')
    config.std = (0.1, 0.2, 0.3)
    assert timm.create_model('dct_resnet50_24s', pretrained_cfg=config).conv1.std == (0.1, 0.2, 0.3)
    assert timm.create_model('dct_resnet50_24s', dct_std=(1.,) * 3, **overlay).conv1.std == (1.,) * 3
    grey = to_dct(timm.create_model('resnet18', in_chans=1), '12s')
    assert grey(torch.randn(2, 1, 64, 64)).shape == (2, 1000)
    config = to_dct(timm.create_model('resnet18'), '12s', dct_input='coefficients').pretrained_cfg
    assert config['input_size'] == (12, 28, 28) and config['std'] == (1.,) * 12


def test_ycbcr():
    """timm's ResNet50 on Y, Cb and Cr of JFIF's equations, each normalised as the constant coefficient is."""
    torch.manual_seed(0)
    raw, normalised = pixels(2, 3, 40, 56)
    model = timm.create_model('dct_resnet50_ycbcr', num_classes=7).eval()
    plain = timm.create_model('resnet50', num_classes=7)
    plain.load_state_dict(model.state_dict())
    r, g, b = raw.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = torch.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], 1) - 128
    mean, std = (torch.tensor(values)[[0, 64, 128], None, None] / 8 for values in model.conv1.stem.statistics)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(normalised), plain.eval()((planes - mean) / std), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.conv1.stem.inverse(model.conv1.stem(normalised)), normalised)
        grey = timm.create_model('dct_resnet50_ycbcr', num_classes=7, in_chans=1).eval()
        grey.load_state_dict(model.state_dict())
        torch.testing.assert_close(
            grey(normalised[:, :1]), model((raw[:, :1].expand(-1, 3, -1, -1) / 255 - torch.tensor(MEAN)[:, None, None])
                                           / torch.tensor(STD)[:, None, None]), rtol=1e-3, atol=1e-4)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend='eager')(normalised), model(normalised))
    for kwargs in (dict(in_chans=4), dict(stem_type='deep'), dict(dct_input='coefficients'), dict(dct_gate=True)):
        with pytest.raises(ValueError):
            timm.create_model('dct_resnet50_ycbcr', **kwargs)


@pytest.mark.parametrize('name', ON_BLOCKS)
def test_networks(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    image = torch.randn(2, 3, 129, 136)
    with torch.inference_mode():
        expected = model(image)
        assert expected.shape == (2, 7) and expected.isfinite().all()
        assert torch.equal(model(image), expected)
        features = timm.create_model(name, features_only=True).eval()
        info = features.feature_info
        for feature, channels, reduction in zip(
                features(torch.randn(1, 3, 128, 256)), info.channels(), info.reduction(), strict=True):
            assert feature.shape == (1, channels, 128 // reduction, 256 // reduction)
    coefficients = timm.create_model(name, num_classes=7, dct_input='coefficients').eval()
    coefficients.load_state_dict(model.state_dict())
    stem = model.conv1 if 'resnet' in name else model.conv_stem
    stem = stem[0] if 'gate' in name else stem
    size = model.pretrained_cfg['input_size'][-1] // 8
    assert coefficients.pretrained_cfg['input_size'] == (stem.out_channels, size, size)
    assert coefficients.in_chans == stem.out_channels
    with torch.inference_mode():
        torch.testing.assert_close(coefficients(stem(image)), expected)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='eager')(image), expected)


def test_strides():
    """Released: layer2 keeps its map. The paper's figure: it does not."""
    for stride, reductions in ((1, [8, 8, 16, 32]), (2, [8, 16, 32, 64])):
        model = timm.create_model('dct_resnet50_24s', layer2_stride=stride, features_only=True)
        assert model.feature_info.reduction() == reductions
        assert [256 // f.shape[-1] for f in model(torch.randn(1, 3, 256, 256))] == reductions
    cost = {stride: count_cost('dct_resnet50_24s', layer2_stride=stride).madds
            for stride in (1, 2)}
    assert cost[1] == pytest.approx(13.5e9, rel=0.01) and cost[2] == pytest.approx(3.9e9, rel=0.03)


@pytest.mark.parametrize('name', [
    'resnet18', 'resnet50d', 'seresnet50', 'resnext50_32x4d', 'resnet26t', 'wide_resnet50_2', 'mobilenetv2_050',
    'efficientnet_b0', 'tf_efficientnet_lite0'])
@pytest.mark.parametrize('channels', ['24s', '40t', '192'])
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
        features = model.forward_intermediates(torch.randn(1, 3, 512, 256, device='meta'), intermediates_only=True)
        for feature, info in zip(features, model.feature_info, strict=True):
            assert feature.shape[1:] == (info['num_chs'], 512 // info['reduction'], 256 // info['reduction']), name
        assert model(torch.randn(2, 3, 256, 256, device='meta')).shape == (2, model.num_classes)
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
    for kwargs in (dict(dct_input='jpeg'), dict(layer2_stride=3), dict(dct_channels='24x'), dict(in_chans=4),
                   dict(dct_mean=(0, 0)), dict(dct_std=(0, 0, 0)), dict(dct_gate='yes'),
                   dict(features_only=True, feature_cls='list')):
        with pytest.raises(ValueError) as error:
            timm.create_model('dct_resnet50_24s', **kwargs)
        assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='output_stride is 16'):
        timm.create_model('dct_mobilenetv2_100_6s', output_stride=16)


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


@pytest.mark.parametrize('name', ['dct_resnet50_192_gate', 'dct_mobilenetv2_100_192_gate'])
@pytest.mark.parametrize('dct_input', ['rgb', 'coefficients'])
def test_frozen_selection(name, dct_input, tmp_path):
    """With the same channels open, gated and frozen networks agree."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, dct_input=dct_input).eval()
    stem = model.conv1 if 'resnet' in name else model.conv_stem
    gate = stem[-1]
    kept = [0, 3, 9, 64, 65, 130, 191]
    with torch.no_grad():
        gate.conv2.weight.zero_()
        gate.conv2.bias.view(-1, 2)[:] = torch.tensor([2.0, 0.1])
        gate.conv2.bias.view(-1, 2)[kept] = torch.tensor([0.1, 2.0])
    x = torch.randn(2, 3, 64, 64) if dct_input == 'rgb' else torch.randn(2, 192, 8, 8)
    with torch.inference_mode():
        expected = model(x)
        frozen, channels = freeze_selection(copy.deepcopy(model), len(kept))
        assert channels == kept
        torch.testing.assert_close(
            frozen(x if dct_input == 'rgb' else x[:, kept]), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='no gate'):
        freeze_selection(frozen, 3)
    for k, counts in ((193, None), (1.5, None), (3, torch.ones(10)), (3, [1] * 192)):
        with pytest.raises(ValueError):
            freeze_selection(model, k, counts)
    assert freeze_selection(copy.deepcopy(model), 24, torch.ones(192))[1] == list(range(24))  # low ones first
    timm.models.save_for_hf(frozen, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert loaded.pretrained_cfg['input_size'][0] == (3 if dct_input == 'rgb' else 7)
    with torch.inference_mode():
        assert torch.equal(loaded(x if dct_input == 'rgb' else x[:, kept]), frozen(
            x if dct_input == 'rgb' else x[:, kept]))


@pytest.mark.parametrize('name', ['dct_resnet50_24s', 'dct_mobilenetv2_100_192_gate'])
def test_saved_and_loaded(name, tmp_path):
    """A folder: the stem's normalisation and statistics come along, other image channels need nothing new."""
    torch.manual_seed(0)
    statistics = [[float(i) for i in range(192)], [2.0 + i for i in range(192)]]
    model = timm.create_model(name, num_classes=5, dct_statistics=statistics, dct_mean=(0.4,) * 3, dct_std=(0.3,) * 3)
    model_args = dict(dct_statistics=statistics, dct_mean=[0.4] * 3, dct_std=[0.3] * 3)
    timm.models.save_for_hf(model, str(tmp_path), model_args=model_args, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(image), model.eval()(image))
        grey = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=1).eval()
        torch.testing.assert_close(grey(image[:, :1]), model(image[:, :1].expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)
    with pytest.raises(RuntimeError, match='dct_channels and dct_gate'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, dct_channels='12s')


@pytest.mark.parametrize('name', DCT)
def test_pretrained_is_refused_until_there_is_something(name):
    with pytest.raises(RuntimeError, match='not published') as error:
        timm.create_model(name, pretrained=True)
    assert 'recipe' not in str(error.value)  # there is none yet
    assert f'start a training from {name}.init_' in str(error.value)


def test_convert_of_other_counts():
    """Sixty-four coefficients, six, and all, under the released names; a subset that no file tells."""
    for name, kind in (('dct_resnet50_64s', 0), ('dct_mobilenetv2_100_6s', 1), ('dct_mobilenetv2_100_192', 1)):
        torch.manual_seed(0)
        model = lived_in(timm.create_model(name, num_classes=9))
        released = {_released_name(k, kind): v for k, v in model.state_dict().items()}
        conversion = convert_state_dict(released)
        assert (conversion.architecture, conversion.model_args) == (name, dict(num_classes=9))
        assert all(torch.equal(conversion.state_dict[k], v) for k, v in model.state_dict().items())
    released = {_released_name(k, 0): v for k, v in timm.create_model(
        'dct_resnet50_24s', dct_channels='40t').state_dict().items()}
    with pytest.raises(ValueError, match='on 40 DCT coefficients, .* give dct_channels'):
        convert_state_dict(released)
    assert convert_state_dict(released, dict(dct_channels='40t')).model_args['dct_channels'] == '40t'
    with pytest.raises(ValueError, match='lacks its classifier'):
        convert_state_dict({k: v for k, v in released.items() if not k.startswith('fc')}, dict(dct_channels='40t'))
    with pytest.raises(ValueError, match='was not recognised'):
        convert_state_dict({**released, 'model.7.0.bn1.bias': torch.ones(3)}, dict(dct_channels='40t'))


def _released_name(name, kind):
    if kind == 0:
        return re.sub(r'^layer(\d)', lambda m: f'model.{int(m[1]) - 1}', name)
    depths = (1, 2, 3, 4, 3, 3, 1)
    if match := re.match(r'blocks\.(\d)\.(\d)\.(\w+)\.(.+)', name):
        group, block = int(match[1]), int(match[2])
        parts = dict(conv_dw=0, bn1=1, conv_pw=3, bn2=4) if group == 0 else dict(
            conv_pw=0, bn1=1, conv_dw=3, bn2=4, conv_pwl=6, bn3=7)
        return f'features.{sum(depths[:group]) + block}.conv.{parts[match[3]]}.{match[4]}'
    return name.replace('conv_head.', 'conv.0.').replace('bn2.', 'conv.1.')


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
        share_open(timm.create_model('dct_resnet50_192_gate'), [])
    with pytest.raises(ValueError, match='expected all 192'):
        draw_open(share[:24], tmp_path / 'no.png')


def test_gate_command(tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model('dct_mobilenetv2_100_192_gate', num_classes=2)
    model_args = dict(channel_multiplier=1.0)
    timm.models.save_for_hf(model, str(tmp_path / 'model'), model_args=model_args, safe_serialization=True)
    data, picture = photos(tmp_path / 'data'), tmp_path / 'open.png'
    command = ['dct-gate', f'local-dir:{tmp_path / "model"}', str(data), '--img-size', '64', '--workers', '0']
    assert main([*command, '--output', str(picture)]) == 0
    share = json.loads((tmp_path / 'open.json').read_text())
    assert len(share) == 192 and f'{sum(share):.1f} of 192 channels' in capsys.readouterr().out
    with Image.open(picture) as image:
        assert min(image.size) > 200
    assert main([*command, '--output', str(tmp_path / 'a.json')]) == 1
    assert main([*command, '--output', str(picture), '--model-kwargs', 'dct_input=coefficients']) == 1
    assert 'takes 192 channels, expected images' in capsys.readouterr().err


@pytest.mark.parametrize('command', [['predict', 'IMAGE', '--model'], ['evaluate']])
def test_an_initialisation_is_no_classifier(command, tmp_path, capsys):
    data = photos(tmp_path)
    arguments = [str(data) if a == 'IMAGE' else a for a in command] + ['dct_resnet50_24s.init_a1_in1k']
    assert main([*arguments, *([str(data)] if command == ['evaluate'] else [])]) == 1
    assert 'is an initialisation, which has yet to be trained' in capsys.readouterr().err
