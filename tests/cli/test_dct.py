"""The commands for networks on DCT coefficients."""

import json

import pytest
import timm
import torch
from PIL import Image

from helpers.smooth_pictures import write_smooth
from mlfm_zoo_cli.arguments import key_value


def test_statistics_of_a_folder(tmp_path, run, fail):
    """The command, and a network that takes what it wrote; timm's own transform gives the images to compare with."""
    data, file = write_smooth(tmp_path / 'data'), tmp_path / 'statistics.json'
    arguments = ['--img-size', '48', '--workers', '0', '--batch-size', '3']
    assert 'dct_statistics="$(cat' in run('dct-statistics', data, '--output', file, *arguments)
    assert len(file.read_text()) < 10_000
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
    write_smooth(bad)
    (bad / 'class0' / '0.png').write_bytes(b'no image')
    for command in (
            [tmp_path / 'empty'], [data, '--model', 'no_such'], [data, '--output', tmp_path / 'none' / 'a.json'],
            [data, '--output', tmp_path / 'a.txt'], [bad, '--workers', '1', '--img-size', '32']):
        fail('dct-statistics', '--output', tmp_path / 'no.json', *command)
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'statistics.json', 'empty', 'bad'}


def test_gate_command(tmp_path, run, fail):
    torch.manual_seed(0)
    model = timm.create_model('dct_mobilenetv2_100_192_gate', num_classes=2)
    model_args = dict(channel_multiplier=1.0)
    timm.models.save_for_hf(model, str(tmp_path / 'model'), model_args=model_args, safe_serialization=True)
    data, picture = write_smooth(tmp_path / 'data'), tmp_path / 'open.png'
    command = ['dct-gate', f'local-dir:{tmp_path / "model"}', data, '--img-size', '64', '--workers', '0', '--output']
    said = run(*command, picture)
    share = json.loads((tmp_path / 'open.json').read_text())
    assert len(share) == 192 and f'{sum(share):.1f} of 192 channels' in said
    with Image.open(picture) as image:
        assert min(image.size) > 200
    fail(*command, tmp_path / 'a.json')
    error = fail(*command, picture, '--model-kwargs', 'dct_input=coefficients')
    assert 'takes 192 channels, expected images' in error


@pytest.mark.parametrize('command', ['predict DATA --model NAME', 'evaluate NAME DATA'])
def test_an_initialisation_is_no_classifier(command, tmp_path, fail):
    words = dict(DATA=write_smooth(tmp_path), NAME='dct_resnet50_24s.init_a1_in1k')
    error = fail(*(words.get(word, word) for word in command.split()))
    assert 'is an initialisation, which has yet to be trained' in error
