"""build_network: no part of a network of a command is untrained, of this package's networks and of timm's."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mlfm_zoo._timm import save_model
from mlfm_zoo.workflow.build import build_network
from mlfm_zoo.workflow.predict import class_labels


@pytest.mark.parametrize('name, model_args', [
    ('test_resnet', {}), ('test_mlfm_resnet', {}), ('mlfm_filtered', dict(network='test_resnet', radius=8))])
def test_damaged_folders(name, model_args, tmp_path):
    """Half of the tensors, whatever config.json allows; a value that is not finite; a classifier of other classes."""
    saved = timm.create_model(name, num_classes=10, **model_args).eval()
    save_model(saved, tmp_path, model_args=model_args)
    file, config = tmp_path / 'model.safetensors', tmp_path / 'config.json'
    weights, written = load_file(file), json.loads(config.read_text())
    loaded = build_network(f'local-dir:{tmp_path}', pretrained=True).eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(image), saved(image))

    kernel = next(key for key, value in weights.items() if value.ndim == 4)
    not_finite = dict(weights, **{kernel: torch.full_like(weights[kernel], torch.inf)})
    half = dict(list(weights.items())[::2])
    for given, changed, fault in (
            (half, dict(pretrained_strict=False), 'pretrained_strict in the model_args|the file lacks|Missing key'),
            (not_finite, {}, f'values in {kernel} that are not finite'),
            (weights, dict(num_classes=7), 'num_classes is 7, for which its classifier is untrained|where the model')):
        save_file(given, file)
        config.write_text(json.dumps(dict(written, model_args=dict(written.get('model_args', {}), **changed))))
        with pytest.raises((RuntimeError, ValueError), match=fault):
            build_network(f'local-dir:{tmp_path}', pretrained=True)


@pytest.mark.parametrize('section, name, value', [
    *(('pretrained_cfg', 'input_size', size) for size in ('x', [3, 64], [3, 64.5, 64], [3, 'a', 64])),
    ('model_args', 'drop_rate', 'x'), ('model_args', 'drop_rate', [1])])
def test_values_of_other_types(section, name, value, tmp_path):
    save_model(timm.create_model('test_mlfm_resnet'), tmp_path, model_args={})
    config = json.loads((tmp_path / 'config.json').read_text())
    config[section][name] = value
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='could not be loaded .*: correct its arguments'):
        build_network(f'local-dir:{tmp_path}', pretrained=True)


def test_other_classes():
    with pytest.raises(ValueError, match='has weights for 10 classes, and num_classes is 3'):
        build_network('test_mlfm_resnet', dict(num_classes=3), pretrained=True)
    assert build_network('test_mlfm_resnet', dict(num_classes=0), pretrained=True).num_classes == 0


@pytest.mark.parametrize('name', ['test_mlfm_resnet', 'mlfm_mobilenetv2_010', 'mlfm_mobilenetv2_010.imagenette'])
def test_classes_of_a_checkpoint_of_ones_own(name, tmp_path):
    """They are numbers, not those of the weights that have the name."""
    model = timm.create_model(name)
    save_file(model.state_dict(), tmp_path / 'own.safetensors')
    loaded = build_network(name, dict(checkpoint_path=str(tmp_path / 'own.safetensors')))
    assert class_labels(loaded) == [f'class {i}' for i in range(model.num_classes)]
