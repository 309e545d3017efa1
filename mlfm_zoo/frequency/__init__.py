"""What models see by spatial frequency: filters, and analyses of any timm model.

Paper: Frequency and Scale Perspectives of Feature Extraction, https://arxiv.org/abs/2302.12477.
"""

from ..data.filters import FrequencyFilter, bandpass, bandstop, full_radius, highpass, lowpass
from .analysis import Probe, analyse, default_radii
from .fourier import fourier_basis, fourier_errors
from .levels import class_level, overall_level, sensitive_band
from .pictures import draw_fourier, draw_levels, draw_samples

__all__ = [
    'FrequencyFilter', 'Probe', 'analyse', 'bandpass', 'bandstop', 'class_level', 'default_radii', 'draw_fourier',
    'draw_levels', 'draw_samples', 'fourier_basis', 'fourier_errors', 'full_radius', 'highpass', 'lowpass',
    'overall_level', 'sensitive_band',
]
