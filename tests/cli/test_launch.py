"""`mlfm-zoo run` against Python itself: the same script, started both ways, says the same of itself."""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import helpers.launcher
from mlfm_zoo_cli import main

ROOT = Path(__file__).parents[2]
PACKAGE_AT = dict(os.environ, PYTHONPATH=str(ROOT))
LAUNCHER = [helpers.launcher.__file__]  # instead of the command
KNOWN = 'import timm; print(timm.is_model("mlfm_resnet18"))'


def start(launcher, *command, options=(), env=None, cwd=None):
    return subprocess.run([sys.executable, *options, *launcher, *map(str, command)], env=env or PACKAGE_AT,
                          cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def script(tmp_path):
    def write(text, name='script.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name
    return write


def test_as_python_itself(script, tmp_path):
    path = script('''
import json, sys
print(json.dumps(dict(
    argv=sys.argv, path=sys.path, name=__name__, file=__file__, spec=repr(__spec__), flags=list(sys.flags),
    loader=type(__loader__).__name__, names=sorted(n for n in globals() if n.startswith('__')), modules=[
        n for n in ('timm', 'torch', 'mlfm_zoo') if n in sys.modules])))
''', 'below/script.py')
    options = ['-b', '-W', 'error::UserWarning', '-u']
    for how, command in (
        (LAUNCHER, [path, '--help', '-m', 'x', '--', '']), (LAUNCHER, ['below/script.py', '-W']),
        (['-m', 'mlfm_zoo', 'run'], [path.parent.name + '/script.py', 'run']),
    ):
        ours, own = (start(way, *command, options=options, cwd=tmp_path) for way in (how, ()))
        assert ours.returncode == own.returncode == 0, ours.stderr
        assert json.loads(ours.stdout) == json.loads(own.stdout)


def test_modules_and_mistakes(tmp_path, capsys):
    assert start(LAUNCHER, '-m', 'json.tool', '--help').stdout == start((), '-m', 'json.tool', '--help').stdout
    missing = start(LAUNCHER, 'nothing.py', cwd=tmp_path)
    assert missing.returncode == 2 and "can't open file" in missing.stderr
    for arguments, code in ((['--help'], 0), (['--keep-memory', '--help'], 0), ([], 2), (['--keep-memory'], 2)):
        with pytest.raises(SystemExit) as stop:
            main(['run', *arguments])
        said = capsys.readouterr()
        assert stop.value.code == code and 'usage: mlfm-zoo run [-h] [--keep-memory] script' in said.out + said.err


def test_traceback_and_exit_code(script):
    path = script('def inner():\n    raise KeyError("nothing")\ninner()\n')
    ours, own = start(LAUNCHER, path), start((), path)
    assert ours.returncode == 1 and ours.stderr == own.stderr
    for code, expected in (('3', 3), ('"words"', 1), ('None', 0)):
        assert start(LAUNCHER, script(f'import sys; sys.exit({code})')).returncode == expected


def test_signals(script):
    path = script('''
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
time.sleep(120)
''')
    for number, expected in ((signal.SIGTERM, 7), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
        program = subprocess.Popen(
            [sys.executable, *LAUNCHER, path], env=PACKAGE_AT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True)
        assert int(program.stdout.readline()) == program.pid  # the very process that was started
        program.send_signal(number)
        program.communicate(timeout=120)
        assert program.returncode == expected


def test_processes_below_know_the_networks(script, tmp_path):
    """Python started by what the script starts, from elsewhere; and what imports no timm gets no zoo."""
    inner = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {KNOWN!r}], check=True)'
    path = script(f'''
import subprocess, sys
for code in ({inner!r}, 'import sys; print("torch" in sys.modules)'):
    subprocess.run([sys.executable, '-c', code], cwd='/', check=True)
''')
    assert start(LAUNCHER, path, cwd=tmp_path).stdout.split() == ['True', 'False']


@pytest.mark.slow
def test_loader_workers(script):
    path = script('''
import timm, torch
class Names(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, i):
        import timm
        return sum(p.numel() for p in timm.create_model('test_mlfm_resnet').parameters())
if __name__ == '__main__':
    for method in ('fork', 'spawn', 'forkserver'):
        print(*(int(n) for n in torch.utils.data.DataLoader(Names(), num_workers=1, multiprocessing_context=method)))
''')
    result = start(LAUNCHER, path)
    assert result.stdout.split() == ['89522'] * 6, result.stderr


@pytest.mark.slow
def test_torchrun(script):
    path = script('import os, sys, timm; print(os.environ["RANK"], timm.is_model("mlfm_resnet18"), sys.argv[1])')
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '-m', 'mlfm_zoo', 'run', path, '--flag'],
        env=PACKAGE_AT, capture_output=True, text=True)
    assert result.stdout == '0 True --flag\n', result.stderr


def test_a_sitecustomize_of_the_machine_still_runs(script, tmp_path):
    script('import os; os.environ["SEEN"] = "yes"', 'site/sitecustomize.py')
    path = script('import os, sys; print(os.environ.get("SEEN"), sys.modules["sitecustomize"].__file__)')
    env = dict(PACKAGE_AT, PYTHONPATH=os.pathsep.join([str(tmp_path / 'site'), str(ROOT)]))
    assert start(LAUNCHER, path, env=env).stdout.split() == ['yes', str(tmp_path / 'site' / 'sitecustomize.py')]


FAULTS = '''
import resource, sys
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b'x' * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults(), *sys.argv[1:])
'''


def test_freed_memory_is_kept(script):
    """A block of 16384 pages is requested from the system again each time, or stays; in processes below too."""
    path = script(FAULTS)
    assert int(start(LAUNCHER, path).stdout) >= 16384
    kept = start(LAUNCHER, '--keep-memory', path, '--keep-memory')
    assert kept.returncode == 0, kept.stderr
    count, argument = kept.stdout.split()
    assert int(count) < 100 and argument == '--keep-memory'
    below = script(f'import subprocess, sys; subprocess.run([sys.executable, {str(path)!r}], check=True)', 'below.py')
    assert int(start(['-m', 'mlfm_zoo', 'run'], '--keep-memory', below).stdout) < 100
    own = dict(PACKAGE_AT, MALLOC_MMAP_MAX_='65536', MALLOC_TRIM_THRESHOLD_='131072')  # what the user says holds
    assert int(start(LAUNCHER, '--keep-memory', path, env=own).stdout.split()[0]) >= 16384


def test_memory_is_kept_by_glibc_alone(monkeypatch, fail):
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert '--keep-memory sets the allocator of glibc' in fail('run', '--keep-memory', 'script.py')
