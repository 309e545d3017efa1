"""Released checkpoints, made into folders that `timm.create_model('local-dir:FOLDER', pretrained=True)` loads."""

from .checkpoint import convert_checkpoint, convert_state_dict, read_checkpoint
from .form import Conversion

__all__ = ['Conversion', 'convert_checkpoint', 'convert_state_dict', 'read_checkpoint']
