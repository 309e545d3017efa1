"""ByobNet with low-frequency memory, for `attach_memory`.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. It has no network of this class, so none is registered. The sites are
this project's choice: those of the authors' ResNet if the stem pools, and those of their RegNet if it does not.

timm's class covers RepVGG (https://arxiv.org/abs/2101.03697), MobileOne (https://arxiv.org/abs/2206.04040), GENet
(https://arxiv.org/abs/2006.14090), the ResNets of CLIP (https://arxiv.org/abs/2103.00020), RegNetZ
(https://arxiv.org/abs/2103.06877) and more, some with self-attention in their last stages.
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from timm.models import ByobNet, checkpoint_seq

from .._timm import ByobStem, MobileVitV2Block
from ..memory import MemoryOptions, MemorySite, memory_family
from ._network import MemoryNetwork, SplitStage, UnitsInside, rounds_up

__all__ = ['MLFMByobNet']


class SplitStem(SplitStage, ByobStem):
    """A stem that halves twice, with a memory unit where its feature is taken."""


@memory_family(ByobNet)
class MLFMByobNet(MemoryNetwork, ByobNet):
    """ByobNet with a memory unit after the stem and the last stage of each resolution.

    A stem that halves the image twice has two units: one at its feature, before it halves again, and one at its end.

    Args:
        *args: As `timm.models.ByobNet`.
        **kwargs: As `timm.models.ByobNet`, and the options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: A memory option is out of range, or the trunk has a layer that does not halve its map, or a block of
            MobileViTv2.

    Examples:
        >>> model = mlfm_zoo.attach_memory(timm.create_model('test_byobnet', num_classes=10))
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def add_memory(self, options: MemoryOptions) -> None:
        super().add_memory(options)
        if isinstance(self.memory.stem, nn.ModuleList):
            self.stem.__class__ = SplitStem

    def memory_sites(self, options: MemoryOptions) -> Tuple[List[MemorySite], Dict[str, Optional[int]]]:
        if any(isinstance(m, MobileVitV2Block) for m in self.stages.modules()):
            raise ValueError(
                'The trunk has blocks of MobileViTv2, which enlarge maps of odd sides, expected blocks that keep the '
                'size of their map, as a memory does.')
        places: Dict[str, Optional[int]] = {'stem': None, 'stages': len(self.stages)}
        if hasattr(self.stem, 'last_feat_idx'):  # a sequence of layers that halves twice
            layers = list(self.stem)
            places['stem'] = len(layers)
            sites, start = [], 0
            for info, end in zip(self.stem.feature_info, (self.stem.last_feat_idx + 1, len(layers))):
                up = rounds_up(*layers[start:end])
                sites.append(MemorySite(f'stem.{end - 1}', info['num_chs'], info['reduction'], up))
                start = end
        else:
            conv = next(m for m in self.stem.modules() if isinstance(m, nn.Conv2d))
            sites = [MemorySite('stem', conv.out_channels, 2, rounds_up(self.stem))]
        if not len(self.stages):  # pruned to the stem's feature
            sites = sites[:1]
        start = 0
        for info in self.feature_info:
            end = info['stage']
            if start < end <= len(self.stages):
                # the last one is the feature of the final convolution, which reads the last stage's
                is_conv = info['module'] == 'final_conv' and not isinstance(self.final_conv, nn.Identity)
                num_chs = self.final_conv.conv.in_channels if is_conv else info['num_chs']
                up = rounds_up(self.stages[start:end])
                sites.append(MemorySite(f'stages.{end - 1}', num_chs, info['reduction'], up))
                start = end
        return sites, places

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(
            stem=r'^(?:memory\.)?stem',
            blocks=[
                (r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)', None),
                (r'^memory\.stages\.(\d+)', None if coarse else (99,)),
                (r'^final_conv', (99999,)),
            ],
        )

    def _feature_stages(self) -> List[int]:
        return self.stage_ends

    def _forward_stages(self, x: torch.Tensor, indices: List[int], end: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        features: List[torch.Tensor] = []
        bands = self.memory.image_bands(x)
        memory = bands[self.memory.first_level]
        if hasattr(self.stem, 'last_feat_idx'):
            passed: List[Tuple[torch.Tensor, torch.Tensor]] = []
            if torch.jit.is_scripting():  # knows no UnitsInside, and no hooks
                for layer, unit in zip(self.stem, self.memory.stem):
                    x, memory = unit(layer(x), memory, bands)
                    passed.append((x, memory))
            else:
                inside = UnitsInside(self.memory.stem, memory, bands, grad_checkpointing=False)
                x, passed = self.stem(x, inside), inside.passed
                x, memory = self.memory.stem[-1](x, inside.written(), bands)
            if 0 in indices:
                features.append(passed[self.stem.last_feat_idx][0])
        else:
            x, memory = self.memory.stem(self.stem(x), memory, bands)
            if 0 in indices:
                features.append(x)
        for i, (stage, unit) in enumerate(zip(self.stages, self.memory.stages)):
            if i < end:
                x = stage(x) if torch.jit.is_scripting() or not self.grad_checkpointing else checkpoint_seq(stage, x)
                x, memory = unit(x, memory, bands)
                if i + 1 in indices:
                    features.append(x)
        return x, features

    def _forward_end(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_conv(x)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Optional[Union[int, List[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
            exclude_final_conv: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        return self._take_features(
            x, self.stage_ends, not exclude_final_conv, indices, stop_early, output_fmt, intermediates_only)
