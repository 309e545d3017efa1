"""Every command with names that are unknown and paths that are missing, empty, of the wrong kind or not writable."""

import json
import shutil

import pytest

from digits import write_digits
from helpers.authors_form import mobilenetv2, released
from helpers.networks import WEIGHTS
from mlfm_zoo.data import imagenet100
from mlfm_zoo_cli import main


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
    """Things that a command may be given by mistake."""
    import torch
    root = tmp_path_factory.mktemp('paths')
    (root / 'empty').mkdir()
    (root / 'empty.file').touch()
    (root / 'text.txt').write_text('nothing of interest')
    (root / 'truncated.safetensors').write_bytes(WEIGHTS.read_bytes()[:5000])
    torch.save(released(mobilenetv2(0.1)), root / 'authors.pth')
    write_digits(root / 'digits', 10, 10)
    return root


# %s is the folder of `paths`; what a writer is given as its output lies below a file, where nobody can write
WRONG = [
    'list mlfm_nothing --json', 'list resnet50', 'info resnet50', 'info mlfm_resnet18.nothing',
    'verify mlfm_nothing', 'verify mlfm_resnet18.nothing', 'download mlfm_resnet18.nothing', 'download resnet50',
    'card mlfm_nothing', 'card mlfm_resnet50.in100', 'recipe mlfm_nothing', 'recipe test_mlfm_resnet',
    'collect %s/nothing', 'collect %s/empty', 'collect %s/text.txt', 'collect %s/digits',
    'convert %s/nothing --output %s/out', 'convert %s/empty --output %s/out', 'convert %s/empty.file --output %s/out',
    'convert %s/text.txt --output %s/out', 'convert %s/authors.pth --output %s/digits',
    'convert %s/authors.pth --output %s/text.txt', 'convert %s/authors.pth --output %s/text.txt/out',
    'evaluate nothing %s/digits/val', 'evaluate mlfm_resnet50 %s/digits/val', 'evaluate %s/empty %s/digits',
    'evaluate local-dir:%s/nothing %s/digits/val', 'evaluate local-dir:%s/empty %s/digits/val',
    'evaluate local-dir:%s/text.txt %s/digits/val',
    'evaluate test_mlfm_resnet %s/nothing', 'evaluate test_mlfm_resnet %s/empty',
    'evaluate test_mlfm_resnet %s/text.txt', 'evaluate test_mlfm_resnet %s/digits',
    'evaluate test_mlfm_resnet %s/digits/val --imagenet100',
    'evaluate test_mlfm_resnet %s/digits/val --device nothing',
    'evaluate test_mlfm_resnet %s/digits/val --device cuda:99',
    'publish mlfm_nothing.x --weights %s/authors.pth --namespace org --origin x',
    'publish test_mlfm_resnet.x --weights %s/empty --namespace org --origin x',
    'publish --all %s/nothing --tag x --namespace org', 'predict %s/digits --model nothing',
    'publish test_mlfm_resnet.x --weights %s/text.txt --namespace org --origin x',
    'publish test_mlfm_resnet.x --weights %s/truncated.safetensors --namespace org --origin x',
    'publish test_mlfm_resnet.x --weights {weights} --namespace org --origin x --data %s/nothing',
    'publish test_mlfm_resnet.x --weights {weights} --namespace org --origin x --data %s/empty',
    'publish test_mlfm_resnet.x --weights {weights} --namespace org --origin x --manifest %s/empty',
    'publish test_mlfm_resnet.x --weights {weights} --namespace org --origin x --manifest %s/text.txt',
]


@pytest.mark.parametrize('command', WRONG)
def test_one_sentence_and_exit_code_1(command, paths, capsys):
    arguments = command.replace('%s', str(paths)).replace('{weights}', str(WEIGHTS)).split()
    before = sorted(paths.rglob('*'))
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.err.startswith('error: ') and said.err.count('\n') == 1 and said.err.endswith('.\n'), said.err
    assert 'Errno' not in said.err and len(said.err) < 600 and not said.out, said
    assert sorted(paths.rglob('*')) == before


@pytest.mark.parametrize('arguments', [
    'prepare %s/nothing %s/out', 'prepare %s/empty %s/out', 'prepare %s/text.txt %s/out', 'prepare %s/digits %s/out',
    'verify %s/nothing', 'verify %s/empty', 'verify %s/text.txt', 'verify %s/digits',
])
def test_imagenet100(arguments, paths, capsys):
    """Called here as a function: the command becomes a process of this program."""
    assert imagenet100.main(arguments.replace('%s', str(paths)).split()) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and 'Errno' not in error, error
    assert not (paths / 'out').exists()


def test_verify_says_what_it_found(tmp_path, capsys):
    assert main(['verify', 'mlfm_resnet18.a1_in1k', '--cache-dir', str(tmp_path / 'nothing')]) == 0
    assert 'None of these weights is in the cache' in capsys.readouterr().out
    assert main(['verify', 'test_mlfm_resnet.digits', '--cache-dir', str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith('1 good, 0 bad, 0 without a known SHA-256\n')


def test_nothing_to_load_is_no_error(capsys):
    assert main(['list', 'mlfm_resnet10', '--pretrained', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(['list', 'mlfm_resnet10', '--pretrained']) == 0
    assert 'can be loaded today' in capsys.readouterr().out


def test_output_that_cannot_be_written(paths, tmp_path, capsys):
    """A full stop before anything is made, also of the folders on the way there."""
    shutil.copy(paths / 'authors.pth', tmp_path)
    (tmp_path / 'file').touch()
    assert main(['convert', str(tmp_path / 'authors.pth'), '--output', str(tmp_path / 'file' / 'a' / 'b')]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['authors.pth', 'file']
    assert str(tmp_path / 'file') in capsys.readouterr().err
