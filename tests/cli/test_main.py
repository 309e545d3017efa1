"""The command line as a program: help, completion, exit codes, pipes and interruptions."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time

import pytest
import torch

import mlfm_zoo
from helpers.authors_form import mobilenetv2, released
from helpers.disks import full_disk
from mlfm_zoo_cli import main
from mlfm_zoo_cli.errors import sentence

COMMAND = [sys.executable, '-m', 'mlfm_zoo']


def said(*arguments, capsys):
    """What is printed by a call that ends with exit code 0."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_every_command_has_help(capsys):
    listed = said('--help', capsys=capsys)
    assert listed.startswith('usage: mlfm-zoo [-h]')
    lines = listed.split('COMMAND\n')[-1].split('\noptions')[0].splitlines()
    commands = [line.split()[0] for line in lines if line.startswith('    ') and line[:5].strip()]
    assert set(commands) == {
        'list', 'info', 'verify', 'download', 'card', 'publish', 'convert', 'evaluate', 'predict', 'app', 'export',
        'run', 'recipe', 'collect', 'imagenet100', 'frequency', 'dct-statistics', 'dct-gate', 'segment'}
    for name in commands:
        if name != 'imagenet100':  # it becomes another program
            assert said(name, '--help', capsys=capsys).startswith(f'usage: mlfm-zoo {name} ')
    assert said('--version', capsys=capsys) == f'mlfm-zoo {mlfm_zoo.__version__}\n'


def test_as_a_program():
    """One process of each kind: a command that becomes another program, and one whose reader stops reading."""
    help = subprocess.run([*COMMAND, 'imagenet100', '--help'], capture_output=True, text=True)
    assert help.returncode == 0 and help.stdout.startswith('usage: mlfm-zoo imagenet100 '), help.stderr
    program = subprocess.Popen([*COMMAND, 'list'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    assert program.wait(timeout=120) == 0
    assert program.stderr.read() == b''
    program.stderr.close()


def loads(code):
    """Modules that a program has loaded at its end."""
    code = f'import sys\nfrom mlfm_zoo_cli import main\n{code}\nprint(*sys.modules, file=sys.stderr)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_loads_no_network():
    """Nor does it load torch and timm; with `shtab`, the completion script does not either."""
    loaded = loads('''
from contextlib import suppress
from mlfm_zoo_cli.main import make_parser
commands = next(a.choices for a in make_parser()._actions if a.choices)
words = [[name] for name in commands if name != 'imagenet100'] + [['segment', 'train'], []]
for line in [[*w, '--help'] for w in words] + [['--version'], ['--print-completion', 'bash']]:
    with suppress(SystemExit):
        main(line)
''')
    assert {'shtab', 'mlfm_zoo_cli.segmentation'} <= loaded
    assert not {'mlfm_zoo', 'numpy', 'timm', 'torch'} & loaded


def test_a_command_loads_what_it_needs():
    """A list of weights needs neither training nor analysis."""
    loaded = loads("assert main(['list', '--pretrained']) == 0")
    assert not [n for n in loaded if n.startswith(tuple(
        f'mlfm_zoo.{folder}' for folder in ('detection', 'frequency', 'segmentation', 'workflow')))]


def test_list_fits_a_terminal(run):
    """80 columns; titles; networks that answer come before those that have yet to be trained."""
    lines = run('list').splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line.startswith('  ')]
    titles = [line for line in lines if line and not line.startswith(' ')]
    assert [title.split()[0] for title in titles] == ['Trained', 'Warm', 'Initializations,', 'Networks']
    order = [names.index(name) for name in (
        'test_mlfm_resnet.digits', 'mlfm_resnet18.a1_in1k', 'dct_resnet50_24s.init_a1_in1k', 'mlfm_resnet10')]
    assert order == sorted(order)
    assert '  mlfm_mobilenetv2_010.paper_in100 (memory=False)  AlphaWuSeu on GitHub' in lines


def test_completion(capsys):
    """Bash completes commands and options from the script that is printed."""
    script = said('--print-completion', 'bash', capsys=capsys)
    asked = f'''{script}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
_shtab_mlfm_zoo 2>/dev/null; printf '%s\\n' "${{COMPREPLY[@]}}"
'''
    for words, expected in (
        (['dct'], {'dct-statistics', 'dct-gate'}),
        (['evaluate', '--im'], {'--imagenet100', '--img-size'}),
        (['segment', 'train', '--grad'], {'--grad-checkpointing'}),
        (['predict', '--format', ''], {'text', 'json', 'csv'}),
    ):
        done = subprocess.run(['bash', '-c', asked, 'bash', 'mlfm-zoo', *words], capture_output=True, text=True)
        assert {word.strip() for word in done.stdout.split()} == expected, (words, done)
    with pytest.raises(SystemExit) as stop:
        main(['--print-completion', 'cmd'])
    assert stop.value.code == 2 and 'cmd' in capsys.readouterr().err


def test_what_cannot_be_printed(fail, monkeypatch):
    """Names that are no text, escape sequences, closed streams, and a full disk behind the output."""
    error = fail('list', os.fsdecode(b'no\xff\x1b[31m\nerror: forged'))
    assert error.startswith('error: no\\udcff\\x1b[31m error: forged')
    for stream in ('stdout', 'stderr'):
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, None)  # what Python has of a stream that the shell closed
            assert main(['list', 'mlfm_resnet10']) == 0
    with open('/dev/full', 'w') as full:
        done = subprocess.run([*COMMAND, 'list', 'mlfm_resnet10'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: ') and 'No space left on device' in done.stderr


def test_weights_on_a_full_disk(tmp_path, fail):
    """safetensors has an error of its own for it."""
    torch.save(released(mobilenetv2(0.1)), tmp_path / 'authors.pth')
    with full_disk(10000):
        assert 'File too large' in fail('convert', tmp_path / 'authors.pth', '--output', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_missing_image_in_a_worker(tmp_path):
    """torch puts the worker's whole traceback into the message."""
    class Missing(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, i):
            return open(tmp_path / 'missing.png')

    with pytest.raises(FileNotFoundError) as error:
        list(torch.utils.data.DataLoader(Missing(), num_workers=1))
    assert 'Traceback' in str(error.value)
    assert sentence(error.value) == f"No such file or directory: '{tmp_path}/missing.png'"


def test_interrupted():
    """Ctrl-C while a command waits for its reader: one line, and the shell's code for it."""
    program = subprocess.Popen([*COMMAND, 'list', '--json'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    fcntl.fcntl(program.stdout, fcntl.F_SETPIPE_SZ, 4096)  # less than it has to say
    select.select([program.stdout], [], [], 120)
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    _, error = program.communicate(timeout=120)
    assert (program.returncode, error) == (130, b'error: interrupted\n')
