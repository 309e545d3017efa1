"""From the name of a network to a detector on a feature pyramid.

Papers: Feature Pyramid Networks for Object Detection, https://arxiv.org/abs/1612.03144; Mask R-CNN,
https://arxiv.org/abs/1703.06870; for networks on DCT coefficients, Learning in the Frequency Domain,
https://arxiv.org/abs/2002.12416, section 4.2. Everything after the network's features is torchvision's.
"""

import inspect
from typing import Any, Dict, List, Mapping, Optional, Set

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

from .._timm import config_of
from ..dct import DCTStem
from ..memory import LowFrequencyMemoryUnit
from ..memory.options import check_option

__all__ = ['PyramidBackbone', 'create_model']

DETECTORS = {'faster_rcnn': FasterRCNN, 'mask_rcnn': MaskRCNN}

# Image size over the size of each feature that the pyramid takes.
REDUCTIONS = [4, 8, 16, 32]

# The stem and the four stages, of which the last so many are trained.
NUM_STAGES = 5


class PyramidBackbone(nn.Module):
    """Features of a timm model and a feature pyramid over them.

    Args:
        body: A timm model built with `features_only=True` that puts out maps (N, C, H, W) at a quarter of the image's
            size, an eighth, a 16th and a 32nd. If it makes DCT coefficients, it is shown the image enlarged until that
            is so.
        out_channels: Channels of the pyramid.

    Raises:
        ValueError: The features have other sizes.
    """

    def __init__(self, body: nn.Module, out_channels: int = 256):
        super().__init__()
        info: Any = body.feature_info
        reductions = info.reduction()
        self.enlarge = 1
        if any(isinstance(module, DCTStem) for module in body.modules()):
            self.enlarge = max(1, reductions[-1] // REDUCTIONS[-1])
        if [r / self.enlarge for r in reductions] != REDUCTIONS:
            name = config_of(body).get('architecture') or type(body).__name__
            raise ValueError(
                f'The features of {name} are the image divided by {", ".join(map(str, reductions))}, expected by 4, 8, '
                '16, 32 (of a network on DCT coefficients, a multiple of these): give a network whose stages halve '
                'the map, which takes images and whose strides are its own (of a DCT ResNet, layer2_stride=2).')
        self.body = body
        self.fpn = FeaturePyramidNetwork(info.channels(), out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        """From images (N, in_chans, H, W) to maps of `out_channels` at 1/4, 1/8, 1/16, 1/32 and 1/64 of their size."""
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

    Images are normalised as the network's pretrained config says. A ResNet on DCT coefficients has strides 1 2 2 2 and
    sees the image enlarged twice, so that coefficients come at a quarter of the image's size, as in the paper; a
    MobileNetV2 on them sees it enlarged four times.

    Args:
        detector: 'mask_rcnn' or 'faster_rcnn'.
        backbone: Name of a timm model, of this package or not, with a tag if its weights are wanted.
        num_classes: Classes with the background, which is 0; 91 for COCO.
        pretrained: Whether the network starts from the weights that its name stands for. The detector itself has none.
        in_chans: Channels of the images; where they are more than the config's, they are normalised with 0.5.
        trainable_stages: How many of the network's stages are trained, counted from the last: 0 for none, 4 for all
            but the stem, 5 for all. 3 if None and `pretrained`, 5 if None and not.
        freeze_norms: Whether the network's batch norms keep statistics, scale and shift; `pretrained` if None. In the
            memory, gates at identity keep training whatever is frozen: they have learnt nothing yet.
        fpn_channels: Channels of the pyramid.
        backbone_kwargs: Arguments of `timm.create_model` for the network.
        **kwargs: Arguments of torchvision's `MaskRCNN` or `FasterRCNN`, such as `min_size` and `max_size`.

    Returns:
        The detector. In training mode it takes lists of images (in_chans, H, W) from 0 to 1 and of targets and returns
        losses, in eval mode it takes images and returns predictions, as torchvision says.

    Raises:
        ValueError: An argument is out of range, or the network has no such features.
        TypeError: An argument is unknown.
    """
    check_option('detector', detector, tuple(DETECTORS))
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f'num_classes is {num_classes!r}, expected 2 or more: the background counts as one.')
    trainable_stages = (3 if pretrained else NUM_STAGES) if trainable_stages is None else trainable_stages
    check_option('trainable_stages', trainable_stages, tuple(range(NUM_STAGES + 1)))
    takers = (DETECTORS[detector], FasterRCNN, GeneralizedRCNNTransform)  # the first passes others on
    known = {name for taker in takers for name in inspect.signature(taker).parameters}
    for name in kwargs:  # torchvision would pass over it
        if name not in known:
            raise TypeError(f'{name} is no argument of torchvision\'s {DETECTORS[detector].__name__}: leave it out.')

    body = _create_body(backbone, pretrained, in_chans, dict(backbone_kwargs or {}))
    kwargs = dict(_normalisation(body, in_chans), **kwargs)
    for stem in body.modules():
        if isinstance(stem, DCTStem):  # which undoes the normalisation
            stem.mean, stem.std = tuple(kwargs['image_mean']), tuple(kwargs['image_std'])
            stem.init_non_persistent_buffers()
    pyramid = PyramidBackbone(body, fpn_channels)
    _freeze(body, trainable_stages, pretrained if freeze_norms is None else freeze_norms)
    return DETECTORS[detector](pyramid, num_classes, **kwargs)


def _create_body(backbone: str, pretrained: bool, in_chans: int, kwargs: Dict[str, Any]) -> nn.Module:
    """The network's last four features."""
    name = backbone.split('.')[0]
    if ':' not in backbone and not timm.is_model(name):
        raise ValueError(f'timm knows no model named {backbone}: timm.list_models() has their names.')
    # the baseline on YCbCr has the strides of any ResNet
    if is_model_in_modules(name, ['dct_resnet']) and not name.endswith('_ycbcr'):
        kwargs.setdefault('layer2_stride', 2)
    # the extractor that asks the model itself, which leaves the model and its names whole
    extractor: Dict[str, Any] = dict(features_only=True, feature_cls='getter', out_indices=(-4, -3, -2, -1))
    try:
        body = timm.create_model(backbone, pretrained=pretrained, in_chans=in_chans, **dict(extractor, **kwargs))
    except (AssertionError, IndexError, AttributeError) as error:
        raise ValueError(
            f'{backbone} has no four features that timm can extract, which a feature pyramid takes: give another '
            'network.') from error
    if not hasattr(getattr(body, 'model', None), 'forward_intermediates'):
        raise ValueError(
            f'{backbone} has no forward_intermediates, by which timm extracts features: give another network.')
    return body


def _normalisation(body: nn.Module, in_chans: int) -> Dict[str, List[float]]:
    """Mean and standard deviation of images that a network takes, as the detectors' arguments."""
    mean, std = (list(config_of(body)[name]) for name in ('mean', 'std'))
    if in_chans > len(mean):
        mean, std = [0.5] * in_chans, [0.5] * in_chans  # nobody measured such images
    return dict(image_mean=mean[:in_chans], image_std=std[:in_chans])


def _freeze(body: nn.Module, trainable_stages: int, freeze_norms: bool) -> None:
    """Keep the first stages and the batch norms of a network from being trained."""
    # A gate at identity multiplies by 0, so that nothing before it would ever learn if that were frozen.
    new_units = [m for m in body.modules() if isinstance(m, LowFrequencyMemoryUnit) and m.is_identity()]
    new_gates = [gate for unit in new_units for gate in (unit.input_gate, unit.supplement_gate) if gate is not None]
    frozen = _frozen_names(body, trainable_stages)
    for name, parameter in body.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for module in new_units:
        module.requires_grad_(True)
    if freeze_norms:
        norms = [gate.norm for gate in new_gates]
        freeze_batch_norm_2d(body)
        for gate, norm in zip(new_gates, norms):
            gate.norm = norm


def _frozen_names(body: nn.Module, trainable_stages: int) -> Set[str]:
    """Names of the parameters of the stages that are not trained."""
    if trainable_stages == NUM_STAGES:
        return set()
    if trainable_stages == 0:
        return {name for name, _ in body.named_parameters()}
    model: Any = body.model
    matcher = getattr(model, 'group_matcher', None)
    groups = group_parameters(model, matcher(coarse=True)) if matcher is not None else {}
    layer_of = {name: layer for layer, names in groups.items() for name in names}
    info: Any = body.feature_info
    # the last layer of each stage
    ends = [
        max((layer for name, layer in layer_of.items() if name.startswith(f'{module}.')), default=-1)
        for module in info.module_name()
    ]
    if -1 in ends:
        raise ValueError(
            f'timm does not say which parameters of {type(model).__name__} belong to which stage: give 0 or '
            f'{NUM_STAGES} for trainable_stages, and freeze what is wanted by name.')
    last = ends[0] - 1 if trainable_stages == len(ends) else ends[len(ends) - 1 - trainable_stages]
    return {f'model.{name}' for name, layer in layer_of.items() if layer <= last}
