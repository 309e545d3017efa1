"""InceptionNeXt with low-frequency memory.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. The authors' InceptionNeXt with memory is not released: the sites here
are this project's choice, after the stem and after every stage. The trunk is timm's.
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import MetaNeXt, register_model

from .._timm import feature_take_indices
from ..hub.configs import default_cfgs_from_manifest
from ..memory import MemoryOptions, MemorySite, memory_family
from ._create import create_mlfm_model
from ._network import MemoryNetwork

__all__ = ['MLFMMetaNeXt']


@memory_family(MetaNeXt)
class MLFMMetaNeXt(MemoryNetwork, MetaNeXt):
    """MetaNeXt, the network of InceptionNeXt, with a memory unit after the stem and after every stage.

    Args:
        *args: As `timm.models.MetaNeXt`.
        **kwargs: As `timm.models.MetaNeXt`, and the options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: A memory option is out of range.
    """

    def memory_sites(self, options: MemoryOptions) -> Tuple[List[MemorySite], Dict[str, int]]:
        # neither the stem nor the downsampling between stages pads: they round odd sides down
        conv = next(m for m in self.stem if isinstance(m, nn.Conv2d))
        sites = [MemorySite('stem', conv.out_channels, self.feature_info[0]['reduction'], ceil_mode=False)]
        sites += [MemorySite(i['module'], i['num_chs'], i['reduction'], ceil_mode=False) for i in self.feature_info]
        return sites, {'stages': len(self.stages)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(
            stem=r'^(?:memory\.)?stem',
            blocks=r'^(?:memory\.)?stages\.(\d+)' if coarse else [
                (r'^stages\.(\d+)\.downsample', (0,)),
                (r'^stages\.(\d+)\.blocks\.(\d+)', None),
                (r'^memory\.stages\.(\d+)', (99,)),
            ],
        )

    def _forward_stages(
            self,
            x: torch.Tensor,
            indices: List[int],
            last: int,
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Walk trunk and memory together.

        Args:
            x: Image batch (N, in_chans, H, W).
            indices: Stages whose features to keep, counted from 0.
            last: Stage after which to stop.

        Returns:
            The feature that the walk ends at, and the kept features in order.
        """
        features: List[torch.Tensor] = []
        bands = self.memory(x)
        x, memory = self.memory.stem(self.stem(x), bands[self.memory.first_level], bands)
        for i, (stage, unit) in enumerate(zip(self.stages, self.memory.stages)):
            if i <= last:
                x, memory = unit(stage(x), memory, bands)
                if i in indices:
                    features.append(x)
        return x, features

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self._forward_stages(x, [], len(self.stages) - 1)
        return x

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        x, intermediates = self._forward_stages(x, take_indices, max_index if stop_early else len(self.stages) - 1)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
            self,
            indices: Union[int, List[int]] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> List[int]:
        take_indices = super().prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)
        self.memory.stages = self.memory.stages[:len(self.stages)]
        self.memory.update_levels()
        return take_indices


def _create_mlfm_inception_next(variant: str, pretrained: bool = False, **kwargs) -> MetaNeXt:
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return create_mlfm_model(MLFMMetaNeXt, MetaNeXt, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


def _cfg(**kwargs) -> Dict[str, Any]:
    return {
        'num_classes': 100, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.0', 'classifier': 'head.fc2', 'license': 'apache-2.0',
        'paper_ids': 'arXiv:2403.08157',
        **kwargs
    }


default_cfgs = default_cfgs_from_manifest({
    'mlfm_inception_next_tiny': _cfg(),
})


@register_model
def mlfm_inception_next_tiny(pretrained: bool = False, **kwargs) -> MetaNeXt:
    """InceptionNeXt-T with memory."""
    model_args = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
    return _create_mlfm_inception_next('mlfm_inception_next_tiny', pretrained, **dict(model_args, **kwargs))
