"""Networks on DCT coefficients against recorded outputs of the released ones, through the converter."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from helpers.reference import REFERENCE, load_fill, needs_reference
from mlfm_zoo_cli import main

pytestmark = needs_reference

# golden file, registered network, coefficients, our stage of each recorded mean
RECORDED = [
    ('dct_resnet50_24', 'dct_resnet50_24s', (2, 24, 56, 56), {str(i): f'layer{i + 1}' for i in range(4)}),
    ('dct_mobilenetv2_24', 'dct_mobilenetv2_100_24s', (2, 24, 112, 112), {
        '0': 'blocks.0', '2': 'blocks.1', '5': 'blocks.2', '12': 'blocks.4', '15': 'blocks.5', '16': 'blocks.6'}),
]


def test_every_golden_file_is_compared():
    assert {name for name, *_ in RECORDED} == {path.stem for path in (REFERENCE / 'golden').glob('dct*.safetensors')}


@pytest.mark.parametrize('name, architecture, shape, stages', RECORDED)
def test_outputs(name, architecture, shape, stages, tmp_path):
    fill, golden = load_fill(), load_file(REFERENCE / 'golden' / f'{name}.safetensors')
    order = json.loads((REFERENCE / 'golden' / f'{name}.names.json').read_text())['order']
    gain = next((g for start, g in fill.GAINS.items() if name.startswith(start)), 0.6)
    weights = {k: torch.from_numpy(fill.fill(k, tuple(s), gain)) for k, s in order}
    save_file(weights, tmp_path / 'released.safetensors')
    command = ['convert', str(tmp_path / 'released.safetensors'), '--output', str(tmp_path / 'converted')]
    assert main([*command, '--model-kwargs', 'dct_input=coefficients']) == 0
    model = timm.create_model(f'local-dir:{tmp_path / "converted"}', pretrained=True).eval()
    assert model.pretrained_cfg['architecture'] == architecture
    assert tuple(model.pretrained_cfg['input_size']) == shape[1:]
    means = {}
    for recorded, ours in stages.items():
        model.get_submodule(ours).register_forward_hook(
            lambda m, a, out, recorded=recorded: means.__setitem__(recorded, out.mean((2, 3))))
    with torch.inference_mode():
        logits = model(torch.from_numpy(fill.image('dct', shape)))
    assert (logits - golden['logits']).abs().max() <= 1e-4 * golden['logits'].abs().max()
    assert {f'mean.{k}' for k in means} == {k for k in golden if k.startswith('mean.')}
    for recorded, mean in means.items():
        expected = golden[f'mean.{recorded}']
        assert (mean - expected).abs().max() <= 1e-4 * expected.abs().max(), recorded
