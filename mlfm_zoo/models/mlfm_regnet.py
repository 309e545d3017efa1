"""RegNetX and RegNetY with low-frequency memory.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. Sites are those of the authors' code, which is released for one set of
widths only. The trunks are timm's.
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import RegNet, RegNetCfg, register_model

from ..hub.configs import default_cfgs_from_manifest
from ..memory import MemoryOptions, MemorySite, memory_family
from ._create import create_mlfm_model
from ._features import take_features
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

    Example:
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

    def _forward_stages(
            self,
            x: torch.Tensor,
            indices: List[int],
            last: int = 4,
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Run trunk and memory together.

        Args:
            x: Image batch (N, in_chans, H, W).
            indices: Features to keep, 0 the stem's, 1 to 4 the stages'.
            last: Stage after which to stop, 0 for the stem.

        Returns:
            The last feature, and the kept features in order.
        """
        features: List[torch.Tensor] = []
        bands = self.memory.image_bands(x)
        x, memory = self.memory.stem(self.stem(x), bands[self.memory.first_level], bands)
        if 0 in indices:
            features.append(x)
        if last >= 1:
            x, memory = self.memory.s1(self.s1(x), memory, bands)
            if 1 in indices:
                features.append(x)
        if last >= 2:
            x, memory = self.memory.s2(self.s2(x), memory, bands)
            if 2 in indices:
                features.append(x)
        if last >= 3:
            x, memory = self.memory.s3(self.s3(x), memory, bands)
            if 3 in indices:
                features.append(x)
        if last >= 4:
            x, memory = self.memory.s4(self.s4(x), memory, bands)
            if 4 in indices:
                features.append(x)
        return x, features

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self._forward_stages(x, [])
        return self.final_conv(x)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        take_indices, max_index = take_features(5, indices, output_fmt)
        last = max_index if stop_early else 4
        x, intermediates = self._forward_stages(x, take_indices, last)
        if intermediates_only:
            return intermediates
        if last == 4:
            x = self.final_conv(x)
        return x, intermediates


def _create_mlfm_regnet(variant: str, pretrained: bool = False, **kwargs) -> RegNet:
    return create_mlfm_model(MLFMRegNet, RegNet, variant, pretrained, **kwargs)


def _cfg(**kwargs) -> Dict[str, Any]:
    return {
        'num_classes': 100, 'input_size': (3, 256, 256), 'pool_size': (8, 8),
        'crop_pct': 1.0, 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.conv', 'classifier': 'head.fc', 'license': 'apache-2.0',
        'paper_ids': 'arXiv:2403.08157',
        **kwargs
    }


default_cfgs = default_cfgs_from_manifest({
    'mlfm_regnetx_002': _cfg(),
    'mlfm_regnetx_004': _cfg(),
    'mlfm_regnetx_006': _cfg(),
    'mlfm_regnetx_008': _cfg(),
    'mlfm_regnety_002': _cfg(),
    'mlfm_regnety_004': _cfg(),
    'mlfm_regnety_006': _cfg(),
    'mlfm_regnety_008': _cfg(),
})


@register_model
def mlfm_regnetx_002(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetX-200MF with memory."""
    model_cfg = RegNetCfg(w0=24, wa=36.44, wm=2.49, group_size=8, depth=13)
    return _create_mlfm_regnet('mlfm_regnetx_002', pretrained, model_cfg=model_cfg, **kwargs)


@register_model
def mlfm_regnetx_004(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetX-400MF with memory."""
    model_cfg = RegNetCfg(w0=24, wa=24.48, wm=2.54, group_size=16, depth=22)
    return _create_mlfm_regnet('mlfm_regnetx_004', pretrained, model_cfg=model_cfg, **kwargs)


@register_model
def mlfm_regnetx_006(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetX-600MF with memory."""
    model_cfg = RegNetCfg(w0=48, wa=36.97, wm=2.24, group_size=24, depth=16)
    return _create_mlfm_regnet('mlfm_regnetx_006', pretrained, model_cfg=model_cfg, **kwargs)


@register_model
def mlfm_regnetx_008(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetX-800MF with memory."""
    model_cfg = RegNetCfg(w0=56, wa=35.73, wm=2.28, group_size=16, depth=16)
    return _create_mlfm_regnet('mlfm_regnetx_008', pretrained, model_cfg=model_cfg, **kwargs)


@register_model
def mlfm_regnety_002(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetY-200MF with memory."""
    model_cfg = RegNetCfg(w0=24, wa=36.44, wm=2.49, group_size=8, depth=13, se_ratio=0.25)
    return _create_mlfm_regnet('mlfm_regnety_002', pretrained, model_cfg=model_cfg, **kwargs)


@register_model
def mlfm_regnety_004(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetY-400MF with memory."""
    model_cfg = RegNetCfg(w0=48, wa=27.89, wm=2.09, group_size=8, depth=16, se_ratio=0.25)
    return _create_mlfm_regnet('mlfm_regnety_004', pretrained, model_cfg=model_cfg, **kwargs)


@register_model
def mlfm_regnety_006(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetY-600MF with memory."""
    model_cfg = RegNetCfg(w0=48, wa=32.54, wm=2.32, group_size=16, depth=15, se_ratio=0.25)
    return _create_mlfm_regnet('mlfm_regnety_006', pretrained, model_cfg=model_cfg, **kwargs)


@register_model
def mlfm_regnety_008(pretrained: bool = False, **kwargs) -> RegNet:
    """RegNetY-800MF with memory."""
    model_cfg = RegNetCfg(w0=56, wa=38.84, wm=2.4, group_size=16, depth=14, se_ratio=0.25)
    return _create_mlfm_regnet('mlfm_regnety_008', pretrained, model_cfg=model_cfg, **kwargs)
