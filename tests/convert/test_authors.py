"""The converter on parameters in the form of the authors', made up here from their names and shapes."""

import pytest
import timm
import torch

from helpers.authors_form import mobilenetv2, resnet
from mlfm_zoo.convert import convert_state_dict

MOBILENETV2 = [
    (0.1, 'mlfm_mobilenetv2_010'), (0.35, 'mlfm_mobilenetv2_035'), (0.5, 'mlfm_mobilenetv2_050'),
    (0.75, 'mlfm_mobilenetv2_075'), (1.0, 'mlfm_mobilenetv2_100'), (0.25, 'mlfm_mobilenetv2_100'),
    (1.4, 'mlfm_mobilenetv2_100'),
]


def load(conversion):
    """The network that was recognized, with the weights: each is there, of its shape, and none is left over."""
    model = timm.create_model(conversion.architecture, **conversion.model_args)
    model.load_state_dict(conversion.state_dict)
    return model


@pytest.mark.parametrize('update', ['add', 'cat', None])
@pytest.mark.parametrize('width, architecture', MOBILENETV2)
def test_mobilenetv2(width, architecture, update):
    weights = mobilenetv2(width, update, num_classes=37)
    conversion = convert_state_dict(weights)
    assert conversion.architecture == architecture
    expected = dict(num_classes=37) | (dict(memory_update=update) if update else dict(memory=False))
    if width not in (0.1, 0.35, 0.5, 0.75, 1.0):
        expected['channel_multiplier'] = width
    assert conversion.model_args == expected

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
    (lambda w: w.update({'attention.weight': torch.zeros(3)}), 'parameter attention.weight was not recognized'),
    (lambda w: w.update({'features.99.conv.0.weight': torch.zeros(3)}), 'features.99.conv.0.weight was not recognized'),
    (lambda w: w.update({'wavelet_1.bn.weight': torch.zeros(3)}), 'wavelet_1.bn.weight was not recognized'),
    (lambda w: w.update({'featuresconv.0.weight': torch.zeros(13, 3, 3, 3)}), r'width .* \[13, .* channels'),
    (lambda w: w.pop('classifier.weight'), 'looks like a MobileNetV2 but lacks classifier.weight'),
    (lambda w: w.pop('wavelet_conv.convinput.weight'), 'lacks memory.stem.input_gate.conv.weight'),
    (lambda w: w.update({'featuresconv.0.weight': torch.tensor(1.)}), 'conv_stem.weight does not have 4 dimensions'),
    (lambda w: w.update({'wavelet_1.convinput.weight': torch.ones(3)}), 'input_gate.conv.weight does not have 4'),
])
def test_damaged_mobilenetv2(change, sentence):
    weights = mobilenetv2(0.1)
    change(weights)
    with pytest.raises(ValueError, match=sentence) as error:
        convert_state_dict(weights)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('weights, sentence', [
    (resnet((2, 2, 1, 2)), r'\(2, 2, 1, 2\) basic blocks'),
    (resnet((3, 4, 6, 3), memory=False) | {'stage1.block1.conv3.weight': torch.zeros(64, 16, 1, 1)},
     'bottleneck blocks'),
    (resnet((1, 1, 1, 1)) | {'wavelet_5.bnx.weight': torch.zeros(3)}, 'wavelet_5.bnx.weight was not recognized'),
    (resnet((1, 1, 1, 1)) | {'wavelet_32.bnx.weight': torch.zeros(3)}, 'wavelet_32.bnx.weight was not recognized'),
    (timm.create_model('resnet18', num_classes=3).state_dict(), r'by its parameters \(conv1.weight.* and \d+ more\)'),
])
def test_other_resnets(weights, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        convert_state_dict(weights)
    assert '\n' not in str(error.value)
