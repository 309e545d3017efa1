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
from mlfm_zoo_cli.main import make_parser

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
        'list', 'info', 'verify', 'download', 'card', 'publish', 'convert', 'evaluate', 'predict', 'export', 'run',
        'recipe', 'collect', 'imagenet100', 'frequency', 'dct-statistics', 'dct-gate', 'segment'}
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


def test_a_command_loads_what_it_needs():
    """A list of weights needs neither training nor analysis, and the options of `segment` are loaded for it alone."""
    code = '''
import sys
import mlfm_zoo
from mlfm_zoo_cli import main
assert main(['list', '--pretrained']) == 0
print(*(name for name in sys.modules if name.startswith('mlfm_zoo.')))
'''
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert 'mlfm_zoo_cli.segmentation' in loaded and {n for n in loaded if n.startswith('mlfm_zoo.workflow')} == {
        'mlfm_zoo.workflow', 'mlfm_zoo_cli.launch'}
    assert not [n for n in loaded if n.startswith(('mlfm_zoo.segment', 'mlfm_zoo.detect', 'mlfm_zoo.frequency'))]


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


def test_unknown_command_and_network(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['nonsense'])
    assert stop.value.code == 2
    assert main(['info', 'resnet18']) == 1
    assert 'no network of this package' in capsys.readouterr().err


def test_options_of_segment_are_there_when_they_are_needed():
    assert make_parser('segment').parse_args(['segment', 'train', 'DATA', '--output', 'RUN', '--lr', '1']).lr == 1
    with pytest.raises(SystemExit):
        make_parser('list').parse_args(['segment', 'train', 'DATA', '--output', 'RUN'])


def test_what_cannot_be_printed(capsys, monkeypatch):
    """Names that are no text, escape sequences, closed streams, and a full disk behind the output."""
    assert main(['list', os.fsdecode(b'no\xff\x1b[31m\nerror: forged')]) == 1
    said = capsys.readouterr().err
    assert said.startswith('error: no\\udcff\\x1b[31m error: forged') and said.count('\n') == 1
    for stream in ('stdout', 'stderr'):
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, None)  # what Python has of a stream that the shell closed
            assert main(['list', 'mlfm_resnet10']) == 0
    with open('/dev/full', 'w') as full:
        done = subprocess.run([*COMMAND, 'list', 'mlfm_resnet10'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: ') and 'No space left on device' in done.stderr


def test_weights_on_a_full_disk(tmp_path, capsys):
    """safetensors has an error of its own for it."""
    torch.save(released(mobilenetv2(0.1)), tmp_path / 'authors.pth')
    with full_disk(10000):
        assert main(['convert', str(tmp_path / 'authors.pth'), '--output', str(tmp_path / 'out')]) == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ') and said.count('\n') == 1 and not (tmp_path / 'out').exists(), said


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
