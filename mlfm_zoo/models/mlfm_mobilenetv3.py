"""MobileNetV3 and its kin with low-frequency memory: what `attach_memory` makes of timm's networks of that class.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. It has no network of this class, so that none is registered: the sites
here are this project's choice, by what the sites of the authors' MobileNetV2 have in common.

timm's class is MobileNetV3 (https://arxiv.org/abs/1905.02244), MobileNetV4, FBNetV3, LCNet and HardCoRe-NAS.
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from timm.models import MobileNetV3, checkpoint_seq

from .._timm import feature_take_indices
from ..memory import MemoryOptions, MemorySite, memory_family
from ._network import MemoryNetwork, rounds_up

__all__ = ['MLFMMobileNetV3']


@memory_family(MobileNetV3)
class MLFMMobileNetV3(MemoryNetwork, MobileNetV3):
    """MobileNetV3 with a memory unit after the stem and after every stage, but for two.

    A first stage that keeps the stem's resolution has none, nor has a last one that keeps that of the stage before,
    which is a part of the head: MobileNetV2 has none after its stages of 16 and 320 channels either.

    Args:
        *args: As `timm.models.MobileNetV3`.
        **kwargs: As `timm.models.MobileNetV3`, and the options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: A memory option is out of range, or a layer of the trunk does not halve its map.
    """

    def memory_sites(self, options: MemoryOptions) -> Tuple[List[MemorySite], Dict[str, int]]:
        sites = [MemorySite('stem', self.conv_stem.out_channels, 2, rounds_up(self.conv_stem))]
        stages: List[Any] = list(self.blocks)
        for i, stage in enumerate(stages):
            # feature_info lists the last stage of each resolution; `stage` counts from 1 there
            reduction = next(info['reduction'] for info in self.feature_info if info['stage'] > i)
            if i not in (0, len(self.blocks) - 1) or reduction > sites[-1].reduction:
                num_chs = stage[-1].feature_info('bottleneck')['num_chs']
                sites.append(MemorySite(f'blocks.{i}', num_chs, reduction, rounds_up(stage)))
        return sites, {'blocks': len(self.blocks)}

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

    def _forward_stages(
            self,
            x: torch.Tensor,
            indices: List[int],
            last: int,
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Walk trunk and memory together.

        Args:
            x: Image batch (N, in_chans, H, W).
            indices: Features to keep, 0 the stem's, i the one of stage i, counted from 1.
            last: Stage after which to stop, 0 for the stem.

        Returns:
            The feature that the walk ends at, and the kept features in order.
        """
        features: List[torch.Tensor] = []
        bands = self.memory(x)
        x = self.bn1(self.conv_stem(x))
        x, memory = self.memory.stem(x, bands[self.memory.first_level], bands)
        if 0 in indices:
            features.append(x)
        for i, (stage, unit) in enumerate(zip(self.blocks, self.memory.blocks)):
            if i < last:
                x = stage(x) if torch.jit.is_scripting() or not self.grad_checkpointing else checkpoint_seq(stage, x)
                x, memory = unit(x, memory, bands)
                if i + 1 in indices:
                    features.append(x)
        return x, features

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self._forward_stages(x, [], len(self.blocks))
        return x

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
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        stage_ends = list(range(len(self.blocks) + 1)) if extra_blocks else self.stage_ends
        take_indices, max_index = feature_take_indices(len(stage_ends), indices)
        take_indices = [stage_ends[i] for i in take_indices]
        last = stage_ends[max_index] if stop_early else len(self.blocks)
        x, intermediates = self._forward_stages(x, take_indices, last)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
            self,
            indices: Union[int, List[int]] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
            extra_blocks: bool = False,
    ) -> List[int]:
        take_indices = super().prune_intermediate_layers(
            indices, prune_norm=prune_norm, prune_head=prune_head, extra_blocks=extra_blocks)
        self.memory.blocks = self.memory.blocks[:len(self.blocks)]
        self.memory.update_levels()
        return take_indices
