"""What the families share: a trunk of timm's with a memory beside it, and why weights do not fit it."""

from typing import TYPE_CHECKING, Any, Collection, Dict, List, Mapping, Tuple, Type

import torch
import torch.nn as nn
from timm.layers import get_device_dtype

from .._timm import config_of
from ..memory import LowFrequencyMemory, LowFrequencyMemoryUnit, MemoryOptions, MemorySite

__all__ = ['MemoryNetwork', 'image_convs', 'refuse_misfit', 'weight_faults']

if TYPE_CHECKING:
    class Trunk(nn.Module):
        """What timm's networks have in common, for which timm has no class; their layers have names of their own."""
        in_chans: int
        feature_info: List[Dict[str, Any]]

        def set_grad_checkpointing(self, enable: bool = True) -> None: ...

        def __getattr__(self, name: str) -> Any: ...
else:
    Trunk = nn.Module


class MemoryNetwork(Trunk):
    """What networks with memory share, to be put before the trunk's class.

    A family says with `memory_sites` where its units sit, and walks trunk and memory together in its own forward pass.

    Args:
        *args: As the trunk's class.
        **kwargs: As the trunk's class, and the options of the memory, see `options_cls`.

    Raises:
        ValueError: A memory option is out of range.
    """

    options_cls: Type[MemoryOptions] = MemoryOptions

    def __init__(self, *args, **kwargs):
        options = self.options_cls.take_from(kwargs)
        super().__init__(*args, **kwargs)
        self.add_memory(options)

    def add_memory(self, options: MemoryOptions) -> None:
        """Make the memory of a network whose trunk is there.

        Args:
            options: How it is made.
        """
        sites, lengths = self.memory_sites(options)
        self.memory = LowFrequencyMemory(sites, lengths, self.in_chans, options, **get_device_dtype(self))
        self.memory.train(self.training)
        self._traits = dict(getattr(self, '_traits', {}), first_conv=image_convs(self))

    def memory_sites(self, options: Any) -> Tuple[List[MemorySite], Dict[str, int]]:
        """Sites of the memory, and the lengths of its lists, see `LowFrequencyMemory`.

        Args:
            options: How the memory is made, a record of `options_cls`.
        """
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'MemoryNetwork':
        """Set training mode, which a fused memory refuses before anything is changed."""
        if hasattr(self, 'memory'):
            self.memory.train(mode)
        return super().train(mode)

    def fuse(self) -> 'MemoryNetwork':
        """Fuse the memory for inference, as `timm.models.reparameterize_model` does; the trunk is left as it is.

        Outputs are those of eval mode before, to rounding. A fused network cannot be saved as a checkpoint.

        Returns:
            The network itself.
        """
        self.memory.fuse()
        return self

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether blocks and memory units compute their insides again in the backward pass."""
        super().set_grad_checkpointing(enable)
        self.memory.set_grad_checkpointing(enable)

    # Says in one sentence why weights do not fit, where torch would list every parameter.
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        if strict:
            refuse_misfit(self, state_dict, weight_faults(self.state_dict(), state_dict))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def image_convs(model: nn.Module) -> Tuple[str, ...]:
    """Names of all convolutions that see the image: the stem's, the first input gate's and every supplement gate's.

    They are what `in_chans` changes, and what timm adapts when weights of other `in_chans` are loaded.
    """
    stem = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    units = [(n, m) for n, m in model.named_modules() if isinstance(m, LowFrequencyMemoryUnit)]
    return (
        stem,
        *(f'{name}.input_gate.conv' for name, _ in units[:1]),
        *(f'{name}.supplement_gate.conv' for name, unit in units if unit.supplement_gate is not None),
    )


def weight_faults(expected: Mapping[str, Any], given: Mapping[str, Any], adapted: Collection[str] = ()) -> List[str]:
    """What keeps the tensors `given` from being loaded for those `expected`; shapes of `adapted` may differ."""
    faults = [f'lacks {k}' for k in expected if k not in given]
    faults += [f'has {k}, which the model lacks' for k in given if k not in expected]
    return faults + [
        f'has {k} of shape {tuple(given[k].shape)} where the model has {tuple(v.shape)}'
        for k, v in expected.items()
        if k in given and k not in adapted and getattr(given[k], 'shape', v.shape) != v.shape
    ]


def refuse_misfit(model: nn.Module, state_dict: Mapping[str, Any], faults: List[str]) -> None:
    if not faults:
        return
    more = f' (and {len(faults) - 1} more such faults)' if len(faults) > 1 else ''
    name = config_of(model).get('architecture') or type(model).__name__
    remedy = 'give weights of this network, made with the same memory options'
    if any('convinput' in key for key in state_dict):
        remedy = "it looks like a checkpoint of the authors', which python -m mlfm_zoo convert reads"
    raise RuntimeError(f'The weights do not fit {name}: the file {faults[0]}{more}; {remedy}.')
