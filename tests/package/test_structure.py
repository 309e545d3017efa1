"""The files of the packages as a graph: no circles, nothing lower imports something higher, and leaves stay leaves."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import mlfm_zoo

ROOT = Path(mlfm_zoo.__file__).parents[1]

# Folders, and files beside them, lowest first: each imports from itself and from those before it.
ORDER = (
    '_timm', '_extras', '_files', '_terminal', '_buffers', '_folding', 'data', 'memory', 'convert', 'hub', 'dct',
    'models', '__init__', 'frequency', 'detection', 'segmentation', 'workflow', 'app', 'mlfm_zoo_cli', '__main__')

# Imported by themselves, by the __init__ of their folder, and by functions of the command line.
LEAVES = (
    ('app',), ('frequency',), ('detection',), ('segmentation',),
    ('dct/jpeg.py', 'dct/jpeg_file.py', 'dct/store.py'))

FILES = {
    str(path.relative_to(ROOT)).removeprefix('mlfm_zoo/'): path
    for package in ('mlfm_zoo', 'mlfm_zoo_cli') for path in sorted((ROOT / package).rglob('*.py'))
    if 'hook' not in path.parts}


def imports(name):
    """Files of the packages that a file imports, anywhere in it, each with whether a function does it."""
    here = FILES[name].relative_to(ROOT).with_suffix('').parts
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding='utf-8'))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [tuple(alias.name.split('.')) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (*here[:-node.level], *filter(None, (node.module or '').split('.'))) if node.level else tuple(
                node.module.split('.'))
            modules = [(*base, alias.name) for alias in node.names]
        for first, *rest in modules:
            if first in ('mlfm_zoo', 'mlfm_zoo_cli'):
                rest = rest if first == 'mlfm_zoo' else [first, *rest]
                # a.b.c is the file c.py, the package c, or the name c in b
                found = ('/'.join(rest) + '.py', '/'.join([*rest, '__init__.py']), '/'.join(rest[:-1]) + '.py',
                         '/'.join([*rest[:-1], '__init__.py']))
                yield next(file for file in found if file in FILES), node.col_offset > 0


GRAPH = {name: dict(sorted(imports(name), reverse=True)) for name in FILES}  # with functions only if all are


def room(name):
    return Path(name).with_suffix('').parts[0]


def test_no_circles():
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError with the files of a circle
    assert set(order) == set(FILES)


@pytest.mark.parametrize('name', FILES)
def test_nothing_lower_imports_something_higher(name):
    for target in GRAPH[name]:
        assert ORDER.index(room(target)) <= ORDER.index(room(name)), f'{name} imports {target}'


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda leaf: leaf[0])
def test_nothing_imports_a_leaf(leaf):
    inside = {name for name in FILES if name in leaf or room(name) in leaf}
    assert inside
    for name, targets in GRAPH.items():
        for target in inside & targets.keys():
            of_its_folder = name == str(Path(target).with_name('__init__.py'))
            by_a_command = room(name) == 'mlfm_zoo_cli' and targets[target]
            assert name in inside or of_its_folder or by_a_command, f'{name} imports {target}'


def test_import_loads_the_networks_alone():
    """Neither leaves, nor what extras bring, nor what only commands need."""
    code = """
import timm, sys
before = set(sys.modules)
import mlfm_zoo
print(*sorted(set(sys.modules) - before))
"""
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name.removeprefix('mlfm_zoo.') for name in loaded if name.startswith('mlfm_zoo.')}
    assert 'models.mlfm_resnet' in ours
    assert not {name.split('.')[0] for name in ours} & {'frequency', 'detection', 'segmentation', 'workflow'}
    assert not {'dct.jpeg', 'dct.jpeg_file', 'dct.store'} & ours
    assert not {'accelerate', 'jpeglib', 'matplotlib', 'mlfm_zoo_cli', 'pycocotools', 'scipy', 'sklearn',
                'torchmetrics', 'transformers', 'triton'} & {name.split('.')[0] for name in loaded}


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
