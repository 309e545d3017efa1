"""ResNets that read the DCT coefficients of the image.

Paper: Learning in the Frequency Domain (CVPR 2020), https://arxiv.org/abs/2002.12416. Stem and pooling are removed, and
layer1 reads the coefficients. layer2 has stride 1, as in the released code, or 2 with `layer2_stride=2`, as in the
paper's figure. The paper's baseline on YCbCr keeps stem and pooling.
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
from ._dct import create_dct_network

__all__ = ['DCTResNet', 'YCbCrResNet']

LAYERS = ('layer1', 'layer2', 'layer3', 'layer4')


class DCTResNet(ResNet):
    """ResNet on DCT coefficients. Its features are those of the four stages.

    Args:
        *args: As `timm.models.ResNet`.
        layer2_stride: As `mlfm_zoo.dct.to_dct`.
        **kwargs: As `timm.models.ResNet`, and the options of `mlfm_zoo.dct.DCTOptions`.

    Raises:
        ValueError: An argument is out of range.

    Example:
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
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Features of the stages.

        Args:
            x: Image batch (N, in_chans, H, W).
            indices: Features to return, the last so many if a number, all if None.
            norm: Without effect: there is no last norm.
            stop_early: Whether to stop at the last of them.
            output_fmt: 'NCHW'.
            intermediates_only: Whether to return nothing else.

        Returns:
            The features, after the last one computed unless `intermediates_only`.
        """
        take_indices, _ = feature_take_indices(len(LAYERS), indices)
        return super().forward_intermediates(
            x, [i + 1 for i in take_indices], norm, stop_early, output_fmt, intermediates_only)

    def prune_intermediate_layers(
            self,
            indices: Union[int, List[int]] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> List[int]:
        """Remove what some features do not need.

        Args:
            indices: Features to keep, as for `forward_intermediates`.
            prune_norm: Without effect: there is no last norm.
            prune_head: Whether to remove the classifier even if its features are kept.

        Returns:
            The features that are kept.
        """
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
        for name in ('dct_channels', 'dct_dense', 'dct_gate', 'dct_input', 'layer2_stride'):
            if name in kwargs:
                raise ValueError(f'{name} is given, but a network on YCbCr reads no coefficients: leave it out.')
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


def _create_dct_resnet(variant: str, pretrained: bool = False, **kwargs) -> DCTResNet:
    if kwargs.get('features_only') and kwargs.get('feature_cls', 'getter') != 'getter':
        raise ValueError(
            f"feature_cls is {kwargs['feature_cls']!r}, expected 'getter': others would count the stem as a feature.")
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return create_dct_network(DCTResNet, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


def _create_ycbcr_resnet(variant: str, pretrained: bool = False, **kwargs) -> YCbCrResNet:
    return create_dct_network(YCbCrResNet, variant, pretrained, **kwargs)


def _cfg(**kwargs) -> Dict[str, Any]:
    return {
        'num_classes': 1000, 'input_size': (3, 448, 448), 'pool_size': (14, 14),
        'crop_pct': 0.875, 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'layer1.0.conv1', 'classifier': 'fc', 'license': 'apache-2.0',
        'paper_ids': 'arXiv:2002.12416',
        **kwargs
    }


default_cfgs = default_cfgs_from_manifest({
    'dct_resnet50_24s': _cfg(),
    'dct_resnet50_24t': _cfg(),
    'dct_resnet50_24d': _cfg(),
    'dct_resnet50_48s': _cfg(),
    'dct_resnet50_48t': _cfg(),
    'dct_resnet50_64s': _cfg(),
    'dct_resnet50_64t': _cfg(),
    'dct_resnet50_192': _cfg(),
    'dct_resnet50_192_gate': _cfg(),
    'dct_resnet50_ycbcr': _cfg(input_size=(3, 224, 224), pool_size=(7, 7), first_conv='conv1'),
})

RESNET50 = dict(block=Bottleneck, layers=(3, 4, 6, 3))


@register_model
def dct_resnet50_24s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_24s', pretrained, **dict(dict(RESNET50, dct_channels='24s'), **kwargs))


@register_model
def dct_resnet50_24t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_24t', pretrained, **dict(dict(RESNET50, dct_channels='24t'), **kwargs))


@register_model
def dct_resnet50_24d(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, the learned selection."""
    return _create_dct_resnet('dct_resnet50_24d', pretrained, **dict(dict(RESNET50, dct_channels='24d'), **kwargs))


@register_model
def dct_resnet50_48s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 48 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_48s', pretrained, **dict(dict(RESNET50, dct_channels='48s'), **kwargs))


@register_model
def dct_resnet50_48t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 48 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_48t', pretrained, **dict(dict(RESNET50, dct_channels='48t'), **kwargs))


@register_model
def dct_resnet50_64s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 64 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_64s', pretrained, **dict(dict(RESNET50, dct_channels='64s'), **kwargs))


@register_model
def dct_resnet50_64t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 64 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_64t', pretrained, **dict(dict(RESNET50, dct_channels='64t'), **kwargs))


@register_model
def dct_resnet50_192(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on all 192 coefficients."""
    return _create_dct_resnet('dct_resnet50_192', pretrained, **dict(dict(RESNET50, dct_channels='192'), **kwargs))


@register_model
def dct_resnet50_192_gate(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on the coefficients among all 192 that its gate opens."""
    model_args = dict(RESNET50, dct_channels='192', dct_gate=True)
    return _create_dct_resnet('dct_resnet50_192_gate', pretrained, **dict(model_args, **kwargs))


@register_model
def dct_resnet50_ycbcr(pretrained: bool = False, **kwargs) -> YCbCrResNet:
    """ResNet-50 on YCbCr pixels: the paper's baseline, at the image size used for RGB."""
    return _create_ycbcr_resnet('dct_resnet50_ycbcr', pretrained, **dict(RESNET50, **kwargs))
