"""Our networks against the outputs of the authors' own, recorded in golden files."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from helpers.reference import REFERENCE, load_fill, needs_reference
from mlfm_zoo import LowFrequencyMemoryUnit
from mlfm_zoo.convert import convert_state_dict, read_checkpoint
from mlfm_zoo.data.imagenet100 import SYNSETS
from mlfm_zoo.workflow.evaluate import evaluate

pytestmark = needs_reference

MOBILENETV2_SITES = ['wavelet_conv', 'wavelet_1', 'wavelet_2', 'wavelet_3', 'wavelet_4', 'wavelet_5']
RESNET_SITES = ['wavelet_block0', 'wavelet_blockpool', 'wavelet_block1', 'wavelet_block2', 'wavelet_block3',
                'wavelet_block4']

# golden file, image size, the authors' names of the sites in order
AUTHORS = [
    ('mobilenetv2_0.1_mlfm', 224, MOBILENETV2_SITES),
    ('mobilenetv2_0.1_mlfm', 256, MOBILENETV2_SITES),
    ('mobilenetv2_0.1_baseline', 224, []),
]
FILLED = [
    ('mobilenetv2_0.35_mlfm_add', 'mlfm_mobilenetv2_035', MOBILENETV2_SITES),
    ('resnet18_mlfm', 'mlfm_resnet18', RESNET_SITES),
]


def test_every_golden_file_is_compared():
    compared = {f'{name}_authors_{size}' for name, size, _ in AUTHORS} | {name for name, _, _ in FILLED}
    assert compared == {path.stem for path in (REFERENCE / 'golden').glob('*_mlfm*.safetensors')} | {
        'mobilenetv2_0.1_baseline_authors_224'}


def outputs(model, image):
    """Logits, and (x, memory) as each memory unit puts them out."""
    sites = []
    for module in model.modules():
        if isinstance(module, LowFrequencyMemoryUnit):
            module.register_forward_hook(lambda module, args, output: sites.append(output))
    with torch.no_grad():
        return model.eval()(image), sites


def summary(feature):
    top, left = [max(0, (side - 8) // 2) for side in feature.shape[-2:]]
    return {
        'mean': feature.mean(dim=(2, 3)),
        'std': feature.std(dim=(2, 3)),
        'crop': feature[:, :, top:top + 8, left:left + 8],
    }


def assert_matches(golden, logits, sites, names):
    assert len(sites) == len(names)
    ours = {'logits': logits}
    for name, (x, memory) in zip(names, sites):
        ours |= {f'{name}.x.{key}': value for key, value in summary(x).items()}
        ours |= {f'{name}.memory.{key}': value for key, value in summary(memory).items()}
    assert ours.keys() == golden.keys()
    for key, expected in golden.items():
        assert ours[key].shape == expected.shape, key
        error = (ours[key] - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f'{key} is off by {error:.1e} of the largest value'


@pytest.mark.parametrize('name, size, site_names', AUTHORS)
def test_authors_weights(name, size, site_names):
    conversion = convert_state_dict(read_checkpoint(REFERENCE / 'authors' / f'{name}.pth.tar'))
    model = timm.create_model(conversion.architecture, **conversion.model_args)
    model.load_state_dict(conversion.state_dict)
    image = torch.from_numpy(load_fill().image('input', (2, 3, size, size)))
    golden = load_file(REFERENCE / 'golden' / f'{name}_authors_{size}.safetensors')
    assert_matches(golden, *outputs(model, image), site_names)


@pytest.mark.parametrize('name, architecture, site_names', FILLED)
def test_filled_weights(name, architecture, site_names):
    fill = load_fill()
    shapes = json.loads((REFERENCE / 'golden' / f'{name}.names.json').read_text())
    weights = {key: torch.from_numpy(fill.fill(key, tuple(shape))) for key, shape in shapes.items()}
    conversion = convert_state_dict(weights)
    assert conversion.architecture == architecture
    model = timm.create_model(conversion.architecture, **conversion.model_args)
    model.load_state_dict(conversion.state_dict)
    golden = load_file(REFERENCE / 'golden' / f'{name}.safetensors')
    size = 224
    assert_matches(golden, *outputs(model, torch.from_numpy(fill.image('input', (2, 3, size, size)))), site_names)


def test_real_photos(tmp_path):
    """27 of 50 right at the first answer and 44 within five, as the authors' own network with these weights."""
    from mlfm_zoo.workflow.convert import convert_checkpoint
    convert_checkpoint(REFERENCE / 'authors' / 'mobilenetv2_0.1_mlfm.pth.tar', tmp_path / 'converted')
    model = timm.create_model(f'local-dir:{tmp_path}/converted', pretrained=True)
    photos = REFERENCE / 'imagenet100_samples' / 'val'
    result = evaluate(model, photos, class_names=SYNSETS, img_size=224)
    assert result.total == 50
    assert abs(result.top1 - 27) <= 1
    assert abs(result.top5 - 44) <= 1


def test_imagenet100_order():
    assert list(SYNSETS) == (REFERENCE / 'imagenet100_synsets.txt').read_text().split()
