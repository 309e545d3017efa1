"""RegNetX and RegNetY with low-frequency memory.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. Sites are those of the authors' code, which is released for one set of
widths only. The trunks are timm's.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn as nn
from timm.models import RegNet, RegNetCfg, register_model

from ..hub.configs import default_cfgs_from_manifest
from ..memory import MemoryOptions, MemorySite, memory_family
from ._create import base_cfg, create_mlfm_model
from ._network import MemoryNetwork

__all__ = ['MLFMRegNet']


@memory_family(RegNet)
class MLFMRegNet(MemoryNetwork, RegNet):
    """RegNet with a memory unit after the stem and after every stage.

    Args:
        *args: As `timm.models.RegNet`.
        **kwargs: As `timm.models.RegNet`, and the options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: A memory option is out of range.

    Examples:
        >>> model = timm.create_model('mlfm_regnetx_002', num_classes=10)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def memory_sites(self, options: MemoryOptions) -> Tuple[List[MemorySite], Dict[str, Optional[int]]]:
        there = [i for i in self.feature_info if not isinstance(getattr(self, i['module']), nn.Identity)]
        sites = [MemorySite(i['module'], i['num_chs'], i['reduction']) for i in there]
        return sites, {i['module']: None for i in self.feature_info}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(
            stem=r'^(?:memory\.)?stem',
            blocks=r'^(?:memory\.)?s(\d+)' if coarse else [
                (r'^s(\d+)\.b(\d+)', None),
                (r'^memory\.s(\d+)', (99,)),
            ],
        )

    def _forward_stages(self, x: torch.Tensor, indices: List[int], end: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        features: List[torch.Tensor] = []
        bands = self.memory.image_bands(x)
        x, memory = self.memory.stem(self.stem(x), bands[self.memory.first_level], bands)
        if 0 in indices:
            features.append(x)
        if end >= 1:
            x, memory = self.memory.s1(self.s1(x), memory, bands)
            if 1 in indices:
                features.append(x)
        if end >= 2:
            x, memory = self.memory.s2(self.s2(x), memory, bands)
            if 2 in indices:
                features.append(x)
        if end >= 3:
            x, memory = self.memory.s3(self.s3(x), memory, bands)
            if 3 in indices:
                features.append(x)
        if end >= 4:
            x, memory = self.memory.s4(self.s4(x), memory, bands)
            if 4 in indices:
                features.append(x)
        return x, features

    def _forward_end(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_conv(x)


def _create_mlfm_regnet(variant: str, pretrained: bool, model_cfg: RegNetCfg, **kwargs) -> RegNet:
    return create_mlfm_model(MLFMRegNet, RegNet, variant, pretrained, dict(model_cfg=model_cfg), **kwargs)


default_cfgs = default_cfgs_from_manifest(dict.fromkeys(
    ('mlfm_regnetx_002', 'mlfm_regnetx_004', 'mlfm_regnetx_006', 'mlfm_regnetx_008',
     'mlfm_regnety_002', 'mlfm_regnety_004', 'mlfm_regnety_006', 'mlfm_regnety_008'),
    base_cfg(input_size=(3, 256, 256), pool_size=(8, 8), crop_pct=1.0, interpolation='bilinear',
             first_conv='stem.conv', classifier='head.fc')))


@register_model
def mlfm_regnetx_002(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetX-200MF with memory."""
    model_cfg = RegNetCfg(w0=24, wa=36.44, wm=2.49, group_size=8, depth=13)
    return _create_mlfm_regnet('mlfm_regnetx_002', pretrained, model_cfg, **kwargs)


@register_model
def mlfm_regnetx_004(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetX-400MF with memory."""
    model_cfg = RegNetCfg(w0=24, wa=24.48, wm=2.54, group_size=16, depth=22)
    return _create_mlfm_regnet('mlfm_regnetx_004', pretrained, model_cfg, **kwargs)


@register_model
def mlfm_regnetx_006(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetX-600MF with memory."""
    model_cfg = RegNetCfg(w0=48, wa=36.97, wm=2.24, group_size=24, depth=16)
    return _create_mlfm_regnet('mlfm_regnetx_006', pretrained, model_cfg, **kwargs)


@register_model
def mlfm_regnetx_008(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetX-800MF with memory."""
    model_cfg = RegNetCfg(w0=56, wa=35.73, wm=2.28, group_size=16, depth=16)
    return _create_mlfm_regnet('mlfm_regnetx_008', pretrained, model_cfg, **kwargs)


@register_model
def mlfm_regnety_002(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetY-200MF with memory."""
    model_cfg = RegNetCfg(w0=24, wa=36.44, wm=2.49, group_size=8, depth=13, se_ratio=0.25)
    return _create_mlfm_regnet('mlfm_regnety_002', pretrained, model_cfg, **kwargs)


@register_model
def mlfm_regnety_004(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetY-400MF with memory."""
    model_cfg = RegNetCfg(w0=48, wa=27.89, wm=2.09, group_size=8, depth=16, se_ratio=0.25)
    return _create_mlfm_regnet('mlfm_regnety_004', pretrained, model_cfg, **kwargs)


@register_model
def mlfm_regnety_006(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetY-600MF with memory."""
    model_cfg = RegNetCfg(w0=48, wa=32.54, wm=2.32, group_size=16, depth=15, se_ratio=0.25)
    return _create_mlfm_regnet('mlfm_regnety_006', pretrained, model_cfg, **kwargs)


@register_model
def mlfm_regnety_008(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetY-800MF with memory."""
    model_cfg = RegNetCfg(w0=56, wa=38.84, wm=2.4, group_size=16, depth=14, se_ratio=0.25)
    return _create_mlfm_regnet('mlfm_regnety_008', pretrained, model_cfg, **kwargs)
