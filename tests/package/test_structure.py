"""The rooms of the package: what lies lower imports nothing that lies higher, and old names still lead somewhere."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mlfm_zoo
from mlfm_zoo._moved import MOVED

PACKAGE = Path(mlfm_zoo.__file__).parent

# Lowest first. A room imports from itself and from rooms before it.
ROOMS = (
    '_timm', '_moved', '_extras', '_files', '_buffers', 'data', 'memory', 'convert', 'hub', 'dct', 'models', 'workflow',
    'frequency', 'detection', 'segmentation', 'cli', '__main__')

# Within the memory, the files in the order in which a reader takes them.
MEMORY = ('options', 'identity', 'bands', 'training', 'unit', 'kernel', 'fused', 'network', 'attach')


def imports(path):
    """Modules of the package that a file imports, anywhere in it, as names below `mlfm_zoo`."""
    here = ('mlfm_zoo', *path.relative_to(PACKAGE).with_suffix('').parts)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or '').split('.') if node.module else []
            base = [*here[:-node.level], *module] if node.level else module
            for alias in node.names:
                full = [*base, alias.name]
                if full[0] == 'mlfm_zoo' and len(full) > 1:
                    yield tuple(full[1:])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split('.')[0] == 'mlfm_zoo':
                    yield tuple(alias.name.split('.')[1:])


FILES = [path for path in sorted(PACKAGE.rglob('*.py')) if 'hook' not in path.parts]


@pytest.mark.parametrize('path', FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_nothing_lower_imports_something_higher(path):
    room = path.relative_to(PACKAGE).with_suffix('').parts[0]
    if room == '__init__':  # the package itself offers what is below
        return
    for target in imports(path):
        if target[0] in ROOMS:
            assert ROOMS.index(target[0]) <= ROOMS.index(room), f'{room} imports {".".join(target)}'


def test_every_file_is_in_a_room():
    assert {path.relative_to(PACKAGE).with_suffix('').parts[0] for path in FILES} == {*ROOMS, '__init__'}


def test_order_within_the_memory():
    order = list(MEMORY)
    for path in (PACKAGE / 'memory').glob('*.py'):
        if path.stem == '__init__':
            continue
        later = {target[1] for target in imports(path)
                 if target[0] == 'memory' and target[1] in order and order.index(target[1]) > order.index(path.stem)}
        # a unit makes its own fused form, which is built on it, and is trained by a function that asks for its class
        assert later == {'unit': {'fused'}, 'training': {'unit'}}.get(path.stem, set()), path.stem


def test_equations_are_short():
    assert len((PACKAGE / 'memory' / 'unit.py').read_text(encoding='utf-8').splitlines()) < 150


@pytest.mark.parametrize('old, new', MOVED.items())
def test_old_module_names(old, new):
    if new.endswith('.kernel'):
        pytest.importorskip('triton', reason='Triton is not installed: torch brings it along on Linux only.')
    assert importlib.import_module(old) is importlib.import_module(new)
    code = f'import {old}; from {old} import __all__; import {new}; assert {old} is {new}'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_import_loads_the_networks_alone():
    """Neither what extras bring, nor what only commands need."""
    code = """
import timm, sys
before = set(sys.modules)
import mlfm_zoo
print(*sorted(set(sys.modules) - before))
"""
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    rooms = {name.split('.')[1] for name in loaded if name.startswith('mlfm_zoo.')}
    assert rooms == {'_timm', '_moved', 'data', 'memory', 'convert', 'hub', 'dct', 'models', '_extras', '_buffers',
                     '_files'}
    assert not {'mlfm_zoo.dct.jpeg', 'mlfm_zoo.dct.jpeg_file', 'mlfm_zoo.dct.store'} & set(loaded)
    assert not {'jpeglib', 'matplotlib', 'pycocotools', 'scipy', 'sklearn', 'transformers', 'triton'} & {
        name.split('.')[0] for name in loaded}


@pytest.mark.parametrize('module, extra, code', [
    ('jpeglib', 'jpeg', 'import mlfm_zoo.dct; mlfm_zoo.dct.read_coefficients(b"")'),
    ('matplotlib', 'frequency', 'import torch, mlfm_zoo.dct; mlfm_zoo.dct.draw_open(torch.zeros(192), "no.png")'),
    ('pycocotools', 'detection', 'from mlfm_zoo.detection import CocoImages; CocoImages(".", "no.json")'),
    ('torchmetrics', 'segmentation', 'from mlfm_zoo.segmentation import metrics; metrics.SegmentationMeter(2)'),
    ('segmentation_models_pytorch', 'segmentation',
     'from mlfm_zoo import segmentation; segmentation.create_model("unet", "mlfm_resnet18")'),
])
def test_missing_extras(module, extra, code, monkeypatch):
    """One sentence that names the extra; an import of what is None fails as that of what is not installed."""
    for name in [name for name in sys.modules if name.split('.')[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError) as error:
        exec(code, {})
    assert str(error.value).endswith(f"needs {module}, which is not installed: pip install 'mlfm-zoo[{extra}]'.")
    assert '\n' not in str(error.value)
