"""Faster R-CNN and Mask R-CNN of torchvision over any network with features, and what training them takes.

The heads, the losses, the feature pyramid and the measures are torchvision's and pycocotools': here is what lies
between them and a timm model.
"""

from .coco import CocoImages, collate
from .evaluate import evaluate
from .network import PyramidBackbone, create_model
from .pictures import draw_predictions

__all__ = ['CocoImages', 'PyramidBackbone', 'collate', 'create_model', 'draw_predictions', 'evaluate']
