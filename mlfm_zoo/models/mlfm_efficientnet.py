"""MobileNetV2 and EfficientNet with low-frequency memory.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. MobileNetV2 has the sites of the authors' code. Its update is 'cat', as
in their released x0.1 checkpoint; their code has 'add'. Their EfficientNet is not released: here it has the sites of
MobileNetV2, whose stages have the same strides.

The trunks are timm's EfficientNet class. timm lacks MobileNetV2 x0.1, which rounds its channels to multiples of 4.
"""

from functools import partial
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from timm.models import EfficientNet, checkpoint_seq, register_model

from .._timm import decode_arch_def, resolve_act_layer, resolve_bn_args, round_channels
from ..hub.configs import default_cfgs_from_manifest
from ..memory import MemoryOptions, MemorySite, memory_family
from ._create import base_cfg, create_mlfm_model
from ._network import MemoryNetwork, rounds_up

__all__ = ['EfficientNetMemory', 'MLFMEfficientNet', 'mobilenetv2_args', 'stage_site']


def stage_site(trunk: Any, stage: int) -> MemorySite:
    """The site after a stage of a timm EfficientNet or MobileNetV3, counted from 0."""
    blocks = trunk.blocks[stage]
    num_chs = blocks[-1].feature_info('bottleneck')['num_chs']
    # feature_info lists the last stage of each resolution; `stage` counts from 1 there
    reduction = next(info['reduction'] for info in trunk.feature_info if info['stage'] > stage)
    return MemorySite(f'blocks.{stage}', num_chs, reduction, rounds_up(blocks))


class EfficientNetMemory(MemoryNetwork):
    """Base of EfficientNet and MobileNetV3 with memory, listed before timm's class."""

    def as_sequential(self) -> nn.Sequential:
        raise NotImplementedError('A sequence of layers would bypass the memory: call the model itself.')

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(
            stem=r'^conv_stem|bn1|memory\.stem',
            blocks=[
                (r'^blocks\.(\d+)' if coarse else r'^blocks\.(\d+)\.(\d+)', None),
                (r'^memory\.blocks\.(\d+)', None if coarse else (99,)),
            ],
        )

    def _feature_stages(self) -> List[int]:
        return self.stage_ends

    def _forward_stages(self, x: torch.Tensor, indices: List[int], end: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        features: List[torch.Tensor] = []
        bands = self.memory.image_bands(x)
        x = self.bn1(self.conv_stem(x))
        x, memory = self.memory.stem(x, bands[self.memory.first_level], bands)
        if 0 in indices:
            features.append(x)
        for i, (stage, unit) in enumerate(zip(self.blocks, self.memory.blocks)):
            if i < end:
                x = stage(x) if torch.jit.is_scripting() or not self.grad_checkpointing else checkpoint_seq(stage, x)
                x, memory = unit(x, memory, bands)
                if i + 1 in indices:
                    features.append(x)
        return x, features

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
            extra_blocks: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        stages = list(range(len(self.blocks) + 1)) if extra_blocks else self.stage_ends
        return self._take_features(x, stages, False, indices, stop_early, output_fmt, intermediates_only)


@memory_family(EfficientNet)
class MLFMEfficientNet(EfficientNetMemory, EfficientNet):
    """EfficientNet with memory after its stem and all stages except first and last.

    Args:
        *args: As `timm.models.EfficientNet`.
        **kwargs: As `timm.models.EfficientNet`, and the options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: A memory option is out of range.

    Examples:
        >>> model = timm.create_model('mlfm_mobilenetv2_010', num_classes=10)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def memory_sites(self, options: MemoryOptions) -> Tuple[List[MemorySite], Dict[str, Optional[int]]]:
        sites = [MemorySite('stem', self.conv_stem.out_channels, 2, rounds_up(self.conv_stem))]
        num_stages = self.feature_info[-1]['stage']  # also if the trunk is pruned
        sites += [stage_site(self, i) for i in range(1, len(self.blocks)) if i < num_stages - 1]
        return sites, {'stem': None, 'blocks': len(self.blocks)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        groups = super().group_matcher(coarse)
        groups['blocks'].append((r'conv_head|bn2', (99999,)))
        return groups

    def _forward_end(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv_head(x))


# Blocks of each stage, https://arxiv.org/abs/1801.04381, table 2.
MOBILENETV2 = [
    ['ds_r1_k3_s1_c16'],
    ['ir_r2_k3_s2_e6_c24'],
    ['ir_r3_k3_s2_e6_c32'],
    ['ir_r4_k3_s2_e6_c64'],
    ['ir_r3_k3_s1_e6_c96'],
    ['ir_r3_k3_s2_e6_c160'],
    ['ir_r1_k3_s1_e6_c320'],
]

# Blocks of each stage, https://arxiv.org/abs/1905.11946, table 1.
EFFICIENTNET = [
    ['ds_r1_k3_s1_e1_c16_se0.25'],
    ['ir_r2_k3_s2_e6_c24_se0.25'],
    ['ir_r2_k5_s2_e6_c40_se0.25'],
    ['ir_r3_k3_s2_e6_c80_se0.25'],
    ['ir_r3_k5_s1_e6_c112_se0.25'],
    ['ir_r4_k5_s2_e6_c192_se0.25'],
    ['ir_r1_k3_s1_e6_c320_se0.25'],
]


def mobilenetv2_args(kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments that make timm's EfficientNet a MobileNetV2; see `_trunk_args`."""
    return _trunk_args(kwargs, MOBILENETV2, 'relu6', min_features=1280)


def _trunk_args(kwargs: Dict[str, Any], stages: List[List[str]], act_layer: str, min_features: int) -> Dict[str, Any]:
    """Arguments of timm's EfficientNet; those of widths, depths, norms and activations are popped from `kwargs`."""
    round_chs_fn = partial(
        round_channels, multiplier=kwargs.pop('channel_multiplier', 1.0), divisor=kwargs.pop('channel_divisor', 8))
    return dict(
        block_args=decode_arch_def(stages, kwargs.pop('depth_multiplier', 1.0)),
        num_features=max(min_features, round_chs_fn(1280)),
        stem_size=32,
        round_chs_fn=round_chs_fn,
        norm_layer=kwargs.pop('norm_layer', None) or partial(nn.BatchNorm2d, **resolve_bn_args(kwargs)),
        act_layer=resolve_act_layer(kwargs, act_layer),
    )


def _gen_mobilenetv2(variant: str, pretrained: bool, scale: Dict[str, Any], **kwargs) -> EfficientNet:
    kwargs = {**scale, **kwargs}
    model_args = mobilenetv2_args(kwargs)
    memory_args = dict(memory_update='cat', memory_forget_last=True)
    return create_mlfm_model(MLFMEfficientNet, EfficientNet, variant, pretrained, model_args, memory_args, **kwargs)


def _gen_efficientnet(variant: str, pretrained: bool, scale: Dict[str, Any], **kwargs) -> EfficientNet:
    kwargs = {**scale, **kwargs}
    model_args = _trunk_args(kwargs, EFFICIENTNET, 'swish', min_features=0)
    return create_mlfm_model(MLFMEfficientNet, EfficientNet, variant, pretrained, model_args, **kwargs)


LAYERS = dict(first_conv='conv_stem', classifier='classifier')

default_cfgs = default_cfgs_from_manifest({
    **dict.fromkeys(
        ('mlfm_mobilenetv2_010', 'mlfm_mobilenetv2_035', 'mlfm_mobilenetv2_050', 'mlfm_mobilenetv2_075',
         'mlfm_mobilenetv2_100'),
        base_cfg(interpolation='bilinear', **LAYERS)),
    # The authors' settings for EfficientNet are not known; sizes are those timm trained these trunks at.
    'mlfm_efficientnet_b0': base_cfg(**LAYERS),
    'mlfm_efficientnet_b1': base_cfg(input_size=(3, 240, 240), pool_size=(8, 8), **LAYERS),
    'mlfm_efficientnet_b2': base_cfg(input_size=(3, 256, 256), pool_size=(8, 8), **LAYERS),
    'mlfm_efficientnet_b3': base_cfg(input_size=(3, 288, 288), pool_size=(9, 9), **LAYERS),
    'mlfm_efficientnet_b4': base_cfg(input_size=(3, 320, 320), pool_size=(10, 10), **LAYERS),
})


@register_model
def mlfm_mobilenetv2_010(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 x0.1 with memory; channels are rounded to multiples of 4."""
    scale = dict(channel_multiplier=0.1, channel_divisor=4)
    return _gen_mobilenetv2('mlfm_mobilenetv2_010', pretrained, scale, **kwargs)


@register_model
def mlfm_mobilenetv2_035(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 x0.35 with memory."""
    return _gen_mobilenetv2('mlfm_mobilenetv2_035', pretrained, dict(channel_multiplier=0.35), **kwargs)


@register_model
def mlfm_mobilenetv2_050(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 x0.5 with memory."""
    return _gen_mobilenetv2('mlfm_mobilenetv2_050', pretrained, dict(channel_multiplier=0.5), **kwargs)


@register_model
def mlfm_mobilenetv2_075(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 x0.75 with memory."""
    return _gen_mobilenetv2('mlfm_mobilenetv2_075', pretrained, dict(channel_multiplier=0.75), **kwargs)


@register_model
def mlfm_mobilenetv2_100(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 x1.0 with memory."""
    return _gen_mobilenetv2('mlfm_mobilenetv2_100', pretrained, {}, **kwargs)


@register_model
def mlfm_efficientnet_b0(pretrained: bool = False, **kwargs) -> EfficientNet:
    """EfficientNet-B0 with memory."""
    return _gen_efficientnet('mlfm_efficientnet_b0', pretrained, {}, **kwargs)


@register_model
def mlfm_efficientnet_b1(pretrained: bool = False, **kwargs) -> EfficientNet:
    """EfficientNet-B1 with memory."""
    return _gen_efficientnet('mlfm_efficientnet_b1', pretrained, dict(depth_multiplier=1.1), **kwargs)


@register_model
def mlfm_efficientnet_b2(pretrained: bool = False, **kwargs) -> EfficientNet:
    """EfficientNet-B2 with memory."""
    scale = dict(channel_multiplier=1.1, depth_multiplier=1.2)
    return _gen_efficientnet('mlfm_efficientnet_b2', pretrained, scale, **kwargs)


@register_model
def mlfm_efficientnet_b3(pretrained: bool = False, **kwargs) -> EfficientNet:
    """EfficientNet-B3 with memory."""
    scale = dict(channel_multiplier=1.2, depth_multiplier=1.4)
    return _gen_efficientnet('mlfm_efficientnet_b3', pretrained, scale, **kwargs)


@register_model
def mlfm_efficientnet_b4(pretrained: bool = False, **kwargs) -> EfficientNet:
    """EfficientNet-B4 with memory."""
    scale = dict(channel_multiplier=1.4, depth_multiplier=1.8)
    return _gen_efficientnet('mlfm_efficientnet_b4', pretrained, scale, **kwargs)
