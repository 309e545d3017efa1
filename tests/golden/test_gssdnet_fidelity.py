"""GSSDNet against the outputs of the authors' own, recorded in golden files, through the converter."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from helpers.reference import REFERENCE, load_fill, needs_reference
from mlfm_zoo_cli import main

pytestmark = needs_reference

# golden file, registered network, arguments that no checkpoint tells, input
RECORDED = [
    ('gssdnet_o2_100', 'gssdnet_o2_100', {}, (2, 3, 224, 224)),
    ('gssdnet_o1_050', 'gssdnet_o1_050', {}, (2, 3, 224, 224)),
    ('gssdnet_o2_075_thumbnail_32', 'gssdnet_o2_075', dict(thumbnail=True), (4, 3, 32, 32)),
]
STAGES = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')
recorded = pytest.mark.parametrize('name, architecture, model_args, shape', RECORDED)


def released(name):
    """A checkpoint in the form of the authors', with the weights that the golden file was made with."""
    fill = load_fill()
    names = json.loads((REFERENCE / 'golden' / f'{name}.names.json').read_text())
    golden = load_file(REFERENCE / 'golden' / f'{name}.safetensors')
    weights = {k: torch.from_numpy(fill.fill(k, tuple(shape), fill.GAINS['gssdnet'])) for k, shape in names['order']}
    return weights | {k: golden[f'fixed.{k}'] for k in names['fixed']}, golden


def error(actual, expected):
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_every_golden_file_is_compared():
    recorded = {path.stem for path in (REFERENCE / 'golden').glob('gssdnet*.safetensors')}
    assert {name for name, *_ in RECORDED} == recorded


@recorded
def test_outputs(name, architecture, model_args, shape, tmp_path):
    """Logits and stage means, as converted on the command line and loaded, and after fuse()."""
    weights, golden = released(name)
    save_file(weights, tmp_path / 'released.safetensors')
    options = [f'{k}={v}' for k, v in model_args.items()]
    command = ['convert', str(tmp_path / 'released.safetensors'), '--output', str(tmp_path / 'converted')]
    assert main([*command, '--model-kwargs', *options]) == 0
    model = timm.create_model(f'local-dir:{tmp_path / "converted"}', pretrained=True).eval()
    assert model.pretrained_cfg['architecture'] == architecture
    image = torch.from_numpy(load_fill().image('input', shape))
    for network in (model, timm.models.reparameterize_model(model)):
        with torch.no_grad():
            assert error(network(image), golden['logits']) < 1e-4
            features = network.forward_intermediates(image, intermediates_only=True)
        for stage, feature in zip(STAGES, features, strict=True):
            assert error(feature.mean((2, 3)), golden[f'mean.{stage}']) < 1e-4, stage


SAVE_KERNELS = """
import sys, timm, mlfm_zoo
from safetensors.torch import save_file
for name in sys.argv[2:]:
    convs = [m for n, m in timm.create_model(name).named_modules() if n.endswith('conv_dw')]
    save_file({f'{i:02}': conv.weight for i, conv in enumerate(convs)}, f'{sys.argv[1]}/{name}.safetensors')
"""


@pytest.fixture(scope='module')
def own_kernels(tmp_path_factory):
    """The kernels of our networks, by name, in the order of their layers."""
    folder = tmp_path_factory.mktemp('kernels')
    names = [architecture for _, architecture, *_ in RECORDED]
    # MKL rounds exp otherwise on every kind of processor, unless it is told to compute as all of them do
    subprocess.run([sys.executable, '-c', SAVE_KERNELS, str(folder), *names],
                   env=os.environ | {'MKL_CBWR': 'COMPATIBLE'}, check=True)
    return {n: [weight for _, weight in sorted(load_file(folder / f'{n}.safetensors').items())] for n in names}


@recorded
def test_fixed_kernels(name, architecture, model_args, shape, own_kernels):
    """Ours are the original's to the bit, and 1 in the middle for the channels that it lets pass."""
    weights, golden = released(name)
    kernels = {k.removeprefix('fixed.'): v for k, v in golden.items() if k.startswith('fixed.')}
    order = [k for k in weights if k.endswith('.2.0.weight') and k not in kernels]
    for key, kernel in zip(order, own_kernels[architecture], strict=True):
        recorded = kernels.pop(key.replace('.2.0.weight', '.0.weight'))
        assert torch.equal(kernel[:len(recorded)], recorded)
        assert len(kernel) == weights[key].shape[1]
        assert torch.equal(kernel[len(recorded):].flatten(1), torch.eye(9)[4].expand(len(kernel) - len(recorded), 9))
    assert not kernels


def test_fixed_values_of_the_original():
    """13,275, which counts those of the derivatives alone: the original keeps its Gaussians in another way."""
    _, golden = released('gssdnet_o2_100')
    derivatives = [v for k, v in golden.items() if k.startswith('fixed.') and len(v) % 5 == 0]
    assert sum(v.numel() for v in derivatives) == 13_275
    network = timm.create_model('gssdnet_o2_100')
    kinds = [m for m in network.modules() if getattr(m, 'kind', '') == 'order2']
    passing = torch.eye(9)[4]
    assert sum((m.weight.flatten(1) != passing).any(1).sum().item() * 9 for m in kinds) == 13_275
