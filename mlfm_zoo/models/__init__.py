"""The networks, one module per family.

Importing this package registers the networks with timm; `timm.create_model` then builds them.
"""

from .._folding import fuse_trunk
from . import mlfm_filtered
from .dct_mobilenetv2 import DCTEfficientNet
from .dct_resnet import DCTResNet
from .gssdnet import GSSDNet
from .mlfm_byobnet import MLFMByobNet
from .mlfm_convnext import MLFMConvNeXt, PartialConvNeXt
from .mlfm_efficientnet import MLFMEfficientNet
from .mlfm_inception_next import MLFMMetaNeXt
from .mlfm_mobilenetv3 import MLFMMobileNetV3
from .mlfm_regnet import MLFMRegNet
from .mlfm_resnet import MLFMResNet

__all__ = [
    'DCTEfficientNet', 'DCTResNet', 'GSSDNet', 'MLFMByobNet', 'MLFMConvNeXt', 'MLFMEfficientNet', 'MLFMMetaNeXt',
    'MLFMMobileNetV3', 'MLFMRegNet', 'MLFMResNet', 'PartialConvNeXt', 'fuse_trunk', 'mlfm_filtered',
]
