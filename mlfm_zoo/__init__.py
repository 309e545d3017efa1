"""Multiscale Low-Frequency Memory networks as timm models.

Importing the package registers them: `import timm, mlfm_zoo; timm.create_model('mlfm_resnet50')`.
"""

from . import models
from .memory import LowFrequencyMemoryUnit, image_bands, low_band

__version__ = '0.1.0'

__all__ = ['LowFrequencyMemoryUnit', 'image_bands', 'low_band', 'models', '__version__']
