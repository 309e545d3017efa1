"""Base class of networks with memory."""

from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Tuple, Type

import torch
import torch.fx
import torch.nn as nn
from timm.layers import get_device_dtype, to_2tuple
from timm.models import checkpoint

from .._folding import Fusible, fuse_trunk
from ..memory import LowFrequencyMemory, MemoryOptions, MemorySite
from ._features import StagedNetwork
from ._weights import image_convs, refuse_misfit, weight_faults

__all__ = ['MemoryNetwork', 'SplitStage', 'UnitsInside', 'rounds_up']

if TYPE_CHECKING:
    class Trunk(nn.Module):
        """The interface that timm's networks share; timm has no class for it."""
        in_chans: int
        feature_info: List[Dict[str, Any]]

        def set_grad_checkpointing(self, enable: bool = True) -> None: ...

        def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> List[int]: ...

        def __getattr__(self, name: str) -> Any: ...
else:
    Trunk = nn.Module


class UnitsInside:
    """Carries the memory through a stage that has units between its blocks.

    A stage takes it as a second argument, so that hooks still see one feature go in and one come out. It is an object
    and not a list, because wrappers such as FSDP copy lists of tensors. Of the `units`, one per block, the last one is
    called after the stage. `passed` has feature and memory after each of the others.
    """

    def __init__(
            self, units: nn.ModuleList, memory: torch.Tensor, bands: List[torch.Tensor], grad_checkpointing: bool):
        self.units, self.memory, self.bands, self.grad_checkpointing = units, memory, bands, grad_checkpointing
        self.passed: List[Tuple[torch.Tensor, torch.Tensor]] = []

    def written(self) -> torch.Tensor:
        """Return the memory after the last unit inside."""
        if not self.passed:
            return self.memory
        memory = self.passed[-1][1]
        check_gradient(self.memory, memory)
        return memory


@torch.fx.wrap  # a leaf for every tracer: its branch depends on the memory
def check_gradient(read: torch.Tensor, written: torch.Tensor) -> None:
    """Raise if the memory lost its gradient in a stage.

    It does in a reentrant checkpoint, which tracks only a stage's arguments and results.
    """
    if torch.is_grad_enabled() and read.requires_grad and not written.requires_grad:
        raise RuntimeError(
            'A reentrant checkpoint around a stage with memory units inside cuts off their gradient: use '
            'use_reentrant=False, or set_grad_checkpointing of the network.')


class SplitStage(nn.Sequential):
    """Stage of a trunk with memory units between its blocks."""

    @torch.jit.unused
    def forward(self, input: torch.Tensor, inside: Optional[UnitsInside] = None) -> torch.Tensor:
        """Run blocks and units in turn, up to the last block."""
        if inside is None:
            raise RuntimeError('A memory unit lies inside this stage: call the network, not the stage alone.')
        # `inside.memory` is not changed: a checkpoint around the stage calls it again
        x, memory, inside.passed = input, inside.memory, []
        for i, block in enumerate(self):
            x = checkpoint(block, x) if inside.grad_checkpointing else block(x)
            if i < len(self) - 1:
                x, memory = inside.units[i](x, memory, inside.bands)
                inside.passed.append((x, memory))
        return x


class MemoryNetwork(Fusible, StagedNetwork, Trunk):
    """Base of networks with memory, which goes before the trunk's class.

    A family implements `memory_sites`, which places the units, and `_forward_stages`, which runs trunk and memory.

    Args:
        *args: As the trunk's class.
        **kwargs: As the trunk's class, and the options of the memory, see `options_cls`.

    Raises:
        ValueError: A memory option is out of range.
    """

    options_cls: Type[MemoryOptions] = MemoryOptions

    def __init__(self, *args: Any, **kwargs: Any):
        options = self.options_cls.take_from(kwargs)
        super().__init__(*args, **kwargs)
        self.add_memory(options)

    def add_memory(self, options: MemoryOptions) -> None:
        """Add the memory to a network that has its trunk."""
        sites, places = self.memory_sites(options)
        self.memory = LowFrequencyMemory(sites, places, self.in_chans, options, **get_device_dtype(self))
        self.memory_options = options
        self.memory.train(self.training)
        self._traits = dict(getattr(self, '_traits', {}), first_conv=image_convs(self))

    def memory_sites(self, options: Any) -> Tuple[List[MemorySite], Dict[str, Optional[int]]]:
        """Place the units in the trunk, which may be pruned, as `LowFrequencyMemory` takes them."""
        raise NotImplementedError

    def named_children(self) -> Iterator[Tuple[str, nn.Module]]:
        """The children, the memory first.

        `nn.Sequential(*model.children())` and torchvision's `IntermediateLayerGetter` call children one after the
        other and would silently bypass the memory. So they call it first, and it raises.
        """
        children = dict(super().named_children())
        return iter(sorted(children.items(), key=lambda item: item[0] != 'memory'))

    def fuse(self, trunk: bool = False) -> 'MemoryNetwork':
        """Fuse the memory for inference, as `timm.models.reparameterize_model` does.

        Outputs equal those of eval mode, to rounding. A fused network can be neither trained nor saved as a checkpoint.

        Args:
            trunk: Whether to fold the trunk's batch norms into its convolutions too, see `fuse_trunk`.

        Returns:
            The network itself.

        Raises:
            RuntimeError: torch.fx cannot trace the trunk that is to be fused. The network is then unchanged.
        """
        if trunk:
            return fuse_trunk(self)
        self.memory.fuse()
        return self

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether blocks and memory units recompute activations in the backward pass."""
        super().set_grad_checkpointing(enable)
        self.memory.set_grad_checkpointing(enable)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> List[int]:
        """Remove stages as timm does, and their memory units."""
        take_indices = super().prune_intermediate_layers(*args, **kwargs)
        sites, _ = self.memory_sites(self.memory_options)
        self.memory.keep([site.name for site in sites])
        return take_indices

    # Raises one sentence for weights that do not fit, where torch would list every parameter.
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        if strict:
            refuse_misfit(self, state_dict, weight_faults(self.state_dict(), state_dict))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def rounds_up(*parts: nn.Module) -> bool:
    """Find out whether a part of a trunk rounds odd sides up when it halves its map.

    `parts` are the modules between two sites of the memory. Branches that round differently cannot be added, so odd
    sizes never reach them, and either answer is right. A layer that shrinks the map by another factor than a power of 2
    is a ValueError.
    """
    up = True
    for layer in (module for part in parts for module in part.modules()):
        kernel_size = getattr(layer, 'kernel_size', getattr(layer, 'filt_size', None))  # filt_size is BlurPool2d's
        if kernel_size is None or not hasattr(layer, 'padding'):  # blocks have a stride too
            continue
        stride, padding, dilation = layer.stride, layer.padding, getattr(layer, 'dilation', 1)
        for k, s, p, d in zip(*map(to_2tuple, (kernel_size, stride, padding, dilation))):
            # timm's layers with TensorFlow's padding pad enough to round up
            same = 'Same' in type(layer).__name__ or getattr(layer, 'dynamic_padding', False)
            # a side of n becomes (n + excess) // s + 1, which is n / s rounded up if that is -1, and down if it is -s
            excess = -1 if same or s == 1 else 2 * p - d * (k - 1) - 1 + (s - 1) * getattr(layer, 'ceil_mode', False)
            if excess not in (-1, -s) or s & (s - 1):
                raise ValueError(
                    f'The trunk has a {type(layer).__name__} of kernel size {k}, stride {s} and padding {p}, expected '
                    'one that halves the sides of its map, as a memory does.')
            up = up and excess == -1
    return up
