"""Networks that read JPEG's DCT coefficients, and the stem that computes them.

Paper: Learning in the Frequency Domain (CVPR 2020), https://arxiv.org/abs/2002.12416.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .channels import SUBSETS, select_channels
from .gate import ChannelGate, GateTask, draw_open, gate_of, share_open
from .network import DCTOptions, freeze_selection, to_dct
from .stem import DCTStem, Statistics, measure_statistics

if TYPE_CHECKING:
    from .jpeg import JPEGCoefficients, read_coefficients
    from .store import store_jpegs

__all__ = [
    'SUBSETS', 'ChannelGate', 'DCTOptions', 'DCTStem', 'GateTask', 'JPEGCoefficients', 'Statistics', 'draw_open',
    'freeze_selection', 'gate_of', 'measure_statistics', 'read_coefficients', 'select_channels',
    'share_open', 'store_jpegs', 'to_dct',
]

# Loaded on first use: the networks do not read or write JPEG files.
JPEG = {'JPEGCoefficients': '.jpeg', 'read_coefficients': '.jpeg', 'store_jpegs': '.store'}


def __getattr__(name: str) -> Any:
    if name in JPEG:
        return getattr(import_module(JPEG[name], __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
