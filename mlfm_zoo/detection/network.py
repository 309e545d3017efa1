"""Detectors on a feature pyramid, built from the name of a network.

Papers: Feature Pyramid Networks for Object Detection, https://arxiv.org/abs/1612.03144; Mask R-CNN,
https://arxiv.org/abs/1703.06870; for networks on DCT coefficients, Learning in the Frequency Domain,
https://arxiv.org/abs/2002.12416, section 4.2. Everything after the network's features is torchvision's.
"""

import inspect
from typing import Any, Dict, List, Mapping, Optional

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from timm.models import group_parameters, is_model_in_modules
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .._timm import config_of, model_name
from ..dct import DCTStem
from ..memory import LowFrequencyMemoryUnit
from ..memory.options import check_option

__all__ = ['PyramidBackbone', 'create_model']

DETECTORS = {'faster_rcnn': FasterRCNN, 'mask_rcnn': MaskRCNN}

# Image size over the size of each feature that the pyramid takes.
REDUCTIONS = [4, 8, 16, 32]

# The stem and the four stages.
NUM_STAGES = 5


class PyramidBackbone(nn.Module):
    """A timm model's features with a feature pyramid over them.

    Args:
        body: A timm model built with `features_only=True` that returns maps (N, C, H, W) at 1/4, 1/8, 1/16 and 1/32 of
            the image's size. For a network that computes DCT coefficients, the image is enlarged until this holds.
        out_channels: Channels of the pyramid.

    Raises:
        ValueError: The features have other sizes.

    Examples:
        >>> body = timm.create_model('test_mlfm_resnet', features_only=True, out_indices=(1, 2, 3, 4))
        >>> features = PyramidBackbone(body, out_channels=32)(torch.randn(1, 3, 128, 128))
        >>> [tuple(feature.shape[1:]) for feature in features.values()]
        [(32, 32, 32), (32, 16, 16), (32, 8, 8), (32, 4, 4), (32, 2, 2)]
    """

    def __init__(self, body: nn.Module, out_channels: int = 256):
        super().__init__()
        info: Any = body.feature_info
        reductions = info.reduction()
        self.enlarge = 1
        if any(isinstance(module, DCTStem) for module in body.modules()):
            self.enlarge = max(1, reductions[-1] // REDUCTIONS[-1])
        if [r / self.enlarge for r in reductions] != REDUCTIONS:
            raise ValueError(
                f'The features of {model_name(body)} are the image divided by {", ".join(map(str, reductions))}, '
                'expected by 4, 8, 16, 32 (of a network on DCT coefficients, a multiple of these): give a network '
                'whose stages halve the map, which takes images and whose strides are its own (of a DCT ResNet, '
                'layer2_stride=2).')
        self.body = body
        self.fpn = FeaturePyramidNetwork(info.channels(), out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Compute maps of images (N, in_chans, H, W) at 1/4, 1/8, 1/16, 1/32 and 1/64."""
        if self.enlarge > 1:
            x = F.interpolate(x, scale_factor=float(self.enlarge), mode='bilinear', align_corners=False)
        maps = self.body(x)
        assert torch.jit.isinstance(maps, List[torch.Tensor])  # TorchScript sees that it might be something else
        features: Dict[str, torch.Tensor] = {}
        for i, feature in enumerate(maps):
            features[str(i)] = feature
        return self.fpn(features)


def create_model(
        detector: str = 'mask_rcnn',
        backbone: str = 'mlfm_resnet50',
        num_classes: int = 91,
        pretrained: bool = False,
        in_chans: int = 3,
        trainable_stages: Optional[int] = None,
        freeze_norms: Optional[bool] = None,
        fpn_channels: int = 256,
        backbone_kwargs: Optional[Mapping[str, Any]] = None,
        **kwargs: Any,
) -> FasterRCNN:
    """Build a detector on a feature pyramid over a network.

    Images are normalized as in the network's pretrained config. A ResNet on DCT coefficients has strides 1 2 2 2, and
    its image is enlarged by a factor of 2, so that coefficients come at 1/4 of the image's size, as in the paper. For a
    MobileNetV2 on DCT coefficients the factor is 4.

    Args:
        detector: 'mask_rcnn' or 'faster_rcnn'.
        backbone: Name of any timm model, with a tag to choose its weights.
        num_classes: Number of classes including the background, class 0; 91 for COCO.
        pretrained: Whether to load the network's pretrained weights. The detector itself has none.
        in_chans: Channels of the images. If the config has fewer, mean and standard deviation are 0.5.
        trainable_stages: Number of the network's stages to train, counted from the last: 0 for none, 4 for all except
            the stem, 5 for all. If None, 3 with `pretrained` and 5 without.
        freeze_norms: Whether to freeze statistics, scale and shift of the network's batch norms; `pretrained` if None.
            Memory gates at identity are never frozen, since they have learned nothing yet.
        fpn_channels: Channels of the pyramid.
        backbone_kwargs: Arguments of `timm.create_model` for the network.
        **kwargs: Arguments of torchvision's `MaskRCNN` or `FasterRCNN`, such as `min_size` and `max_size`.

    Returns:
        The detector. As in torchvision, in training mode it takes lists of images (in_chans, H, W) from 0 to 1 and of
        targets and returns losses. In eval mode it takes images and returns predictions.

    Raises:
        ValueError: An argument is out of range, or the network's last four features have other sizes.
        TypeError: An argument is unknown.

    Examples:
        >>> model = create_model('faster_rcnn', 'test_mlfm_resnet', num_classes=3, min_size=64, fpn_channels=32).eval()
        >>> sorted(model([torch.rand(3, 64, 96)])[0])
        ['boxes', 'labels', 'scores']
    """
    check_option('detector', detector, tuple(DETECTORS))
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f'num_classes is {num_classes!r}, expected 2 or more: the background counts as one.')
    trainable_stages = (3 if pretrained else NUM_STAGES) if trainable_stages is None else trainable_stages
    check_option('trainable_stages', trainable_stages, tuple(range(NUM_STAGES + 1)))
    takers = (DETECTORS[detector], FasterRCNN, GeneralizedRCNNTransform)  # each passes the rest to the next
    known = {name for taker in takers for name in inspect.signature(taker).parameters}
    for name in kwargs.keys() - known:  # torchvision ignores unknown arguments
        raise TypeError(f"{name} is not an argument of torchvision's {DETECTORS[detector].__name__}: leave it out.")

    # this extractor keeps the model and its names whole
    body_args: Dict[str, Any] = dict(features_only=True, feature_cls='getter', out_indices=(-4, -3, -2, -1))
    architecture = backbone.split('.')[0]
    # the YCbCr baseline has the strides of any ResNet
    if is_model_in_modules(architecture, ['dct_resnet']) and not architecture.endswith('_ycbcr'):
        body_args['layer2_stride'] = 2
    body_args.update(backbone_kwargs or {})
    body = timm.create_model(backbone, pretrained=pretrained, in_chans=in_chans, **body_args)
    mean, std = (list(config_of(body)[key]) for key in ('mean', 'std'))
    if in_chans > len(mean):
        mean, std = [0.5] * in_chans, [0.5] * in_chans  # unknown for such images
    kwargs = dict(dict(image_mean=mean[:in_chans], image_std=std[:in_chans]), **kwargs)
    for stem in body.modules():
        if isinstance(stem, DCTStem):  # which undoes the normalization
            stem.mean, stem.std = tuple(kwargs['image_mean']), tuple(kwargs['image_std'])
            stem.init_non_persistent_buffers()
    pyramid = PyramidBackbone(body, fpn_channels)
    _freeze(body, trainable_stages, pretrained if freeze_norms is None else freeze_norms)
    return DETECTORS[detector](pyramid, num_classes, **kwargs)


def _freeze(body: nn.Module, trainable_stages: int, freeze_norms: bool) -> None:
    """Freeze the first stages and the batch norms of a network."""
    for name in _frozen_names(body, trainable_stages):
        body.get_parameter(name).requires_grad_(False)
    # A gate at identity multiplies by 0. If its norm were frozen, the convolution before it would never learn.
    new_units = [m for m in body.modules() if isinstance(m, LowFrequencyMemoryUnit) and m.is_identity()]
    new_gates = [gate for unit in new_units for gate in (unit.input_gate, unit.supplement_gate) if gate is not None]
    for unit in new_units:
        unit.requires_grad_(True)
    if freeze_norms:
        norms = [gate.norm for gate in new_gates]
        freeze_batch_norm_2d(body)
        for gate, norm in zip(new_gates, norms):
            gate.norm = norm


def _frozen_names(body: nn.Module, trainable_stages: int) -> List[str]:
    """Names of the parameters of frozen stages."""
    names = [name for name, _ in body.named_parameters()]
    if trainable_stages in (0, NUM_STAGES):
        return [] if trainable_stages else names
    model: Any = body.model
    info: Any = body.feature_info
    matcher = getattr(model, 'group_matcher', None)
    groups = group_parameters(model, matcher(coarse=True)) if matcher is not None else {}
    layer_of = {f'model.{name}': layer for layer, group in groups.items() for name in group}
    # the last layer of each stage
    ends = [max((layer for name, layer in layer_of.items() if name.startswith(f'model.{module}.')), default=-1)
            for module in info.module_name()]
    if -1 in ends:
        raise ValueError(
            f'timm does not report which parameters of {type(model).__name__} belong to which stage: give 0 or '
            f'{NUM_STAGES} for trainable_stages, and freeze parameters by name.')
    last = ends[0] - 1 if trainable_stages == len(ends) else ends[len(ends) - 1 - trainable_stages]
    return [name for name in names if layer_of[name] <= last]
