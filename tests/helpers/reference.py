"""The reference folder beside the project: the authors' checkpoints, golden outputs of the original networks, photos.

It is not part of the project. MLFM_ZOO_REFERENCE names it; without that it is looked for beside the checkout.
"""

import importlib.util
import os
from pathlib import Path

import pytest

REFERENCE = Path(os.environ.get('MLFM_ZOO_REFERENCE', Path(__file__).resolve().parents[3] / 'shared' / 'reference'))

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the authors' checkpoints and golden outputs are not on this machine")


def load_fill():
    """The module that makes the golden files' weights and input images."""
    spec = importlib.util.spec_from_file_location('fill', REFERENCE / 'fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
