"""ResNet and SE-ResNet with low-frequency memory.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. Sites and options of each network are those of the authors' code.

The trunk is timm's. It differs from the authors' in two places: their ResNet50 keeps its first stage at 64 channels,
and timm rounds the squeeze width of SE-ResNet to a multiple of 8. timm lacks ResNet10 and SE-ResNet10, which are its
ResNet with one BasicBlock per stage.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn as nn
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import BasicBlock, Bottleneck, ResNet, checkpoint_seq, register_model

from ..hub.configs import default_cfgs_from_manifest
from ..memory import MemoryOptions, MemorySite, PassThrough, memory_family
from ..memory.options import check_option
from ._create import base_cfg, create_mlfm_model
from ._network import MemoryNetwork, SplitStage, UnitsInside, rounds_up

__all__ = ['MLFMResNet']

# Memory of ResNet34 and ResNet50.
SPLIT = dict(memory_split=True)


@dataclass(frozen=True)
class ResNetMemoryOptions(MemoryOptions):
    """Options of a ResNet's memory.

    Attributes:
        memory_split: Whether stages 2 and 3 have a second unit half-way, as in ResNet34 and ResNet50.
    """
    memory_split: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option('memory_split', self.memory_split, (True, False))


@memory_family(ResNet)
class MLFMResNet(MemoryNetwork, ResNet):
    """ResNet with a memory unit after the stem, its pooling and every stage.

    Args:
        *args: As `timm.models.ResNet`.
        **kwargs: As `timm.models.ResNet`, and the options of the memory, see `ResNetMemoryOptions`.

    Raises:
        ValueError: A memory option is out of range.

    Examples:
        >>> model = timm.create_model('mlfm_resnet10', features_only=True)
        >>> [tuple(feature.shape[1:]) for feature in model(torch.randn(1, 3, 64, 64))]
        [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    """

    options_cls = ResNetMemoryOptions

    def add_memory(self, options: Any) -> None:
        super().add_memory(options)
        for name in ('layer2', 'layer3'):
            if _has_units_inside(getattr(self.memory, name)):
                getattr(self, name).__class__ = SplitStage  # the same object, which may have hooks

    def memory_sites(self, options: ResNetMemoryOptions) -> Tuple[List[MemorySite], Dict[str, Optional[int]]]:
        stem = self.feature_info[0]
        sites = [MemorySite('stem', stem['num_chs'], stem['reduction'], rounds_up(self.conv1))]
        if not isinstance(self.maxpool, nn.Identity):  # a trunk that is pruned to the stem's feature has none
            sites.append(MemorySite('pool', stem['num_chs'], 2 * stem['reduction'], rounds_up(self.maxpool)))
        places: Dict[str, Optional[int]] = {'stem': None, 'pool': None}
        for info in self.feature_info[1:]:
            name, layer = info['module'], getattr(self, info['module'])
            num_blocks = len(layer)
            places[name] = max(num_blocks, 1)
            if not num_blocks:  # pruned
                continue
            ends = [num_blocks - 1]
            if options.memory_split and name in ('layer2', 'layer3') and num_blocks > 1:
                ends.insert(0, num_blocks // 2 - 1)
            up = rounds_up(layer)
            sites += [MemorySite(f'{name}.{end}', info['num_chs'], info['reduction'], up) for end in ends]
        return sites, places

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, str]:
        return dict(
            stem=r'^conv1|bn1|maxpool|memory\.(?:stem|pool)',
            blocks=r'^(?:memory\.)?layer(\d+)' if coarse else r'^(?:memory\.)?layer(\d+)\.(\d+)',
        )

    def _forward_stages(self, x: torch.Tensor, indices: List[int], end: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        features: List[torch.Tensor] = []
        bands = self.memory.image_bands(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x, memory = self.memory.stem(x, bands[self.memory.first_level], bands)
        if 0 in indices:
            features.append(x)
        x, memory = self.memory.pool(self.maxpool(x), memory, bands)
        if not torch.jit.is_scripting():
            for i, name in enumerate(('layer1', 'layer2', 'layer3', 'layer4')[:end], start=1):
                stage, units = getattr(self, name), getattr(self.memory, name)  # called as a module: its hooks run
                if _has_units_inside(units):
                    inside = UnitsInside(units, memory, bands, self.grad_checkpointing)
                    x, memory = stage(x, inside), inside.written()
                else:
                    x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
                x, memory = units[-1](x, memory, bands)
                if i in indices:
                    features.append(x)
            return x, features
        # TorchScript knows no getattr, no UnitsInside and no hooks, and runs all stages
        for block, unit in zip(self.layer1, self.memory.layer1):
            x, memory = unit(block(x), memory, bands)
        if 1 in indices:
            features.append(x)
        for block, unit in zip(self.layer2, self.memory.layer2):
            x, memory = unit(block(x), memory, bands)
        if 2 in indices:
            features.append(x)
        for block, unit in zip(self.layer3, self.memory.layer3):
            x, memory = unit(block(x), memory, bands)
        if 3 in indices:
            features.append(x)
        for block, unit in zip(self.layer4, self.memory.layer4):
            x, memory = unit(block(x), memory, bands)
        if 4 in indices:
            features.append(x)
        return x, features


def _has_units_inside(units: nn.ModuleList) -> bool:
    return not all(isinstance(unit, PassThrough) for unit in units[:-1])


def _create_mlfm_resnet(variant: str, pretrained: bool, model_args: Dict[str, Any], **kwargs) -> ResNet:
    return create_mlfm_model(MLFMResNet, ResNet, variant, pretrained, model_args, **kwargs)


default_cfgs = default_cfgs_from_manifest({
    **dict.fromkeys(
        ('mlfm_resnet10', 'mlfm_resnet18', 'mlfm_resnet34', 'mlfm_resnet50',
         'mlfm_seresnet10', 'mlfm_seresnet18', 'mlfm_seresnet34', 'mlfm_seresnet50'),
        base_cfg(input_size=(3, 256, 256), pool_size=(8, 8), crop_pct=1.0, interpolation='bilinear',
                 first_conv='conv1', classifier='fc')),
    'test_mlfm_resnet': base_cfg(
        num_classes=10, input_size=(3, 64, 64), pool_size=(2, 2), crop_pct=1.0,
        mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD, first_conv='conv1.0', classifier='fc',
        label_names=tuple('0123456789')),
})


@register_model
def mlfm_resnet10(pretrained: bool = False, **kwargs) -> ResNet:
    """ResNet-10 with memory; the trunk is a ResNet of one BasicBlock a stage."""
    model_args = dict(block=BasicBlock, layers=(1, 1, 1, 1))
    return _create_mlfm_resnet('mlfm_resnet10', pretrained, model_args, **kwargs)


@register_model
def mlfm_resnet18(pretrained: bool = False, **kwargs) -> ResNet:
    """ResNet-18 with memory, without a supplement gate at stage 4."""
    model_args = dict(block=BasicBlock, layers=(2, 2, 2, 2))
    memory_args = dict(memory_supplement='all_but_last', memory_forget_last=True)
    return _create_mlfm_resnet('mlfm_resnet18', pretrained, model_args, memory_args=memory_args, **kwargs)


@register_model
def mlfm_resnet34(pretrained: bool = False, **kwargs) -> ResNet:
    """ResNet-34 with memory, stages 2 and 3 split in halves."""
    model_args = dict(block=BasicBlock, layers=(3, 4, 6, 3))
    return _create_mlfm_resnet('mlfm_resnet34', pretrained, model_args, memory_args=SPLIT, **kwargs)


@register_model
def mlfm_resnet50(pretrained: bool = False, **kwargs) -> ResNet:
    """ResNet-50 with memory, stages 2 and 3 split in halves."""
    model_args = dict(block=Bottleneck, layers=(3, 4, 6, 3))
    return _create_mlfm_resnet('mlfm_resnet50', pretrained, model_args, memory_args=SPLIT, **kwargs)


@register_model
def mlfm_seresnet10(pretrained: bool = False, **kwargs) -> ResNet:
    """SE-ResNet-10 with memory; the trunk is an SE-ResNet of one BasicBlock a stage."""
    model_args = dict(block=BasicBlock, layers=(1, 1, 1, 1), block_args=dict(attn_layer='se'))
    return _create_mlfm_resnet('mlfm_seresnet10', pretrained, model_args, **kwargs)


@register_model
def mlfm_seresnet18(pretrained: bool = False, **kwargs) -> ResNet:
    """SE-ResNet-18 with memory."""
    model_args = dict(block=BasicBlock, layers=(2, 2, 2, 2), block_args=dict(attn_layer='se'))
    return _create_mlfm_resnet('mlfm_seresnet18', pretrained, model_args, **kwargs)


@register_model
def mlfm_seresnet34(pretrained: bool = False, **kwargs) -> ResNet:
    """SE-ResNet-34 with memory."""
    model_args = dict(block=BasicBlock, layers=(3, 4, 6, 3), block_args=dict(attn_layer='se'))
    return _create_mlfm_resnet('mlfm_seresnet34', pretrained, model_args, **kwargs)


@register_model
def mlfm_seresnet50(pretrained: bool = False, **kwargs) -> ResNet:
    """SE-ResNet-50 with memory."""
    model_args = dict(block=Bottleneck, layers=(3, 4, 6, 3), block_args=dict(attn_layer='se'))
    return _create_mlfm_resnet('mlfm_seresnet50', pretrained, model_args, **kwargs)


@register_model
def test_mlfm_resnet(pretrained: bool = False, **kwargs) -> ResNet:
    """Tiny ResNet with memory for tests and demos; its weights come with the package."""
    model_args = dict(
        block=BasicBlock, layers=(1, 1, 2, 1), stem_width=8, stem_type='deep', avg_down=True, channels=(16, 24, 32, 40))
    return _create_mlfm_resnet('test_mlfm_resnet', pretrained, model_args, memory_args=SPLIT, **kwargs)
