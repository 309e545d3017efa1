"""The networks, a module a family. Importing this package registers them with timm."""

from .mlfm_convnext import MLFMConvNeXt, PartialConvNeXt
from .mlfm_efficientnet import MLFMEfficientNet
from .mlfm_inception_next import MLFMMetaNeXt
from .mlfm_regnet import MLFMRegNet
from .mlfm_resnet import MLFMResNet

__all__ = ['MLFMConvNeXt', 'MLFMEfficientNet', 'MLFMMetaNeXt', 'MLFMRegNet', 'MLFMResNet', 'PartialConvNeXt']
