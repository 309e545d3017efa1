"""GSSDNet in the released form: a network written out after the paper against what is converted from its weights."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from helpers.networks import lived_in
from mlfm_zoo.convert import convert_state_dict
from mlfm_zoo.workflow.convert import convert_checkpoint
from mlfm_zoo_cli import main


class Operator(nn.Module):
    """Filters the first channels, each with its own kernel, and lets the others pass."""

    def __init__(self, kernels, stride):
        super().__init__()
        self.stride = stride
        self.register_buffer('weight', torch.stack(kernels)[:, None])

    def forward(self, x):
        filtered, passed = x[:, :len(self.weight)], x[:, len(self.weight):]
        filtered = F.conv2d(filtered, self.weight, stride=self.stride, padding=1, groups=len(self.weight))
        return torch.cat([filtered, passed], dim=1) if passed.shape[1] else filtered


def gaussian(sigma):
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * sigma ** 2))
    return torch.outer(line, line) / line.sum() ** 2


def derivatives(order):
    x = [[0, 0, 0], [1, 0, -1], [0, 0, 0]], [[0, -1, 0], [0, 0, 0], [0, 1, 0]]
    xx = [[0, 0, 0], [-1, 2, -1], [0, 0, 0]], [[0, -1, 0], [0, 2, 0], [0, -1, 0]], [[-1, 0, 1], [0, 0, 0], [1, 0, -1]]
    return [torch.tensor(k, dtype=torch.float32) for k in (x if order == 1 else x + xx)]


def block(kind, in_chs, out_chs, stride, order):
    if order is None:
        operator = nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False)
    elif kind == 'blur':
        operator = Operator([gaussian(1.0)] * in_chs, stride)
    elif kind == 'low_pass':
        operator = Operator([gaussian(s) for s in torch.linspace(0.707, 1.414, in_chs // 2).tolist()], 1)
    else:
        kernels = derivatives(order)
        operator = Operator(kernels * (in_chs // 2 // len(kernels)), 1)
    mix = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs), nn.ReLU())
    return nn.Sequential(operator, nn.BatchNorm2d(in_chs), mix)


class Released(nn.Module):
    """Names and layers of the released network."""

    def __init__(self, order, width, in_chans=3, num_classes=1000, thumbnail=False):
        super().__init__()
        layout = dict(
            stem=[('blur', 32, 2), ('d', 64, 1)], stage1=[('blur', 128, 2), ('d', 128, 1)],
            stage2=[('blur', 256, 2), ('d', 256, 1)],
            stage3=[('blur', 512, 2), ('d', 512, 1), ('low_pass', 512, 1), ('d', 512, 1), ('low_pass', 512, 1),
                    ('d', 512, 1)],
            stage4=[('blur', 1024, 2), ('d', 1024, 1)])
        chs = in_chans
        self.features = nn.ModuleDict()
        for name, blocks in layout.items():
            stage = []
            for kind, base, stride in blocks:
                out_chs = max(int(base * width), 8)
                stride = 1 if thumbnail and name in ('stem', 'stage1') else stride
                stage.append(block(kind, chs, out_chs, stride, order))
                chs = out_chs
            self.features[name] = nn.Sequential(*stage)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(chs, num_classes))

    def forward(self, x):
        for stage in self.features.values():
            x = stage(x)
        return self.classifier(x.mean((2, 3)))


def released(order, width, **kwargs):
    torch.manual_seed(0)
    model = Released(order, width, **kwargs)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    if kwargs.get('in_chans', 3) == 3:
        lived_in(model)
    return model.eval()


@pytest.mark.parametrize('order, width, architecture, kwargs', [
    (1, 0.75, 'gssdnet_o1_075', {}),
    (2, 0.5, 'gssdnet_o2_050', dict(thumbnail=True, in_chans=1, num_classes=10)),
    (None, 0.75, 'gssdnet_vanilla_075', dict(thumbnail=True, in_chans=4, num_classes=3)),
    (1, 0.3, 'gssdnet_o1_100', dict(num_classes=3)),
    (2, 1.4, 'gssdnet_o2_100', dict(num_classes=3)),
])
def test_outputs(order, width, architecture, kwargs, tmp_path):
    model = released(order, width, **kwargs)
    save_file({f'module.{k}': v for k, v in model.state_dict().items()}, tmp_path / 'checkpoint.safetensors')
    options = ['--model-kwargs', 'thumbnail=True'] if kwargs.get('thumbnail') else []
    assert main(['convert', str(tmp_path / 'checkpoint.safetensors'), '--output', str(tmp_path / 'out'), *options]) == 0
    converted = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert converted.pretrained_cfg['architecture'] == architecture
    assert (converted.num_classes, converted.in_chans) == (kwargs.get('num_classes', 1000), kwargs.get('in_chans', 3))
    for size in ((64, 64), (65, 33)):
        image = torch.randn(2, kwargs.get('in_chans', 3), *size)
        with torch.inference_mode():
            expected, fused = model(image), timm.models.reparameterize_model(converted)
            for network in (converted, fused):
                assert (network(image) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture
def weights():
    return dict(released(2, 0.5, num_classes=3).state_dict())


def convert(weights, tmp_path, **model_args):
    save_file(weights, tmp_path / 'checkpoint.safetensors')
    return convert_checkpoint(tmp_path / 'checkpoint.safetensors', tmp_path / 'converted', model_args)


def test_order_without_kernels(weights, tmp_path):
    """A file that lacks the fixed kernels, as one saved without buffers, needs to be told the order."""
    learned = {k: v for k, v in weights.items() if not k.endswith('.0.weight') or '.2.0.' in k}
    with pytest.raises(ValueError, match='give operators=order2 or operators=order1'):
        convert_state_dict(learned)
    assert convert(learned, tmp_path, operators='order1').architecture == 'gssdnet_o1_050'
    assert timm.create_model(f'local-dir:{tmp_path / "converted"}', pretrained=True)


@pytest.mark.parametrize('change, sentence', [
    (lambda w: w.update({'features.stage2.1.0.weight': 2 * w['features.stage2.1.0.weight']}), 'fixed kernels'),
    (lambda w: w.update({'features.stem.0.0.weight': w['features.stem.0.0.weight'].roll(1, 2)}), 'fixed kernels'),
    (lambda w: w.update({'features.stage3.2.0.weight': w['features.stage3.2.0.weight'][:9]}), 'fixed kernels'),
    (lambda w: w.pop('features.stage3.2.2.0.weight'), 'lacks a parameter .*stages.2.2.conv_pw.weight'),
    (lambda w: w.pop('features.stage3.2.1.bias'), 'the file lacks stages.2.2.bn1.bias'),
    (lambda w: w.update({'features.stage5.0.1.bias': torch.ones(3)}), 'was not recognized'),
    (lambda w: w.update({'features.stage3.9.1.bias': torch.ones(3)}), 'which the model lacks'),
    (lambda w: w.update({'features.stage4.1.2.0.weight': torch.randn(511, 512, 1, 1)}), 'width was not recognized'),
])
def test_damaged(weights, change, sentence, tmp_path):
    change(weights)
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        convert({k: v.contiguous() for k, v in weights.items()}, tmp_path)


@pytest.mark.parametrize('model_args, sentence', [
    (dict(num_classes=4), 'num_classes=4 was given'), (dict(memory=False), 'could not be loaded .TypeError'),
    (dict(in_chans=1), 'of shape'), (dict(operators='order1'), 'differs from the fixed kernels of this network'),
    (dict(operators='order3'), 'operators is .*, expected'),
])
def test_arguments_that_do_not_fit(weights, model_args, sentence, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        convert(weights, tmp_path, **model_args)
