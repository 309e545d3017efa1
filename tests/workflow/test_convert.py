"""From a released file to a folder that timm loads, through the command line."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch

from helpers.authors_form import mobilenetv2, released
from mlfm_zoo.workflow.convert import convert_checkpoint

WRITTEN = ['config.json', 'model.safetensors']


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('update', ['cat', None])
def test_folder(update, tmp_path):
    weights = mobilenetv2(0.1, update, num_classes=37)
    torch.save(released(weights), tmp_path / 'checkpoint.pth.tar')
    conversion = convert_checkpoint(tmp_path / 'checkpoint.pth.tar', tmp_path / 'converted')
    model = timm.create_model(f'local-dir:{tmp_path}/converted', pretrained=True)
    assert all(torch.equal(v, conversion.state_dict[k]) for k, v in model.state_dict().items())
    assert hasattr(model, 'memory') == (update is not None) and model.num_classes == 37
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / 'converted').iterdir()} == {0o644}
    assert names(tmp_path) == ['checkpoint.pth.tar', 'converted'] and names(tmp_path / 'converted') == WRITTEN


@pytest.mark.parametrize('update, lost, added, said', [
    ('cat', 'wavelet_2.bnx.weight', {}, 'the file lacks memory.blocks.2.output_gate.weight; get the file again'),
    (None, 'conv.1.bias', {}, 'the file lacks bn2.bias; get the file again'),
    ('cat', None, {'wavelet_3.bnx.weight': torch.zeros(5)},
     'memory.blocks.3.output_gate.weight of shape (5,) where the model has (8,)'),
])
def test_weights_that_do_not_fit(update, lost, added, said, tmp_path, fail):
    weights = mobilenetv2(0.1, update) | added
    weights.pop(lost, None)
    torch.save(weights, tmp_path / 'checkpoint.pth')
    assert said in fail('convert', tmp_path / 'checkpoint.pth', '--output', tmp_path / 'converted')
    assert not (tmp_path / 'converted').exists()


def test_output_that_is_there_is_kept(tmp_path, fail):
    torch.save(mobilenetv2(0.1), tmp_path / 'checkpoint.pth')
    file = tmp_path / 'converted' / 'model.safetensors'
    file.parent.mkdir()
    file.write_text('kept')
    assert 'exists and is not empty' in fail('convert', tmp_path / 'checkpoint.pth', '--output', file.parent)
    assert file.read_text() == 'kept'


def test_two_runs_into_one_folder(tmp_path):
    """One of them makes the folder, from its own file alone, and the other fails."""
    for width in (0.1, 0.35):
        torch.save(mobilenetv2(width), tmp_path / f'{width}.pth')

    def convert(width):
        try:
            return convert_checkpoint(tmp_path / f'{width}.pth', tmp_path / 'converted')
        except FileExistsError:
            return None

    with ThreadPoolExecutor(2) as pool:
        [conversion] = filter(None, pool.map(convert, (0.1, 0.35)))
    model = timm.create_model(f'local-dir:{tmp_path}/converted', pretrained=True)
    assert model.pretrained_cfg['architecture'] == conversion.architecture
    assert torch.equal(model.conv_stem.weight, conversion.state_dict['conv_stem.weight'])


def test_killed_between_its_two_files(tmp_path):
    """The same command makes the folder, from the new file alone."""
    for width in (0.1, 0.35):
        torch.save(mobilenetv2(width), tmp_path / f'{width}.pth')
    output = tmp_path / 'converted'
    code = '''
import os, sys
from mlfm_zoo.workflow.convert import convert_checkpoint
moved = os.replace
os.replace = lambda *paths: (moved(*paths), os._exit(9))
convert_checkpoint(*sys.argv[1:])'''
    for width in (0.1, 0.35):  # the second one too
        done = subprocess.run([sys.executable, '-c', code, tmp_path / f'{width}.pth', output])
        assert done.returncode == 9 and 'model.safetensors' in names(output) and 'config.json' not in names(output)
    conversion = convert_checkpoint(tmp_path / '0.1.pth', output)
    model = timm.create_model(f'local-dir:{output}', pretrained=True)
    assert torch.equal(model.conv_stem.weight, conversion.state_dict['conv_stem.weight']) and names(output) == WRITTEN


def test_output_may_be_an_empty_folder(tmp_path, monkeypatch, run):
    torch.save(mobilenetv2(0.35, 'add'), tmp_path / 'checkpoint.pth')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / '.unfinished-1').write_bytes(b'of a killed run')
    (tmp_path / 'link').symlink_to('target')
    (tmp_path / 'target').mkdir()
    monkeypatch.chdir(tmp_path / 'empty')
    for output in ('.', '../link'):
        said = run('convert', '../checkpoint.pth', '--output', output)
        assert "mlfm_mobilenetv2_035 (num_classes=100, memory_update='add')" in said
    assert names(tmp_path / 'empty') == names(tmp_path / 'target') == WRITTEN
    assert names(tmp_path) == ['checkpoint.pth', 'empty', 'link', 'target']
