"""Released checkpoints: read safely, recognized, and renamed to the parameters of the registered networks."""

from .checkpoint import convert_state_dict, read_checkpoint
from .form import Conversion

__all__ = ['Conversion', 'convert_state_dict', 'read_checkpoint']
