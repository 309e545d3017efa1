"""The registered networks on DCT coefficients."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from transformers import TimmWrapperForImageClassification

from helpers.networks import DCT, lived_in
from helpers.smooth_pictures import MEAN, STD, pixels
from mlfm_zoo._timm import save_model
from mlfm_zoo.dct import to_dct
from mlfm_zoo.workflow.cost import count_cost
from mlfm_zoo.workflow.export import write_graph

SHORT = dict(layers=(1, 1, 1, 1))


@pytest.mark.parametrize('name', [
    name if name in ('dct_resnet50_24d', 'dct_resnet50_192_gate', 'dct_mobilenetv2_100_6s', 'dct_mobilenetv2_100_192')
    else pytest.param(name, marks=pytest.mark.slow) for name in DCT if 'ycbcr' not in name])
def test_networks(name):
    torch.manual_seed(0)
    small = SHORT if 'resnet' in name else {}
    model = timm.create_model(name, num_classes=7, **small).eval()
    image = torch.randn(2, 3, 129, 136)
    with torch.inference_mode():
        expected = model(image)
        assert expected.shape == (2, 7) and expected.isfinite().all()
        assert torch.equal(model(image), expected)
        features = timm.create_model(name, features_only=True, **small).eval()
        info = features.feature_info
        for feature, channels, reduction in zip(
                features(torch.randn(1, 3, 128, 256)), info.channels(), info.reduction(), strict=True):
            assert feature.shape == (1, channels, 128 // reduction, 256 // reduction)
    coefficients = timm.create_model(name, num_classes=7, dct_input='coefficients', **small).eval()
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


def test_ycbcr():
    """timm's ResNet50 on Y, Cb and Cr of JFIF's equations, each normalized as the constant coefficient is."""
    torch.manual_seed(0)
    raw, normalized = pixels(2, 3, 40, 56)
    model = timm.create_model('dct_resnet50_ycbcr', num_classes=7, **SHORT).eval()
    plain = timm.create_model('resnet50', num_classes=7, **SHORT)
    plain.load_state_dict(model.state_dict())
    r, g, b = raw.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = torch.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], 1) - 128
    mean, std = (torch.tensor(values)[[0, 64, 128], None, None] / 8 for values in model.conv1.stem.statistics)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(normalized), plain.eval()((planes - mean) / std), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.conv1.stem.inverse(model.conv1.stem(normalized)), normalized)
        gray = timm.create_model('dct_resnet50_ycbcr', num_classes=7, in_chans=1, **SHORT).eval()
        gray.load_state_dict(model.state_dict())
        torch.testing.assert_close(
            gray(normalized[:, :1]), model((raw[:, :1].expand(-1, 3, -1, -1) / 255 - torch.tensor(MEAN)[:, None, None])
                                           / torch.tensor(STD)[:, None, None]), rtol=1e-3, atol=1e-4)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend='eager')(normalized), model(normalized))
    for kwargs, error in (
            (dict(in_chans=4), ValueError), (dict(stem_type='deep'), ValueError), (dict(dct_gate=True), TypeError)):
        with pytest.raises(error):
            timm.create_model('dct_resnet50_ycbcr', **kwargs)


def test_normalization_is_that_of_the_config():
    overlay = dict(pretrained_cfg_overlay=dict(mean=(0.5,) * 3, std=(0.25,) * 3))
    assert timm.create_model('dct_resnet50_24s', **overlay).conv1.mean == (0.5,) * 3
    config = timm.get_pretrained_cfg('dct_resnet50_24s')
    config.std = (0.1, 0.2, 0.3)
    assert timm.create_model('dct_resnet50_24s', pretrained_cfg=config).conv1.std == (0.1, 0.2, 0.3)
    assert timm.create_model('dct_resnet50_24s', dct_std=(1.,) * 3, **overlay).conv1.std == (1.,) * 3
    gray = to_dct(timm.create_model('resnet18', in_chans=1), '12s')
    assert gray(torch.randn(2, 1, 64, 64)).shape == (2, 1000)
    config = to_dct(timm.create_model('resnet18'), '12s', dct_input='coefficients').pretrained_cfg
    assert config['input_size'] == (12, 28, 28) and config['std'] == (1.,) * 12


def test_strides():
    """Released: layer2 keeps its map. The paper's figure: it does not."""
    for stride, reductions in ((1, [8, 8, 16, 32]), (2, [8, 16, 32, 64])):
        model = timm.create_model('dct_resnet50_24s', layer2_stride=stride, features_only=True)
        assert model.feature_info.reduction() == reductions
        assert [256 // f.shape[-1] for f in model(torch.randn(1, 3, 256, 256))] == reductions
    cost = {stride: count_cost('dct_resnet50_24s', layer2_stride=stride).madds
            for stride in (1, 2)}
    assert cost[1] == pytest.approx(13.5e9, rel=0.01) and cost[2] == pytest.approx(3.9e9, rel=0.03)


def test_options_out_of_range():
    for kwargs in (dict(dct_input='jpeg'), dict(layer2_stride=3), dict(dct_channels='24x'), dict(in_chans=4),
                   dict(dct_mean=(0, 0)), dict(dct_std=(0, 0, 0)), dict(dct_gate='yes'),
                   dict(features_only=True, feature_cls='list')):
        with pytest.raises(ValueError) as error:
            timm.create_model('dct_resnet50_24s', **kwargs)
        assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='output_stride is 16'):
        timm.create_model('dct_mobilenetv2_100_6s', output_stride=16)


@pytest.mark.parametrize('name', ['dct_resnet50_24s', 'dct_mobilenetv2_100_192_gate'])
def test_saved_and_loaded(name, tmp_path):
    """A folder: the stem's normalization and statistics come along, other image channels need nothing new."""
    torch.manual_seed(0)
    statistics = [[float(i) for i in range(192)], [2.0 + i for i in range(192)]]
    model = timm.create_model(name, num_classes=5, dct_statistics=statistics, dct_mean=(0.4,) * 3, dct_std=(0.3,) * 3)
    model_args = dict(dct_statistics=statistics, dct_mean=[0.4] * 3, dct_std=[0.3] * 3)
    timm.models.save_for_hf(model, str(tmp_path), model_args=model_args, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(image), model.eval()(image))
        gray = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=1).eval()
        torch.testing.assert_close(gray(image[:, :1]), model(image[:, :1].expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)
    with pytest.raises(RuntimeError, match='dct_channels and dct_gate'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, dct_channels='12s')


@pytest.mark.parametrize('name', ['dct_resnet50_24s', 'dct_resnet50_ycbcr', 'dct_mobilenetv2_100_192_gate'])
def test_transformers(name, tmp_path):
    """transformers builds on the meta device, and no file has the stem's weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    save_model(model, tmp_path)
    loaded = TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image).logits, model(image))  # kernels differ with the weights' alignment


@pytest.mark.parametrize('name', DCT)
def test_pretrained_is_refused_until_there_is_something(name):
    with pytest.raises(RuntimeError, match='not published') as error:
        timm.create_model(name, pretrained=True)
    assert 'recipe' not in str(error.value)  # there is none yet
    assert f'start a training from {name}.init_' in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize('name', [
    'dct_resnet50_24s', 'dct_resnet50_192_gate', 'dct_resnet50_ycbcr', 'dct_mobilenetv2_100_6s'])
def test_onnx(name, tmp_path):
    """One graph for any batch and size, also sizes that are no multiples of 8."""
    torch.manual_seed(0)
    small = dict(SHORT, channels=(16, 24, 32, 40)) if 'resnet' in name else {}
    model = lived_in(timm.create_model(name, num_classes=5, **small))
    write_graph(model, tmp_path / 'model.onnx', 'onnx', (3, 64, 64), dynamic='all')
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    for batch, *sides in ((1, 64, 64), (3, 65, 97), (2, 128, 96)):
        image = torch.randn(batch, 3, *sides)
        with torch.inference_mode():
            expected = model(image).numpy()
        actual, = session.run(None, {'image': image.numpy()})
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
