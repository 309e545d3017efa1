"""torchvision's Faster R-CNN and Mask R-CNN over any timm network with features, with data and evaluation.

Heads, losses, feature pyramid and dataset are torchvision's. The measures are those of pycocotools.
"""

from .coco import CocoImages, collate
from .evaluate import evaluate
from .network import PyramidBackbone, create_model
from .pictures import draw_predictions

__all__ = ['CocoImages', 'PyramidBackbone', 'collate', 'create_model', 'draw_predictions', 'evaluate']
