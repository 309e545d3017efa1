"""Segmentation networks (FCN, U-Net, SMP) with or without memory, and training."""

from .create import NAMES, create_model
from .evaluation import evaluate, predict_labels, predict_probabilities, segmentation_loss
from .fcn import FCN, LearntUpsample
from .network import SegmentationNetwork
from .settings import TrainSettings
from .smp import SMP
from .training import load_run, train
from .unet import UNet

__all__ = [
    'FCN', 'NAMES', 'SMP', 'LearntUpsample', 'SegmentationNetwork', 'TrainSettings', 'UNet', 'create_model', 'evaluate',
    'load_run', 'predict_labels', 'predict_probabilities', 'segmentation_loss', 'train',
]
