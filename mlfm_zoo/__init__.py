"""Multiscale Low-Frequency Memory networks as timm models.

Importing the package registers them: `import timm, mlfm_zoo; timm.create_model('mlfm_resnet50')`.
"""

from importlib import import_module
from typing import Any

from . import models
from .data import imagenet100
from .memory import LowFrequencyMemoryUnit, attach_memory, calibrate_memory, image_bands, low_band, supports_memory
from .models import fuse_trunk

__version__ = '0.3.0'

__all__ = [
    'LowFrequencyMemoryUnit',
    '__version__',
    'attach_memory',
    'calibrate_memory',
    'dct',
    'frequency',
    'fuse_trunk',
    'image_bands',
    'imagenet100',
    'low_band',
    'models',
    'supports_memory',
]


def __getattr__(name: str) -> Any:
    if name in ('dct', 'frequency'):  # loaded on first use, so that `import mlfm_zoo` loads the networks alone
        return import_module(f'.{name}', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
