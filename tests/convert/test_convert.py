"""The converter on files in the form of the authors', made up here from their names and shapes."""

import os
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file

from helpers.authors_form import mobilenetv2, released, resnet
from mlfm_zoo.cli import main
from mlfm_zoo.convert import convert_checkpoint, convert_state_dict, read_checkpoint

MOBILENETV2 = [
    (0.1, 'mlfm_mobilenetv2_010'), (0.35, 'mlfm_mobilenetv2_035'), (0.5, 'mlfm_mobilenetv2_050'),
    (0.75, 'mlfm_mobilenetv2_075'), (1.0, 'mlfm_mobilenetv2_100'), (0.25, 'mlfm_mobilenetv2_100'),
    (1.4, 'mlfm_mobilenetv2_100'),
]


@pytest.mark.parametrize('update', ['add', 'cat', None])
@pytest.mark.parametrize('width, architecture', MOBILENETV2)
def test_mobilenetv2(width, architecture, update, tmp_path):
    weights = mobilenetv2(width, update, num_classes=37)
    torch.save(released(weights), tmp_path / 'checkpoint.pth.tar')
    conversion = convert_checkpoint(tmp_path / 'checkpoint.pth.tar', tmp_path / 'converted')
    assert conversion.architecture == architecture
    expected = dict(num_classes=37) | (dict(memory_update=update) if update else dict(memory=False))
    if width not in (0.1, 0.35, 0.5, 0.75, 1.0):
        expected['channel_multiplier'] = width
    assert conversion.model_args == expected

    model = timm.create_model(f'local-dir:{tmp_path}/converted', pretrained=True)
    assert torch.equal(model.conv_stem.weight, weights['featuresconv.0.weight' if update else 'features.0.0.weight'])
    assert torch.equal(model.blocks[3][2].conv_dw.weight,
                       weights['features3.2.conv.3.weight' if update else 'features.9.conv.3.weight'])
    assert torch.equal(model.bn2.running_var, weights['conv.1.running_var'])
    if update:
        assert torch.equal(model.memory.blocks[4].supplement_gate.conv.bias, weights['wavelet_4.convsupplement.bias'])
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / 'converted').iterdir()} == {0o644}
    assert sorted(p.name for p in tmp_path.iterdir()) == ['checkpoint.pth.tar', 'converted']
    assert sorted(p.name for p in (tmp_path / 'converted').iterdir()) == ['config.json', 'model.safetensors']


@pytest.mark.parametrize('memory', [True, False])
@pytest.mark.parametrize('layers, architecture', [
    ((1, 1, 1, 1), 'mlfm_resnet10'), ((2, 2, 2, 2), 'mlfm_resnet18'), ((3, 4, 6, 3), 'mlfm_resnet34')])
def test_resnet(layers, architecture, memory, tmp_path):
    weights = resnet(layers, memory)
    torch.save({'model': weights, 'global_step': 5}, tmp_path / 'checkpoint.pth')
    conversion = convert_checkpoint(tmp_path / 'checkpoint.pth', tmp_path / 'converted')
    assert conversion.architecture == architecture
    model = timm.create_model(f'local-dir:{tmp_path}/converted', pretrained=True)
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


def test_state_dict_alone_and_safetensors(tmp_path):
    weights = mobilenetv2(0.1)
    torch.save(weights, tmp_path / 'plain.pth')
    torch.save(weights, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / 'plain.safetensors')
    for name in ('plain.pth', 'legacy.pth', 'plain.safetensors'):
        assert convert_state_dict(read_checkpoint(tmp_path / name)).architecture == 'mlfm_mobilenetv2_010'


def fails(capsys, *args):
    """Message of a conversion that must fail: one line, and no output left behind."""
    assert main(['convert', *map(str, args)]) == 1
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1, message
    return message


def fails_on(weights, capsys, tmp_path):
    torch.save(weights, tmp_path / 'checkpoint.pth')
    message = fails(capsys, tmp_path / 'checkpoint.pth', '--output', tmp_path / 'converted')
    assert not (tmp_path / 'converted').exists()
    return message


def test_missing_checkpoint(tmp_path, capsys):
    assert 'no checkpoint at' in fails(capsys, tmp_path / 'none.pth', '--output', tmp_path / 'converted')


@pytest.mark.parametrize('size', [0, 10, 5000, 400_000])
def test_truncated_checkpoint(size, tmp_path, capsys):
    torch.save(mobilenetv2(0.1), tmp_path / 'whole.pth')
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:size])
    message = fails(capsys, tmp_path / 'half.pth', '--output', tmp_path / 'converted')
    assert 'damaged or no PyTorch checkpoint' in message


def test_files_of_other_kinds(tmp_path, capsys):
    (tmp_path / 'text.pth').write_text('hello')
    with zipfile.ZipFile(tmp_path / 'archive.pth', 'w') as archive:
        archive.writestr('readme', 'hello')
    (tmp_path / 'text.safetensors').write_text('hello')
    for name in ('text.pth', 'archive.pth', 'text.safetensors'):
        assert 'damaged or no PyTorch checkpoint' in fails(capsys, tmp_path / name, '--output', tmp_path / 'converted')
    torch.save([1, 2], tmp_path / 'list.pth')
    assert 'holds no state dict' in fails(capsys, tmp_path / 'list.pth', '--output', tmp_path / 'converted')


class Payload:
    def __reduce__(self):
        return os.mkdir, ('executed',)


def test_pickles_run_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': mobilenetv2(0.1), 'extra': Payload()}, 'checkpoint.pth')
    assert 'could run code' in fails(capsys, 'checkpoint.pth', '--output', 'converted')
    assert not (tmp_path / 'executed').exists()


def test_foreign_network(tmp_path, capsys):
    message = fails_on(timm.create_model('resnet18').state_dict(), capsys, tmp_path)
    assert 'conv1.weight' in message and 'was not recognised' in message


def test_unknown_parameter(tmp_path, capsys):
    message = fails_on(mobilenetv2(0.1) | {'attention.weight': torch.zeros(3)}, capsys, tmp_path)
    assert 'attention.weight was not recognised' in message
    message = fails_on(resnet((1, 1, 1, 1)) | {'wavelet_5.bnx.weight': torch.zeros(3)}, capsys, tmp_path)
    assert 'wavelet_5.bnx.weight was not recognised' in message


def test_unknown_width(tmp_path, capsys):
    weights = mobilenetv2(0.5)
    weights['featuresconv.0.weight'] = torch.zeros(13, 3, 3, 3)
    assert 'width was not recognised' in fails_on(weights, capsys, tmp_path)


def test_unknown_resnets(tmp_path, capsys):
    assert '(2, 2, 1, 2) basic blocks' in fails_on(resnet((2, 2, 1, 2)), capsys, tmp_path)
    bottleneck = resnet((3, 4, 6, 3), memory=False) | {'stage1.block1.conv3.weight': torch.zeros(64, 16, 1, 1)}
    assert 'bottleneck blocks' in fails_on(bottleneck, capsys, tmp_path)


def test_missing_and_misshapen_parameters(tmp_path, capsys):
    for lost in ('wavelet_2.bnx.weight', 'classifier.weight', 'wavelet_conv.convinput.weight'):
        weights = mobilenetv2(0.1)
        del weights[lost]
        assert 'missing' in (message := fails_on(weights, capsys, tmp_path)) or 'lacks' in message
    weights = mobilenetv2(0.1) | {'wavelet_3.bnx.weight': torch.zeros(5)}
    assert 'memory.blocks.3.output_gate.weight is (5,), not (8,)' in fails_on(weights, capsys, tmp_path)


@pytest.mark.parametrize('name, tensor, message', [
    ('featuresconv.0.weight', torch.tensor(1.), 'too few dimensions'),
    ('wavelet_1.convinput.weight', torch.ones(3), 'too few dimensions'),
    ('conv.0.weight', torch.zeros(4, 4).to_sparse(), 'expected dense numbers'),
    ('conv.0.weight', torch.zeros(4, 4, dtype=torch.int64), 'expected dense numbers'),
    ('conv.0.weight', torch.full((4, 4), torch.nan), 'not finite'),
])
def test_odd_tensors(name, tensor, message, tmp_path, capsys):
    assert message in fails_on(mobilenetv2(0.1) | {name: tensor}, capsys, tmp_path)


def test_output_that_is_there_is_kept(tmp_path, capsys):
    torch.save(mobilenetv2(0.1), tmp_path / 'checkpoint.pth')
    (tmp_path / 'converted').mkdir()
    (tmp_path / 'converted' / 'mine').write_text('kept')
    assert 'already' in fails(capsys, tmp_path / 'checkpoint.pth', '--output', tmp_path / 'converted')
    assert (tmp_path / 'converted' / 'mine').read_text() == 'kept'


def test_output_may_be_an_empty_folder(tmp_path, monkeypatch):
    torch.save(mobilenetv2(0.1), tmp_path / 'checkpoint.pth')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'link').symlink_to('target')
    (tmp_path / 'target').mkdir()
    monkeypatch.chdir(tmp_path / 'empty')
    for output in ('.', '../link'):
        assert main(['convert', '../checkpoint.pth', '--output', output]) == 0
    for folder in ('empty', 'target'):
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == ['config.json', 'model.safetensors']
    assert sorted(p.name for p in tmp_path.iterdir()) == ['checkpoint.pth', 'empty', 'link', 'target']


def test_command_says_what_it_found(tmp_path, capsys):
    torch.save(mobilenetv2(0.35, 'add'), tmp_path / 'checkpoint.pth')
    assert main(['convert', str(tmp_path / 'checkpoint.pth'), '--output', str(tmp_path / 'converted')]) == 0
    assert "mlfm_mobilenetv2_035 (num_classes=100, memory_update='add')" in capsys.readouterr().out
