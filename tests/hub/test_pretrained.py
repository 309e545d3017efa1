"""Pretrained weights through timm: the embedded model, and files that are not what they should be."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import mlfm_zoo
from digits import load_split, to_batch
from mlfm_zoo.models._network import image_convs

WEIGHTS = Path(mlfm_zoo.__file__).parent / 'weights' / 'test_mlfm_resnet.digits.safetensors'


def held_out_accuracy(model):
    _, test = load_split()
    with torch.inference_mode():
        return (model.eval()(to_batch(test.images, model)).argmax(1) == test.labels).float().mean().item()


def test_embedded_weights_are_small():
    assert WEIGHTS.stat().st_size <= 400_000


def test_embedded_model_classifies_held_out_digits():
    assert held_out_accuracy(timm.create_model('test_mlfm_resnet', pretrained=True)) >= 0.97


def test_split_is_fixed():
    train, test = load_split()
    assert (len(train.images), len(test.images)) == (1437, 360)
    assert test.labels[:8].tolist() == load_split()[1].labels[:8].tolist()
    held_out = {image.tobytes() for image in test.images}
    assert not any(image.tobytes() in held_out for image in train.images)


def test_embedded_model_needs_no_network():
    code = '''
import sys
used = {'socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto'}
sys.addaudithook(lambda event, args: sys.exit(f'{event} {args}') if event in used else None)
import timm, mlfm_zoo
timm.create_model('test_mlfm_resnet', pretrained=True)
'''
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('in_chans', [1, 4, 8])
def test_every_conv_that_sees_the_image_adapts(in_chans, caplog):
    weights = load_file(WEIGHTS)
    with caplog.at_level(logging.WARNING):
        model = timm.create_model('test_mlfm_resnet', pretrained=True, in_chans=in_chans)
    assert not caplog.records
    convs = image_convs(model)
    seen = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels == in_chans]
    assert set(convs) == {n for n in seen if weights[f'{n}.weight'].shape[1] == 3}
    assert len(convs) == 1 + 1 + sum('supplement_gate.conv' in n for n in seen)
    for name in convs:
        expected = timm.models.adapt_input_conv(in_chans, weights[f'{name}.weight'])
        torch.testing.assert_close(model.get_submodule(name).weight, expected)
    if in_chans == 1:  # a grey image is one whose three channels are equal
        three = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
        grey = torch.randn(4, 1, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(model.eval()(grey), three(grey.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-3)


def test_other_classes_keep_the_features():
    model = timm.create_model('test_mlfm_resnet', pretrained=True, num_classes=5)
    features = timm.create_model('test_mlfm_resnet', pretrained=True, num_classes=0).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert model.eval()(image).shape == (2, 5)
        assert torch.equal(model.forward_head(model.forward_features(image), pre_logits=True), features(image))


def test_features_only_with_pretrained_weights():
    model = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    features = timm.create_model('test_mlfm_resnet', pretrained=True, features_only=True).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(features(image)[-1], model.forward_features(image))


def test_hub_folder_round_trip(tmp_path):
    model = timm.create_model('test_mlfm_resnet', pretrained=True, memory_supplement='all').eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(image), model(image))


@pytest.mark.parametrize('name', ['mlfm_resnet50', 'mlfm_seresnet10', 'mlfm_convnext_tiny_k3'])
def test_no_weights_is_an_error(name):
    with pytest.raises(RuntimeError, match=f'ImageNet100 weights of {name} are not published: ') as error:
        timm.create_model(name, pretrained=True)
    assert '\n' not in str(error.value)


def create_from(file, name='test_mlfm_resnet', **kwargs):
    overlay = dict(file=str(file), num_classes=10)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def one_sentence(error):
    return '\n' not in str(error.value) and len(str(error.value)) < 400


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        create_from(tmp_path / 'none.safetensors')
    assert one_sentence(error)


def test_truncated_file(tmp_path):
    (tmp_path / 'half.safetensors').write_bytes(WEIGHTS.read_bytes()[:200_000])
    with pytest.raises(Exception, match='incomplete|not fully covered|deserializing') as error:
        create_from(tmp_path / 'half.safetensors')
    assert one_sentence(error)


def test_foreign_weights(tmp_path):
    save_file(timm.create_model('resnet18', num_classes=10).state_dict(), tmp_path / 'resnet18.safetensors')
    with pytest.raises(RuntimeError, match='do not fit test_mlfm_resnet: the file .* weights of this network') as error:
        create_from(tmp_path / 'resnet18.safetensors')
    assert one_sentence(error)


def test_weights_of_another_memory():
    with pytest.raises(RuntimeError, match='the file has memory.* of shape') as error:
        create_from(WEIGHTS, memory_update='cat')
    assert one_sentence(error)
    with pytest.raises(RuntimeError, match='has memory.*, which the model lacks') as error:
        create_from(WEIGHTS, memory_supplement='none')
    assert one_sentence(error)


def test_configs_without_a_classifier(tmp_path):
    """timm takes a config that says nothing but where the weights are."""
    for cfg in (dict(file=str(WEIGHTS), num_classes=10), dict(state_dict=load_file(WEIGHTS), num_classes=10)):
        timm.create_model('test_mlfm_resnet', pretrained=True, pretrained_cfg=cfg)
    (tmp_path / 'model.safetensors').write_bytes(WEIGHTS.read_bytes())
    (tmp_path / 'config.json').write_text('{"architecture": "test_mlfm_resnet", "num_classes": 10}')
    timm.create_model(f'local-dir:{tmp_path}', pretrained=True)


def test_checkpoint_path(tmp_path):
    """Weights that timm loads into the finished model: right ones, other ones, and the authors'."""
    timm.create_model('test_mlfm_resnet', checkpoint_path=str(WEIGHTS))
    with pytest.raises(RuntimeError, match='do not fit test_mlfm_resnet: the file has memory') as error:
        timm.create_model('test_mlfm_resnet', memory_update='cat', checkpoint_path=str(WEIGHTS))
    assert one_sentence(error)
    save_file({'wavelet_conv.convinput.weight': torch.zeros(4, 3, 1, 1)}, tmp_path / 'authors.safetensors')
    with pytest.raises(RuntimeError, match='mlfm-zoo convert') as error:
        timm.create_model('mlfm_mobilenetv2_010', checkpoint_path=str(tmp_path / 'authors.safetensors'))
    assert one_sentence(error)


def test_plain_trunk_of_a_folder_with_memory(tmp_path):
    model = timm.create_model('test_mlfm_resnet', memory_update='cat')
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(RuntimeError, match='has memory.*, which the model lacks') as error:
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, memory=False)
    assert one_sentence(error)


def test_trunk_takes_no_weights_that_were_trained_with_memory():
    with pytest.raises(RuntimeError, match='has memory.*, which the model lacks') as error:
        create_from(WEIGHTS, memory=False)
    assert one_sentence(error)
