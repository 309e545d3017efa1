"""Faster R-CNN and Mask R-CNN over timm networks, with data and evaluation.

Heads, losses and feature pyramid are torchvision's. The measures are those of pycocotools.
"""

from .coco import CocoImages, collate
from .evaluate import evaluate
from .network import PyramidBackbone, create_model
from .pictures import draw_predictions

__all__ = ['CocoImages', 'PyramidBackbone', 'collate', 'create_model', 'draw_predictions', 'evaluate']
