"""The examples in docstrings run as they are written, and what a user calls has one.

They run in a folder with the files of the docs' pages, `photo.jpg` and `digits/`, and with `shapes/`, a small data set
for segmentation. Their names are those of the module, and `timm`, `torch` and `mlfm_zoo`.
"""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import mlfm_zoo
from digits import write_digits
from helpers.segmentation import write_data

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(mlfm_zoo.__path__, 'mlfm_zoo.')
    if not {'cli', 'app', '__main__'} & {*module.name.split('.')})

# What docs/api lists, and `mlfm-zoo export`.
PUBLIC = (
    'mlfm_zoo', *(f'mlfm_zoo.{name}' for name in (
        'memory', 'models', 'dct', 'frequency', 'detection', 'segmentation', 'convert', 'data.folders', 'data.images',
        'hub.loading', 'hub.manifest', 'workflow.recipe', 'workflow.evaluate', 'workflow.predict', 'workflow.collect',
        'workflow.cost', 'workflow.card', 'workflow.export')))

# Without an example: what a user gets from a call, what needs a finished run, and what other examples use.
WITHOUT = {
    'MemorySupport', 'PassThrough', 'Statistics', 'SegmentationNetwork', 'Checkpoint', 'PaperAccuracy', 'ManifestError',
    'CheckpointError', 'Conversion', 'StrictImageDataset', 'UnreadableImage', 'Recipe', 'Accuracy', 'Answer',
    'Prediction', 'Epoch', 'Run', 'RunError', 'Cost', 'Check', 'read_run', 'read_args', 'find_runs', 'publish_args',
    'compare', 'ExportedNetwork', 'quantize', 'write_graph',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('examples')
    Image.fromarray(load_sample_image('china.jpg')).save(folder / 'photo.jpg')
    write_digits(folder / 'digits', 64, 32)
    write_data(folder / 'shapes')
    return folder


@pytest.mark.parametrize('name', ['mlfm_zoo', *MODULES])
def test_examples_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    module = importlib.import_module(name)
    names = {**vars(module), 'timm': timm, 'torch': torch, 'mlfm_zoo': mlfm_zoo}
    assert not doctest.testmod(module, globs=names, optionflags=doctest.ELLIPSIS).failed


@pytest.mark.parametrize('name', PUBLIC)
def test_what_a_user_calls_has_an_example(name):
    module = importlib.import_module(name)
    called = {key: value for key, value in ((key, getattr(module, key)) for key in module.__all__)
              if inspect.isclass(value) or inspect.isfunction(value)}
    assert not [key for key, value in called.items() if '>>>' not in value.__doc__ and key not in WITHOUT]
