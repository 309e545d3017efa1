"""The code blocks of README.md and of the docs run as they are written.

A page's Python and shell blocks run in order, in one process and one folder, on the files that `work_folder` makes. A
block that cannot run here has a comment right above it that says why: `<!-- not run: needs a GPU -->`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import mlfm_zoo
from digits import write_digits

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
# pages whose blocks train, export, or run larger networks
SLOW = {
    'docs/analyze.md', 'docs/backbone.md', 'docs/dct_training.md', 'docs/detection.md', 'docs/export.md',
    'docs/fine_tuning.md', 'docs/gssdnet.md', 'docs/segmentation.md', 'docs/tutorials/photos.md'}
LANGUAGES = ('python', 'sh', 'text', 'json', 'yaml')

FENCE = re.compile(r'(?:<!-- not run: ([^>]+) -->\n\n?)?^( *)```(\w*)[^\n]*\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)

# commands of mlfm-zoo alone run in this process too, which spares loading torch for each
RUNNER = r'''
import re, shlex, subprocess
namespace = {'__name__': '__main__'}
for place, line, language, code in BLOCKS:
    print(f'--- {place}:{line}', flush=True)
    if language == 'python':
        exec(compile('\n' * line + code, place, 'exec'), namespace)
        continue
    commands = [shlex.split(command, comments=True) for command in code.replace('\\\n', ' ').splitlines()]
    commands = [command for command in commands if command]
    plain = not re.search(r'[|<>$*?;&~]', re.sub(r"'[^']*'|#.*", '', code))
    if plain and all(command[0] == 'mlfm-zoo' and command[1] != 'run' for command in commands):
        from mlfm_zoo_cli import main
        for command in commands:
            assert main(command[1:]) == 0, command
    else:
        subprocess.run(['bash', '-euo', 'pipefail', '-c', code], check=True)
'''


def blocks(page):
    """Fenced blocks of a page: line of the fence, reason not to run it, language, code."""
    text = page.read_text(encoding='utf-8')
    for match in FENCE.finditer(text):
        reason, indent, language, code = match.groups()
        line = text.count('\n', 0, match.start(3)) + 1
        yield line, reason, language, re.sub(f'^{indent}', '', code, flags=re.MULTILINE)


def runnable(page):
    place = page.relative_to(ROOT).as_posix()
    return [(place, line, language, code) for line, reason, language, code in blocks(page)
            if language in ('python', 'sh') and not reason]


RUN = [page for page in PAGES if runnable(page)]


@pytest.fixture
def work_folder(tmp_path):
    """A checkout as its user sees it, with a photograph and a folder of images in it: photo.jpg and digits/."""
    folder = tmp_path / 'mlfm_zoo'
    folder.mkdir()
    for name in ('examples', 'scripts', 'benchmarks', 'docs', 'mlfm_zoo', 'weights_manifest.yaml'):
        (folder / name).symlink_to(ROOT / name)
    Image.fromarray(load_sample_image('china.jpg')).save(folder / 'photo.jpg')
    write_digits(folder / 'digits', 128, 64)
    programs = tmp_path / 'bin'
    programs.mkdir()
    for name, command in (('python', sys.executable), ('mlfm-zoo', f'{sys.executable} -m mlfm_zoo')):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    return folder


@pytest.mark.parametrize('page', [
    pytest.param(page, marks=[pytest.mark.slow] * (page.relative_to(ROOT).as_posix() in SLOW),
                 id=page.relative_to(ROOT).as_posix()) for page in RUN])
def test_blocks_run(page, work_folder):
    script = work_folder.parent / 'blocks.py'
    script.write_text(f'BLOCKS = {runnable(page)!r}\n{RUNNER}', encoding='utf-8')
    env = dict(
        os.environ, PYTHONPATH=str(ROOT), PATH=f'{work_folder.parent / "bin"}{os.pathsep}{os.environ["PATH"]}',
        HF_HUB_OFFLINE='1', HF_HOME=str(work_folder.parent / 'home'), MPLBACKEND='Agg')
    result = subprocess.run(
        [sys.executable, script], cwd=work_folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout


def test_badge_has_the_version():
    assert f'badge/version-{mlfm_zoo.__version__}-' in (ROOT / 'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_are_as_they_have_to_be(page):
    """A language, so that none escapes the test above, and lines that fit a page and a phone turned sideways."""
    for line, _, language, code in blocks(page):
        assert language in LANGUAGES, f'line {line}: {language!r}'
        long = [text for text in code.splitlines() if len(text) > 80]
        assert not long or language == 'text', f'line {line}: {long}'
