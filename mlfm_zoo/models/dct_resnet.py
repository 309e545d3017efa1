"""ResNets that read the DCT coefficients of the image.

Paper: Learning in the Frequency Domain (CVPR 2020), https://arxiv.org/abs/2002.12416. Stem and pooling are removed, and
layer1 reads the coefficients. layer2 has stride 1, as in the released code, or 2 with `layer2_stride=2`, as in
timm's ResNets. The paper's baseline on YCbCr keeps stem and pooling.
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import Bottleneck, ResNet, register_model

from .._timm import feature_take_indices
from ..dct.network import DCTOptions
from ..dct.stem import YCbCrConv2d, YCbCrStem
from ..hub.configs import default_cfgs_from_manifest
from ._create import base_cfg
from ._dct import create_dct_network

__all__ = ['DCTResNet', 'YCbCrResNet']

LAYERS = ('layer1', 'layer2', 'layer3', 'layer4')
RESNET50 = dict(block=Bottleneck, layers=(3, 4, 6, 3))


class DCTResNet(ResNet):
    """ResNet on DCT coefficients. Its features are those of the four stages.

    Args:
        *args: As `timm.models.ResNet`.
        layer2_stride: As `mlfm_zoo.dct.to_dct`.
        **kwargs: As `timm.models.ResNet`, and the options of `mlfm_zoo.dct.DCTOptions`.

    Raises:
        ValueError: An argument is out of range.

    Examples:
        >>> model = timm.create_model('dct_resnet50_24s', dct_input='coefficients', num_classes=10).eval()
        >>> model(torch.randn(1, 24, 8, 8)).shape
        torch.Size([1, 10])
    """

    def __init__(self, *args: Any, layer2_stride: int = 1, **kwargs: Any):
        options = DCTOptions.take_from(kwargs)
        super().__init__(*args, **kwargs)
        options.turn(self, layer2_stride)
        self.feature_info = self.feature_info[1:]

    def forward_intermediates(
            self, x: torch.Tensor, indices: Optional[Union[int, List[int]]] = None, *args: Any, **kwargs: Any,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Compute features of the stages, counted from 0, as timm's ResNet does."""
        take_indices, _ = feature_take_indices(len(LAYERS), indices)
        return super().forward_intermediates(x, [i + 1 for i in take_indices], *args, **kwargs)

    def prune_intermediate_layers(
            self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True) -> List[int]:
        """Remove what the features of some stages do not need, as timm's ResNet does."""
        take_indices, max_index = feature_take_indices(len(LAYERS), indices)
        for name in LAYERS[max_index + 1:]:
            setattr(self, name, nn.Sequential())
        self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or max_index < len(LAYERS) - 1:
            self.reset_classifier(0, '')
        return take_indices


class YCbCrResNet(ResNet):
    """ResNet whose first convolution reads normalized Y, Cb, Cr; the rest is timm's.

    Args:
        *args: As `timm.models.ResNet`.
        in_chans: Channels of the image, 3 or 1.
        dct_statistics: As `statistics` of `mlfm_zoo.dct.DCTStem`; those of the three constant coefficients are used.
        dct_mean: Mean that images are normalized with.
        dct_std: Standard deviation that images are normalized with.
        **kwargs: As `timm.models.ResNet`, except a `stem_type` of several convolutions.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
            self,
            *args: Any,
            in_chans: int = 3,
            dct_statistics: Optional[Sequence[Sequence[float]]] = None,
            dct_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
            dct_std: Sequence[float] = IMAGENET_DEFAULT_STD,
            **kwargs: Any,
    ):
        if kwargs.get('stem_type'):
            raise ValueError(
                f"stem_type is {kwargs['stem_type']!r}, expected '': YCbCr is read by a stem of one convolution.")
        super().__init__(*args, **kwargs)
        dd = get_device_dtype(self)
        stem = YCbCrStem(in_chans=in_chans, mean=dct_mean, std=dct_std, statistics=dct_statistics, **dd)
        old: Any = self.conv1
        conv1 = YCbCrConv2d(3, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False, stem=stem, **dd)
        conv1.weight = old.weight
        self.add_module('conv1', conv1)
        self.in_chans = in_chans


def _create_dct_resnet(variant: str, pretrained: bool, dct_args: Dict[str, Any], **kwargs) -> DCTResNet:
    if kwargs.get('features_only') and kwargs.get('feature_cls', 'getter') != 'getter':
        raise ValueError(
            f"feature_cls is {kwargs['feature_cls']!r}, expected 'getter': others would count the stem as a feature.")
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return create_dct_network(
        DCTResNet, variant, pretrained, {**RESNET50, **dct_args}, feature_cfg=feature_cfg, **kwargs)


CONFIG = dict(num_classes=1000, interpolation='bilinear', classifier='fc', paper_ids='arXiv:2002.12416')

default_cfgs = default_cfgs_from_manifest({
    **dict.fromkeys(
        ('dct_resnet50_24s', 'dct_resnet50_24t', 'dct_resnet50_24d', 'dct_resnet50_48s', 'dct_resnet50_48t',
         'dct_resnet50_64s', 'dct_resnet50_64t', 'dct_resnet50_192', 'dct_resnet50_192_gate'),
        base_cfg(input_size=(3, 448, 448), pool_size=(14, 14), first_conv='layer1.0.conv1', **CONFIG)),
    'dct_resnet50_ycbcr': base_cfg(first_conv='conv1', **CONFIG),
})


@register_model
def dct_resnet50_24s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_24s', pretrained, dict(dct_channels='24s'), **kwargs)


@register_model
def dct_resnet50_24t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_24t', pretrained, dict(dct_channels='24t'), **kwargs)


@register_model
def dct_resnet50_24d(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, the learned selection."""
    return _create_dct_resnet('dct_resnet50_24d', pretrained, dict(dct_channels='24d'), **kwargs)


@register_model
def dct_resnet50_48s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 48 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_48s', pretrained, dict(dct_channels='48s'), **kwargs)


@register_model
def dct_resnet50_48t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 48 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_48t', pretrained, dict(dct_channels='48t'), **kwargs)


@register_model
def dct_resnet50_64s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 64 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_64s', pretrained, dict(dct_channels='64s'), **kwargs)


@register_model
def dct_resnet50_64t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 64 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_64t', pretrained, dict(dct_channels='64t'), **kwargs)


@register_model
def dct_resnet50_192(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on all 192 coefficients."""
    return _create_dct_resnet('dct_resnet50_192', pretrained, dict(dct_channels='192'), **kwargs)


@register_model
def dct_resnet50_192_gate(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on the coefficients among all 192 that its gate opens."""
    dct_args = dict(dct_channels='192', dct_gate=True)
    return _create_dct_resnet('dct_resnet50_192_gate', pretrained, dct_args, **kwargs)


@register_model
def dct_resnet50_ycbcr(pretrained: bool = False, **kwargs) -> YCbCrResNet:
    """ResNet-50 on YCbCr pixels: the paper's baseline, at the image size used for RGB."""
    return create_dct_network(YCbCrResNet, 'dct_resnet50_ycbcr', pretrained, RESNET50, **kwargs)
