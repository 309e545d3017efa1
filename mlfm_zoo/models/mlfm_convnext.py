"""ConvNeXt with low-frequency memory.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. The authors' ConvNeXt with memory is not released. The sites are
this project's choice: after the stem and after every stage.

The trunks are timm's. timm lacks some variants of the paper, which come from InceptionNeXt
(https://arxiv.org/abs/2303.16900, table 1). They have a smaller depthwise kernel (k3, k5), or a depthwise convolution
on the last 1/n of the channels only (par1_n).
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn as nn
from timm.layers import get_device_dtype
from timm.models import ConvNeXt, register_model

from ..hub.configs import default_cfgs_from_manifest
from ..memory import MemoryOptions, MemorySite, memory_family
from ._create import base_cfg, create_mlfm_model
from ._network import MemoryNetwork

__all__ = ['ConvNeXtMemory', 'MLFMConvNeXt', 'PartialConvNeXt']

# Arguments of ConvNeXt-T and its variants.
TINY = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))


class PartialDepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution on the last channels of a feature; the first pass through.

    Args:
        num_chs: Channels of the feature.
        conv_chs: How many of them, the last, are convolved.
        **kwargs: As `torch.nn.Conv2d`.
    """

    def __init__(self, num_chs: int, conv_chs: int, **kwargs):
        super().__init__(conv_chs, conv_chs, groups=conv_chs, **kwargs)
        self.split_chs = [num_chs - conv_chs, conv_chs]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed, x = torch.split(x, self.split_chs, dim=1)
        return torch.cat([passed, self._conv_forward(x, self.weight, self.bias)], dim=1)


class PartialConvNeXt(ConvNeXt):
    """ConvNeXt with partial depthwise convolutions: the trunk of the par1_n variants.

    Args:
        *args: As `timm.models.ConvNeXt`.
        conv_ratio: Share of the channels that the depthwise convolutions read, above 0 and at most 1.
        **kwargs: As `timm.models.ConvNeXt`.

    Raises:
        ValueError: `conv_ratio` is out of range.

    Examples:
        >>> model = PartialConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), conv_ratio=1 / 8)
        >>> model.stages[0].blocks[0].conv_dw.in_channels
        1
    """

    def __init__(self, *args, conv_ratio: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        stages: List[Any] = list(self.stages)
        smallest = min(stage.blocks[0].conv_dw.out_channels for stage in stages)
        if not isinstance(conv_ratio, (int, float)) or not 1 <= int(smallest * conv_ratio) <= smallest:
            raise ValueError(
                f'conv_ratio is {conv_ratio!r}, expected a number that leaves at least 1 of {smallest} channels, and '
                'at most 1.')
        if conv_ratio == 1:
            return
        for stage in stages:
            for block in stage.blocks:
                conv = block.conv_dw
                block.conv_dw = PartialDepthwiseConv2d(
                    conv.out_channels, int(conv.out_channels * conv_ratio), kernel_size=conv.kernel_size,
                    stride=conv.stride, padding=conv.padding, dilation=conv.dilation, bias=conv.bias is not None,
                    **get_device_dtype(self))
                # as timm's ConvNeXt initializes its convolutions
                nn.init.trunc_normal_(block.conv_dw.weight, std=.02)
                if block.conv_dw.bias is not None:
                    nn.init.zeros_(block.conv_dw.bias)


class ConvNeXtMemory(MemoryNetwork):
    """Base of ConvNeXt and MetaNeXt with memory, listed before timm's class."""

    def memory_sites(self, options: MemoryOptions) -> Tuple[List[MemorySite], Dict[str, Optional[int]]]:
        conv = [m for m in self.stem if isinstance(m, nn.Conv2d)][-1]
        # a patch stem and the downsampling between stages do not pad and so round odd sides down
        pads = conv.padding != (0, 0)
        sites = [MemorySite('stem', conv.out_channels, self.feature_info[0]['reduction'], ceil_mode=pads)]
        sites += [
            MemorySite(i['module'], i['num_chs'], i['reduction'], ceil_mode=False)
            for i in self.feature_info[:len(self.stages)]
        ]
        return sites, {'stem': None, 'stages': len(self.stages)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(
            stem=r'^(?:memory\.)?stem',
            blocks=r'^(?:memory\.)?stages\.(\d+)' if coarse else [
                (r'^stages\.(\d+)\.downsample', (0,)),
                (r'^stages\.(\d+)\.blocks\.(\d+)', None),
                (r'^memory\.stages\.(\d+)', (99,)),
                (r'^norm_pre', (99999,)),
            ],
        )

    def _feature_stages(self) -> List[int]:
        return [i + 1 for i in range(len(self.stages))]

    def _forward_stages(self, x: torch.Tensor, indices: List[int], end: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        features: List[torch.Tensor] = []
        bands = self.memory.image_bands(x)
        x, memory = self.memory.stem(self.stem(x), bands[self.memory.first_level], bands)
        for i, (stage, unit) in enumerate(zip(self.stages, self.memory.stages)):
            if i < end:
                x, memory = unit(stage(x), memory, bands)
                if i + 1 in indices:
                    features.append(x)
        return x, features


@memory_family(ConvNeXt, PartialConvNeXt)
class MLFMConvNeXt(ConvNeXtMemory, PartialConvNeXt):
    """ConvNeXt with a memory unit after the stem and after every stage.

    Args:
        *args: As `PartialConvNeXt`.
        **kwargs: As `PartialConvNeXt`, and the options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: A memory option or `conv_ratio` is out of range.

    Examples:
        >>> model = MLFMConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=10)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def _forward_end(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm_pre(x)

    def _ends_with_norm(self) -> bool:
        return True


def _create_mlfm_convnext(variant: str, pretrained: bool, model_args: Dict[str, Any], **kwargs) -> ConvNeXt:
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return create_mlfm_model(
        MLFMConvNeXt, PartialConvNeXt, variant, pretrained, model_args, feature_cfg=feature_cfg, **kwargs)


default_cfgs = default_cfgs_from_manifest(dict.fromkeys(
    ('mlfm_convnext_tiny_k3_par1_8', 'mlfm_convnext_tiny_k3_par1_4', 'mlfm_convnext_tiny_k3_par1_2',
     'mlfm_convnext_tiny_k3', 'mlfm_convnext_tiny_k5', 'mlfm_convnext_tiny', 'mlfm_convnext_small'),
    base_cfg(first_conv='stem.0', classifier='head.fc')))


@register_model
def mlfm_convnext_tiny_k3_par1_8(pretrained: bool = False, **kwargs) -> ConvNeXt:
    """ConvNeXt-T with memory, 3x3 depthwise convolutions on an eighth of the channels."""
    model_args = dict(TINY, kernel_sizes=3, conv_ratio=1 / 8)
    return _create_mlfm_convnext('mlfm_convnext_tiny_k3_par1_8', pretrained, model_args, **kwargs)


@register_model
def mlfm_convnext_tiny_k3_par1_4(pretrained: bool = False, **kwargs) -> ConvNeXt:
    """ConvNeXt-T with memory, 3x3 depthwise convolutions on a quarter of the channels."""
    model_args = dict(TINY, kernel_sizes=3, conv_ratio=1 / 4)
    return _create_mlfm_convnext('mlfm_convnext_tiny_k3_par1_4', pretrained, model_args, **kwargs)


@register_model
def mlfm_convnext_tiny_k3_par1_2(pretrained: bool = False, **kwargs) -> ConvNeXt:
    """ConvNeXt-T with memory, 3x3 depthwise convolutions on half of the channels."""
    model_args = dict(TINY, kernel_sizes=3, conv_ratio=1 / 2)
    return _create_mlfm_convnext('mlfm_convnext_tiny_k3_par1_2', pretrained, model_args, **kwargs)


@register_model
def mlfm_convnext_tiny_k3(pretrained: bool = False, **kwargs) -> ConvNeXt:
    """ConvNeXt-T with memory, 3x3 depthwise convolutions."""
    model_args = dict(TINY, kernel_sizes=3)
    return _create_mlfm_convnext('mlfm_convnext_tiny_k3', pretrained, model_args, **kwargs)


@register_model
def mlfm_convnext_tiny_k5(pretrained: bool = False, **kwargs) -> ConvNeXt:
    """ConvNeXt-T with memory, 5x5 depthwise convolutions."""
    model_args = dict(TINY, kernel_sizes=5)
    return _create_mlfm_convnext('mlfm_convnext_tiny_k5', pretrained, model_args, **kwargs)


@register_model
def mlfm_convnext_tiny(pretrained: bool = False, **kwargs) -> ConvNeXt:
    """ConvNeXt-T with memory."""
    return _create_mlfm_convnext('mlfm_convnext_tiny', pretrained, TINY, **kwargs)


@register_model
def mlfm_convnext_small(pretrained: bool = False, **kwargs) -> ConvNeXt:
    """ConvNeXt-S with memory."""
    model_args = dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768))
    return _create_mlfm_convnext('mlfm_convnext_small', pretrained, model_args, **kwargs)
