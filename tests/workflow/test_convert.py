"""From a released file to a folder that timm loads, through the command line."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch

from helpers.authors_form import mobilenetv2, released
from mlfm_zoo.workflow.convert import convert_checkpoint
from mlfm_zoo_cli import main


def fails_on(weights, capsys, tmp_path):
    """Message of a conversion that must fail: one line, and no output left behind."""
    torch.save(weights, tmp_path / 'checkpoint.pth')
    assert main(['convert', str(tmp_path / 'checkpoint.pth'), '--output', str(tmp_path / 'converted')]) == 1
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1, message
    assert not (tmp_path / 'converted').exists()
    return message


@pytest.mark.parametrize('update', ['cat', None])
def test_folder(update, tmp_path):
    weights = mobilenetv2(0.1, update, num_classes=37)
    torch.save(released(weights), tmp_path / 'checkpoint.pth.tar')
    conversion = convert_checkpoint(tmp_path / 'checkpoint.pth.tar', tmp_path / 'converted')
    model = timm.create_model(f'local-dir:{tmp_path}/converted', pretrained=True)
    assert all(torch.equal(v, conversion.state_dict[k]) for k, v in model.state_dict().items())
    assert hasattr(model, 'memory') == (update is not None) and model.num_classes == 37
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / 'converted').iterdir()} == {0o644}
    assert sorted(p.name for p in tmp_path.iterdir()) == ['checkpoint.pth.tar', 'converted']
    assert sorted(p.name for p in (tmp_path / 'converted').iterdir()) == ['config.json', 'model.safetensors']


def test_weights_that_do_not_fit(tmp_path, capsys):
    for update, lost, named in (
        ('cat', 'wavelet_2.bnx.weight', 'memory.blocks.2.output_gate.weight'), (None, 'conv.1.bias', 'bn2.bias'),
    ):
        weights = mobilenetv2(0.1, update)
        del weights[lost]
        message = fails_on(weights, capsys, tmp_path)
        assert f'do not fit mlfm_mobilenetv2_010: the file lacks {named}; get the file again' in message or (
            update is None and f'the file lacks {named}; get the file again' in message), message
    weights = mobilenetv2(0.1) | {'wavelet_3.bnx.weight': torch.zeros(5)}
    message = fails_on(weights, capsys, tmp_path)
    assert 'memory.blocks.3.output_gate.weight of shape (5,) where the model has (8,)' in message


def test_output_that_is_there_is_kept(tmp_path, capsys):
    torch.save(mobilenetv2(0.1), tmp_path / 'checkpoint.pth')
    (tmp_path / 'converted').mkdir()
    for name in ('mine', 'model.safetensors'):
        file = tmp_path / 'converted' / name
        file.write_text('kept')
        assert main(['convert', str(tmp_path / 'checkpoint.pth'), '--output', str(file.parent)]) == 1
        assert 'exists and is not empty' in capsys.readouterr().err
        assert file.read_text() == 'kept'
        file.unlink()


def test_a_killed_run_is_finished(tmp_path):
    """One that was killed after it moved the weights to their place, and before config.json followed."""
    torch.save(mobilenetv2(0.1), tmp_path / 'checkpoint.pth')
    command = ['convert', str(tmp_path / 'checkpoint.pth'), '--output', str(tmp_path / 'converted')]
    assert main(command) == 0
    config = tmp_path / 'converted' / 'config.json'
    written = config.read_bytes()
    config.unlink()
    assert main(command) == 0 and config.read_bytes() == written


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


def test_output_may_be_an_empty_folder(tmp_path, monkeypatch):
    torch.save(mobilenetv2(0.1), tmp_path / 'checkpoint.pth')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / '.unfinished-1').write_bytes(b'of a killed run')
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
