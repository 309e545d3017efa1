"""The converter on parameters in the form of the authors', made up here from their names and shapes."""

import pytest
import timm
import torch

from helpers.authors_form import mobilenetv2, resnet
from mlfm_zoo.convert import convert_state_dict

MOBILENETV2 = {
    0.1: 'mlfm_mobilenetv2_010', 0.35: 'mlfm_mobilenetv2_035', 0.5: 'mlfm_mobilenetv2_050',
    0.75: 'mlfm_mobilenetv2_075', 1.0: 'mlfm_mobilenetv2_100',
}


def load(conversion):
    """The network that was recognized, with the weights: each is there, of its shape, and none is left over."""
    model = timm.create_model(conversion.architecture, **conversion.model_args)
    model.load_state_dict(conversion.state_dict)
    return model


@pytest.mark.parametrize('update', ['add', 'cat', None])
@pytest.mark.parametrize('width', [*MOBILENETV2, 0.25, 1.4])
def test_mobilenetv2(width, update):
    weights = mobilenetv2(width, update, num_classes=37)
    conversion = convert_state_dict(weights)
    assert conversion.architecture == MOBILENETV2.get(width, 'mlfm_mobilenetv2_100')
    expected = dict(num_classes=37) | (dict(memory_update=update) if update else dict(memory=False))
    assert conversion.model_args == expected | ({} if width in MOBILENETV2 else dict(channel_multiplier=width))
    model = load(conversion)
    assert torch.equal(model.conv_stem.weight, weights['featuresconv.0.weight' if update else 'features.0.0.weight'])
    assert torch.equal(model.blocks[3][2].conv_dw.weight,
                       weights['features3.2.conv.3.weight' if update else 'features.9.conv.3.weight'])
    assert torch.equal(model.bn2.running_var, weights['conv.1.running_var'])
    if update:
        assert torch.equal(model.memory.blocks[4].supplement_gate.conv.bias, weights['wavelet_4.convsupplement.bias'])


@pytest.mark.parametrize('memory', [True, False])
@pytest.mark.parametrize('layers, architecture', [
    ((1, 1, 1, 1), 'mlfm_resnet10'), ((2, 2, 2, 2), 'mlfm_resnet18'), ((3, 4, 6, 3), 'mlfm_resnet34')])
def test_resnet(layers, architecture, memory):
    weights = resnet(layers, memory)
    conversion = convert_state_dict(weights)
    assert conversion.architecture == architecture
    model = load(conversion)
    assert torch.equal(model.fc.weight, weights['fc.weight'])
    split = layers[2] == 6 and memory
    last_of_stage3 = f'stage{"32" if split else "3"}.block{3 if split else layers[2]}.conv2.weight'
    assert torch.equal(model.layer3[-1].conv2.weight, weights[last_of_stage3])
    assert torch.equal(model.layer4[0].downsample[1].bias, weights['stage4.block1.shortcut.bn.bias'])
    if memory:
        default = timm.create_model(architecture, device='meta').state_dict()
        assert {k: v.shape for k, v in conversion.state_dict.items()} == {k: v.shape for k, v in default.items()}
        if layers[0] == 3:
            assert torch.equal(model.memory.layer3[2].output_gate.bias, weights['wavelet_block31.bnx.bias'])
            assert torch.equal(model.memory.layer3[5].output_gate.bias, weights['wavelet_block32.bnx.bias'])
    else:
        assert conversion.model_args == dict(num_classes=100, memory=False)


def test_counters_may_be_missing():
    weights = {k: v for k, v in mobilenetv2(0.1).items() if not k.endswith('num_batches_tracked')}
    assert load(convert_state_dict(weights)).bn2.num_batches_tracked == 0


@pytest.mark.parametrize('change, sentence', [
    ({'attention.weight': torch.zeros(3)}, 'parameter attention.weight was not recognized'),
    ({'features.99.conv.0.weight': torch.zeros(3)}, 'features.99.conv.0.weight was not recognized'),
    ({'wavelet_1.bn.weight': torch.zeros(3)}, 'wavelet_1.bn.weight was not recognized'),
    ({'featuresconv.0.weight': torch.zeros(13, 3, 3, 3)}, r'width .* \[13, .* channels'),
    ({'classifier.weight': None}, "lacks a parameter .*'classifier.weight'"),
    ({'wavelet_conv.convinput.weight': None}, 'lacks a parameter .*memory.stem.input_gate.conv.weight'),
    ({'featuresconv.0.weight': torch.tensor(1.)}, 'or a dimension of one'),
])
def test_damaged_mobilenetv2(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        convert_state_dict({k: v for k, v in (mobilenetv2(0.1) | change).items() if v is not None})


@pytest.mark.parametrize('weights, sentence', [
    (resnet((2, 2, 1, 2)), r'a ResNet of \(2, 2, 1, 2\) blocks'),
    (resnet((1, 1, 1, 1)) | {'wavelet_5.bnx.weight': torch.zeros(3)}, 'wavelet_5.bnx.weight was not recognized'),
    (resnet((1, 1, 1, 1)) | {'wavelet_32.bnx.weight': torch.zeros(3)}, 'wavelet_32.bnx.weight was not recognized'),
    (timm.create_model('resnet18', num_classes=3).state_dict(), r'was not recognized by its parameters \(conv1.weight'),
])
def test_other_resnets(weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        convert_state_dict(weights)
