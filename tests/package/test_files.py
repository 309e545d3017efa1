"""Files that are written whole or not at all, and what a killed process leaves."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from timm.data import get_img_extensions
from timm.data.readers import create_reader

import mlfm_zoo
from digits import load_split
from mlfm_zoo._files import written_whole

KILLED = '''
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {package!r})
from _files import written_whole  # which imports no torch
with written_whole(Path(sys.argv[1])) as unfinished:
    unfinished.write_bytes(b'half')
    print(unfinished, flush=True)
    if len(sys.argv) > 2:
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
'''.format(package=str(Path(mlfm_zoo.__file__).parent))


def test_replaced_whole_or_kept(tmp_path):
    file = tmp_path / f'{"x" * 250}.png'  # as long as a name may be
    for content in (b'first', b'second'):
        with written_whole(file) as unfinished:
            unfinished.write_bytes(content)
        assert file.read_bytes() == content
    with pytest.raises(KeyError), written_whole(file) as unfinished:
        unfinished.write_bytes(b'third')
        raise KeyError
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == b'second'
    (tmp_path / 'other').touch()
    assert file.stat().st_mode == (tmp_path / 'other').stat().st_mode
    with pytest.raises(FileNotFoundError) as error, written_whole(tmp_path / 'none' / 'a.png'):
        pass
    assert error.value.filename == str(tmp_path / 'none' / 'a.png')


def test_what_a_killed_process_leaves(tmp_path):
    """Readers of images do not see it, and the next process removes it, but not what a living one writes."""
    folder = tmp_path / 'class'
    folder.mkdir()
    load_split()[1].images[0].save(folder / 'whole.png')
    command = [sys.executable, '-c', KILLED]
    result = subprocess.run([*command, folder / 'killed.png'], capture_output=True)
    assert result.returncode == -signal.SIGKILL
    [left] = [file for file in folder.iterdir() if file.name != 'whole.png']
    assert str(left) == result.stdout.decode().strip() and left.suffix not in get_img_extensions()
    assert len(create_reader('', root=str(tmp_path))) == 1  # timm's own, which reads hidden files too
    with subprocess.Popen([*command, folder / 'living.png', 'wait'],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        held = living.stdout.readline().strip()
        with written_whole(folder / 'next.png') as unfinished:
            assert sorted(map(str, folder.iterdir())) == sorted(map(str, [folder / 'whole.png', held, unfinished]))
        living.stdin.close()
