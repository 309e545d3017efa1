"""What a model sees of images by spatial frequency: filters, and the analysis of any timm model with them.

Paper: Frequency and Scale Perspectives of Feature Extraction, https://arxiv.org/abs/2302.12477.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .filters import FrequencyFilter, bandpass, bandstop, full_radius, highpass, lowpass
from .retraining import filtered

if TYPE_CHECKING:
    from .analysis import Probe, analyse, default_radii
    from .fourier import fourier_basis, fourier_errors
    from .levels import class_level, overall_level, sensitive_band
    from .pictures import draw_fourier, draw_levels, draw_samples

__all__ = [
    'FrequencyFilter', 'Probe', 'analyse', 'bandpass', 'bandstop', 'class_level', 'default_radii', 'draw_fourier',
    'draw_levels', 'draw_samples', 'filtered', 'fourier_basis', 'fourier_errors', 'full_radius', 'highpass', 'lowpass',
    'overall_level', 'sensitive_band',
]

# The analysis is loaded when it is asked for: importing the package is for the networks.
LATER = {
    'analysis': ('Probe', 'analyse', 'default_radii'),
    'fourier': ('fourier_basis', 'fourier_errors'),
    'levels': ('class_level', 'overall_level', 'sensitive_band'),
    'pictures': ('draw_fourier', 'draw_levels', 'draw_samples'),
}


def __getattr__(name: str) -> Any:
    for module, names in LATER.items():
        if name in names:
            return getattr(import_module(f'.{module}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
