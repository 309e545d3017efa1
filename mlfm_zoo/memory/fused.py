"""The memory's forms for inference: norms folded into convolutions, work in place, and the ways that are faster where.

Nothing here changes what unit.py and bands.py say, to rounding.
"""

import copy
import os
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any, List, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .bands import image_bands, low_band
from .training import is_autocast, is_eager
from .unit import Gate, LowFrequencyMemoryUnit

__all__ = ['FoldedGate', 'FusedMemoryUnit', 'fast_image_bands']

# A fused unit on a CPU takes a batch in parts of this size. Its passes over a part then stay in the cache, and the
# memory that they need is taken from the system once. Parts are larger where the input gate has many weights, which a
# convolution lays out anew for every part.
PART_BYTES = 7 << 19
PART_WEIGHTS = 8


class Fused(nn.Module):
    """What the parts of a fused network share: they have no norms, so that no checkpoint can hold them.

    Attributes:
        fused_part: What is fused, for the error that a checkpoint of it gives.
    """

    fused_part = 'memory of this network'

    @torch.jit.ignore
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if not keep_vars:  # torch.export asks for the variables themselves
            raise RuntimeError(
                f'The {self.fused_part} is fused, which no checkpoint can hold: save the network before fuse().')
        super()._save_to_state_dict(destination, prefix, keep_vars)


def scale_and_shift(norm: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    """What a norm multiplies each channel by in eval mode, and what it adds then.

    Args:
        norm: Batch norm with running statistics, affine or not.

    Returns:
        Both for each channel (C,), in float32 at least, in which statistics are kept whatever weights are rounded to.
    """
    mean, var = norm.running_mean, norm.running_var
    mean, var = (value.to(torch.promote_types(value.dtype, torch.float32)) for value in (mean, var))
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    return scale, -mean * scale if norm.bias is None else norm.bias - mean * scale


class FoldedGate(Fused):
    """A gate whose norm is folded into its convolution, for inference; it cannot be saved as a checkpoint.

    Args:
        gate: The gate, which is left as it is.
    """

    def __init__(self, gate: Gate):
        super().__init__()
        norm = gate.norm
        mean, var = norm.get_buffer('running_mean'), norm.get_buffer('running_var')
        self.conv = copy.deepcopy(gate.conv)
        self.conv.weight, self.conv.bias = fuse_conv_bn_weights(
            gate.conv.weight, gate.conv.bias, mean, var, norm.eps, norm.weight, norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x), inplace=True)


class FoldedNorm(nn.Module):
    """A norm of eval mode as what it is then, one multiplication and one sum, for inference.

    A compiled norm works the two out anew from its four statistics wherever it is used.

    Args:
        norm: The norm, which is left as it is.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        scale, shift = (value.detach().to(norm.weight.dtype) for value in scale_and_shift(norm))
        self.register_buffer('scale', scale, persistent=False)
        self.register_buffer('shift', shift, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self.scale.dtype and (x.dtype == torch.bfloat16 or x.dtype == torch.float16):
            # autocast: a norm takes two types at once, and is faster than what makes them one
            mean, var = torch.zeros_like(self.shift), torch.ones_like(self.shift)
            return F.batch_norm(x, mean, var, self.scale, self.shift, eps=0.)
        scale, shift = self.scale[:, None, None], self.shift[:, None, None]
        return torch.addcmul(shift, x, scale).to(x.dtype)  # as a norm, whatever autocast gives


class FusedMemoryUnit(LowFrequencyMemoryUnit):
    """A unit for inference: its norms are folded away, and it takes the fastest way that there is.

    Outputs are those of eval mode, to rounding. Without gradients the unit works in place: it overwrites the feature
    that it is given, as the ReLU of a trunk does. It cannot be trained, or saved as a checkpoint.

    Args:
        unit: The unit, which is left as it is.
    """

    def __init__(self, unit: LowFrequencyMemoryUnit):
        nn.Module.__init__(self)  # all that a unit has is taken from the other
        self.level = unit.level
        self.update = unit.update
        self.forget = unit.forget
        self.ceil_mode = unit.ceil_mode
        self.last = unit.last
        self.grad_checkpointing = False
        self.input_gate = FoldedGate(unit.input_gate)
        self.supplement_gate = None if unit.supplement_gate is None else FoldedGate(unit.supplement_gate)
        self.output_gate = FoldedNorm(unit.output_gate)
        self.eval()

    def forward(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        if not torch.jit.is_scripting() and is_eager(x) and not torch.is_grad_enabled():
            return self._forward_fastest(x, memory, bands)
        return self._forward(x, memory, bands)

    @torch.jit.ignore
    def _forward_fastest(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, in the fastest way that there is; x may be overwritten."""
        autocast = is_autocast(x)
        plain = self._forward if autocast else self._forward_in_place  # autocast may give x another dtype than the rest
        if not _kernel_applies(x):
            return plain(x, memory, bands)
        from .kernel import fastest
        magnitude = x.numel().bit_length()  # not the very size: images may come in a thousand of them
        key = (magnitude, x.shape[1], x.dtype, x.device, memory.shape[1], memory.dtype, autocast, self.update,
               self.forget, self.last, self.supplement_gate is None)
        ways = [partial(way, memory=memory, bands=bands) for way in (plain, self._forward_kernel)]
        return ways[fastest(key, ways, x)](x)

    @torch.jit.ignore
    def _forward_kernel(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, with one kernel for all that follows the convolutions."""
        from .kernel import fuse_memory
        supplement = None if self.supplement_gate is None else self.supplement_gate.conv(bands[self.level])
        y, memory = fuse_memory(
            x, self.input_gate.conv(memory), supplement, self.output_gate.scale, self.output_gate.shift,
            self.update == 'cat', self.forget > 0, self.ceil_mode, self.last)
        if self.last:
            return y, y
        for _ in range(self.forget - 1):
            memory = low_band(memory, self.ceil_mode)
        return y, memory

    @torch.jit.ignore
    def _forward_in_place(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, but x is overwritten, and on a CPU the batch is taken in parts that its cache holds."""
        scale, shift = self.output_gate.scale[:, None, None], self.output_gate.shift[:, None, None]
        part = max(1, len(x))
        if x.device.type == 'cpu':
            size = PART_BYTES + PART_WEIGHTS * self.input_gate.conv.weight.nbytes
            part = max(1, size // max(1, x[:1].nbytes))
        memories = []
        for i in range(0, max(1, len(x)), part):  # once for an empty batch
            x_part = x[i:i + part]
            low = self.input_gate(memory[i:i + part])
            if self.supplement_gate is not None:
                low.add_(self.supplement_gate(bands[self.level][i:i + part]))
            if self.last:  # nothing reads its memory
                fused = x_part.add_(low)
            elif self.update == 'cat':
                memories.append(torch.cat([self._forget(x_part), self._forget(low)], dim=1))
                fused = x_part.add_(low)
            elif self.forget:
                fused = x_part.add_(low)
                memories.append(self._forget(fused))
            else:
                fused = x_part + low
                memories.append(fused)
            torch.addcmul(shift, fused, scale, out=x_part)
        if self.last:
            return x, x
        return x, memories[0] if len(memories) == 1 else torch.cat(memories)

    @torch.jit.ignore
    def fuse(self) -> 'FusedMemoryUnit':
        """The unit itself: it is fused."""
        return self

    def is_identity(self) -> bool:
        """False: what is folded cannot be told from what has learnt."""
        return False

    def train(self, mode: bool = True) -> 'FusedMemoryUnit':
        """Refuse training mode.

        Args:
            mode: Whether it is asked for.

        Returns:
            The unit itself.

        Raises:
            RuntimeError: `mode` is true.
        """
        if mode:
            raise RuntimeError('The memory of this network is fused for inference, without the norms that training '
                               'needs: train the network as it was before fuse().')
        return super().train(mode)


def fast_image_bands(image: torch.Tensor, num_levels: int, ceil_modes: Optional[List[bool]]) -> List[torch.Tensor]:
    """As `image_bands`, by a depthwise convolution where that is faster than pooling."""
    if not _pools_slowly(image):
        return image_bands(image, num_levels, ceil_modes)
    bands = [image]
    for level in range(num_levels):
        x = bands[level]
        if _pools_slowly(x):
            bands.append(F.conv2d(x, x.new_full((x.shape[1], 1, 2, 2), 0.5), stride=2, groups=x.shape[1]))
        else:
            bands.append(low_band(x, True if ceil_modes is None else ceil_modes[level]))
    return bands


def _pools_slowly(x: torch.Tensor) -> bool:
    """Whether a convolution halves x faster than pooling: a CPU pools few channels in channels_last one by one."""
    return (
        is_eager(x) and not is_autocast(x) and x.device.type == 'cpu' and x.dtype == torch.float32
        and 0 < x.shape[1] <= 8 and len(x) > 0 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        and x.is_contiguous(memory_format=torch.channels_last) and not (torch.is_grad_enabled() and x.requires_grad))


def _kernel_applies(x: torch.Tensor) -> bool:
    """Whether the Triton kernel takes x; on a CPU Triton's interpreter runs it, for tests."""
    return (
        (x.is_cuda or os.environ.get('TRITON_INTERPRET') == '1') and _has_triton()
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last))


@lru_cache(maxsize=None)
def _has_triton() -> bool:
    return find_spec('triton') is not None
