"""The command line as a program: exit codes, pipes and interruptions."""

import csv
import fcntl
import select
import signal
import subprocess
import sys
import time

import pytest

from mlfm_zoo.cli import main
from mlfm_zoo.hub.manifest import paper_accuracies
from helpers.networks import ALL
from helpers.reference import REFERENCE, needs_reference

COMMAND = [sys.executable, '-m', 'mlfm_zoo']


def test_every_command_has_help():
    listed = subprocess.run([*COMMAND, '--help'], capture_output=True, text=True)
    assert listed.returncode == 0
    lines = listed.stdout.split('COMMAND\n')[-1].splitlines()
    commands = [line.split()[0] for line in lines if line.startswith('    ') and line[:5].strip()]
    assert {'list', 'info', 'verify', 'download', 'card', 'publish', 'convert', 'evaluate', 'run', 'recipe', 'collect',
            'imagenet100'} <= set(commands)
    for name in commands:
        if name == 'imagenet100':  # it becomes another program
            assert subprocess.run([*COMMAND, name, '--help'], capture_output=True).returncode == 0
            continue
        with pytest.raises(SystemExit) as stop:
            main([name, '--help'])
        assert stop.value.code == 0


def test_unknown_command_and_network(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['nonsense'])
    assert stop.value.code == 2
    assert main(['info', 'resnet18']) == 1
    assert 'no network of this package' in capsys.readouterr().err


def test_reader_that_stops_reading():
    program = subprocess.Popen([*COMMAND, 'list'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    assert program.wait(timeout=120) == 0
    assert program.stderr.read() == b''
    program.stderr.close()


def test_interrupted():
    """Ctrl-C while a command waits for its reader: one line, and the shell's code for it."""
    program = subprocess.Popen([*COMMAND, 'list', '--json'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    fcntl.fcntl(program.stdout, fcntl.F_SETPIPE_SZ, 4096)  # less than it has to say
    select.select([program.stdout], [], [], 120)
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    _, error = program.communicate(timeout=120)
    assert (program.returncode, error) == (130, b'error: interrupted\n')


@needs_reference
def test_paper_figures():
    with open(REFERENCE / 'paper_table.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert {name: tuple(value) for name, value in paper_accuracies().items()} == {
        row['model']: (float(row['baseline_top1']), float(row['mlfm_top1'])) for row in rows}
    assert set(paper_accuracies()) == set(ALL)
