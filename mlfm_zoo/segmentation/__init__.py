"""Segmentation: FCN, U-Net and the decoders of segmentation_models.pytorch, with memory or without; training them."""

from .create import NAMES, create_model
from .fcn import FCN, LearntUpsample
from .network import SegmentationNetwork
from .smp import SMP
from .unet import UNet

__all__ = ['FCN', 'NAMES', 'SMP', 'LearntUpsample', 'SegmentationNetwork', 'UNet', 'create_model']
