"""Every command with names that are unknown and paths that are missing, empty, of the wrong kind or not writable."""

import json

import pytest

from digits import write_digits
from helpers.authors_form import mobilenetv2, released
from helpers.networks import WEIGHTS
from mlfm_zoo.data import imagenet100


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


# %s is the folder of `paths`
WRONG = [
    'list mlfm_nothing --json', 'info resnet50', 'info mlfm_resnet18.nothing', 'verify mlfm_resnet18.nothing',
    'download mlfm_resnet18.nothing', 'card mlfm_resnet50.in100', 'recipe test_mlfm_resnet',
    'collect %s/text.txt', 'collect %s/digits', 'convert %s/nothing --output %s/out',
    'convert %s/empty --output %s/out', 'convert %s/empty.file --output %s/out', 'convert %s/text.txt --output %s/out',
    'convert %s/authors.pth --output %s/digits', 'convert %s/authors.pth --output %s/text.txt/out/below',
    'evaluate nothing %s/digits/val', 'evaluate mlfm_resnet50 %s/digits/val',
    'evaluate local-dir:%s/nothing %s/digits/val', 'evaluate local-dir:%s/empty %s/digits/val',
    'evaluate local-dir:%s/text.txt %s/digits/val', 'evaluate test_mlfm_resnet %s/empty',
    'evaluate test_mlfm_resnet %s/text.txt', 'evaluate test_mlfm_resnet %s/digits',
    'evaluate test_mlfm_resnet %s/digits/val --imagenet100', 'evaluate test_mlfm_resnet %s/digits/val --device cuda:99',
    'publish --all %s/nothing --tag x --namespace org', 'publish --namespace org mlfm_nothing.x',
    *(f'publish test_mlfm_resnet.x --namespace org --origin x --weights {arguments}' for arguments in (
        '%s/empty', '%s/text.txt', '%s/truncated.safetensors', f'{WEIGHTS} --data %s/empty',
        f'{WEIGHTS} --manifest %s/empty', f'{WEIGHTS} --manifest %s/text.txt')),
]


@pytest.mark.parametrize('command', WRONG)
def test_one_sentence_and_exit_code_1(command, paths, fail):
    before = sorted(paths.rglob('*'))
    fail(*command.replace('%s', str(paths)).split())
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


def test_verify_says_what_it_found(tmp_path, run):
    nothing = run('verify', 'mlfm_resnet18.a1_in1k', '--cache-dir', tmp_path)
    assert 'None of these weights is in the cache' in nothing
    found = run('verify', 'test_mlfm_resnet.digits', '--cache-dir', tmp_path)
    assert found.endswith('1 good, 0 bad, 0 without a known SHA-256\n')


def test_nothing_to_load_is_no_error(run):
    assert json.loads(run('list', 'mlfm_resnet10', '--pretrained', '--json')) == []
    assert 'can be loaded today' in run('list', 'mlfm_resnet10', '--pretrained')
