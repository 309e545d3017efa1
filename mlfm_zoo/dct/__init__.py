"""Learning in the DCT domain: a stem that makes JPEG's coefficients of an image, and what turns a network to it.

Paper: Learning in the Frequency Domain (CVPR 2020), https://arxiv.org/abs/2002.12416.
"""

from .channels import SUBSETS, select_channels
from .gate import ChannelGate, GateTask, draw_open, gate_of, share_open
from .jpeg import JPEGCoefficients, read_coefficients
from .network import DCTOptions, freeze_selection, to_dct
from .stem import DCTStem, Statistics, measure_statistics
from .store import store_jpegs

__all__ = [
    'SUBSETS', 'ChannelGate', 'DCTOptions', 'DCTStem', 'GateTask', 'JPEGCoefficients', 'Statistics', 'draw_open',
    'freeze_selection', 'gate_of', 'measure_statistics', 'read_coefficients', 'select_channels',
    'share_open', 'store_jpegs', 'to_dct',
]
