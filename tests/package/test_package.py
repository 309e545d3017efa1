"""The package as it is installed, and the files that commands make."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import demo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
    out = tmp_path_factory.mktemp('dist')
    subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, ROOT], check=True, capture_output=True)
    return {path.suffix: path for path in out.iterdir()}


def test_wheel_and_sdist_are_whole(distributions):
    with zipfile.ZipFile(distributions['.whl']) as wheel:
        names = wheel.namelist()
    for name in ('mlfm_zoo/py.typed', 'mlfm_zoo/weights/test_mlfm_resnet.digits.safetensors', 'mlfm_zoo/memory/unit.py',
                 'mlfm_zoo/weights_manifest.yaml', 'mlfm_zoo_cli/launch/hook/sitecustomize.py',
                 'mlfm_zoo/workflow/recipes/resnet.yaml'):
        assert name in names
    assert not [n for n in names if not n.startswith(('mlfm_zoo/', 'mlfm_zoo_cli/', 'mlfm_zoo-'))]
    with tarfile.open(distributions['.gz']) as sdist:
        names = ['/'.join(n.split('/')[1:]) for n in sdist.getnames()]
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md', 'Makefile',
                 'tests/memory/test_unit.py', 'scripts/digits.py'):
        assert name in names


def test_installed_wheel_works_from_an_empty_folder(distributions, tmp_path):
    site, empty = tmp_path / 'site', tmp_path / 'empty'
    empty.mkdir()
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', site,
         distributions['.whl']], check=True, capture_output=True)
    code = f'''
import timm, torch, mlfm_zoo
assert mlfm_zoo.__file__.startswith({str(site)!r}), mlfm_zoo.__file__
assert len(timm.list_models('mlfm_*', exclude_filters='mlfm_filtered')) == 34
model = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
print(tuple(model(torch.zeros(1, 3, 64, 64)).shape))
'''
    environment = dict(os.environ, PYTHONPATH=str(site))
    for command in ([sys.executable, '-c', code], [site / 'bin' / 'mlfm-zoo', '--version']):
        result = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('mlfm-zoo ')
    assert not list(empty.iterdir())


def test_model_table_is_up_to_date():
    result = subprocess.run([sys.executable, ROOT / 'scripts' / 'make_tables.py', '--check'])
    assert result.returncode == 0, 'run: python scripts/make_tables.py'


def test_demo_draws_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--output', str(tmp_path)])
    demo.main()
    printed = capsys.readouterr().out
    assert 'held-out accuracy: ' in printed and 'with memory: church' in printed
    for name in ('digits.png', 'photograph.png'):
        with Image.open(tmp_path / name) as picture:
            colors = picture.convert('RGB').getcolors(1 << 24)
        # a drawn photograph or digits, and maps, not an empty page: many colors, and much that is not white
        assert len(colors) > 100 and max(n for n, _ in colors) < 0.7 * picture.width * picture.height
