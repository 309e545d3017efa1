"""The authors' checkpoints, made into folders that `timm.create_model('local-dir:FOLDER', pretrained=True)` loads."""

from .authors import Conversion, convert_checkpoint, convert_state_dict, read_checkpoint

__all__ = ['Conversion', 'convert_checkpoint', 'convert_state_dict', 'read_checkpoint']
