"""The files of the packages as a graph: no circles, nothing lower imports something higher, and leaves stay leaves."""

import ast
import graphlib
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

import mlfm_zoo

ROOT = Path(mlfm_zoo.__file__).parents[1]

# Folders, and files beside them, lowest first: each imports from itself and from those before it.
ORDER = (
    '_timm', '_extras', '_types', '_files', '_terminal', '_buffers', '_folding', 'data', 'memory', 'convert', 'hub',
    'dct', 'models', '__init__', 'frequency', 'detection', 'segmentation', 'workflow', 'app', 'mlfm_zoo_cli',
    '__main__')

# Imported by themselves and by the command line.
LEAVES = ('app', 'frequency', 'detection', 'segmentation')

FILES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for package in ('mlfm_zoo', 'mlfm_zoo_cli') for path in sorted((ROOT / package).rglob('*.py'))
    if 'hook' not in path.parts}


def imports(module):
    """Modules of the packages that a module imports, anywhere in it."""
    package = module if FILES[module].name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding='utf-8'))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name('.' * node.level + (node.module or ''), package)
            names = [f'{base}.{alias.name}' for alias in node.names]
        for name in names:
            if name.partition('.')[0] in ('mlfm_zoo', 'mlfm_zoo_cli'):
                yield name if name in FILES else name.rpartition('.')[0]  # b.c is a module, or the name c in b


GRAPH = {module: set(imports(module)) for module in FILES}


def place(module):
    """The folder, or the file beside the folders, that a module is in."""
    return '__init__' if module == 'mlfm_zoo' else module.removeprefix('mlfm_zoo.').partition('.')[0]


def test_no_circles():
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError with the modules of a circle
    assert set(order) == set(FILES)


def test_nothing_imports_what_is_higher_or_a_leaf():
    imported = [(module, place(module), target, place(target)) for module, found in GRAPH.items() for target in found]
    wrong = [(module, target) for module, own, target, other in imported if ORDER.index(other) > ORDER.index(own)
             or other in LEAVES and own not in (other, 'mlfm_zoo_cli')]
    assert not wrong


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
