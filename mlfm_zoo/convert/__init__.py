"""Read released checkpoints safely, recognize networks and rename parameters."""

from .checkpoint import convert_state_dict, read_checkpoint
from .form import Conversion

__all__ = ['Conversion', 'convert_state_dict', 'read_checkpoint']
