"""Low-frequency memory: image bands, the memory unit, and the units of one network.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157.

With `I` the normalised image, `A_k(I)` its k-level orthonormal Haar low band, `x` the trunk's feature at a site and
`m` the memory at x's resolution, a unit computes

    i  = ReLU(BN(Conv1x1(m)))         input gate
    s  = ReLU(BN(Conv3x3(A_k(I))))    supplement gate (optional)
    l  = i + s
    y  = BN(x + l)                    output gate; y replaces x
    m' = LL(x + l)                    update 'add'
    m' = LL(concat[x, l])             update 'cat'

where LL, the forget gate, is one Haar low band; it is skipped where the next site has the same resolution. The first
memory is the image's own low band at the stem's resolution.

Two things differ from the authors' code in form and not in result: the low band is one average pooling instead of a
four-band filter bank of which three bands are thrown away, and the image's bands are made once, each from the one
before. Where a trunk rounds odd sides down, as ConvNeXt's patch stem does, the low band does too.
"""

import copy
import os
from functools import lru_cache, partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import checkpoint, register_notrace_function
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ['low_band', 'image_bands', 'LowFrequencyMemoryUnit', 'LowFrequencyMemory', 'MemorySite', 'PassThrough']

MEMORY_UPDATES = ('add', 'cat')
MEMORY_SUPPLEMENTS = ('all', 'all_but_last', 'none')

# What a gate of a unit at identity puts out: far enough above 0 for its ReLU to stay open while it is trained, near
# enough for x to keep its precision in bfloat16.
IDENTITY_OFFSET = 1 / 32

# A fused unit on a CPU takes a batch in parts of this size. Its passes over a part then stay in the cache, and the
# memory that they need is taken from the system once. Parts are larger where the input gate has many weights, which a
# convolution lays out anew for every part.
PART_BYTES = 7 << 19
PART_WEIGHTS = 8


def low_band(x: torch.Tensor, ceil_mode: bool = True) -> torch.Tensor:
    """LL band of one level of the orthonormal 2-D Haar transform, in 'periodization' mode.

    Args:
        x: Feature or image (N, C, H, W).
        ceil_mode: How an odd side is halved: True repeats its last row or column, as 'periodization' does, and False
            drops it, as a strided convolution without padding does.

    Returns:
        Low band (N, C, H / 2, W / 2), odd sides rounded up or, without `ceil_mode`, down.
    """
    # The Haar LL coefficient of a 2x2 cell is half its sum. At an odd border, ceil_mode averages the pixels that are
    # there, which is the mean of the extended cell too, since the extension repeats them.
    if not torch.jit.is_scripting() and _pools_slowly(x):
        return F.conv2d(x, x.new_full((x.shape[1], 1, 2, 2), 0.5), stride=2, groups=x.shape[1])
    return F.avg_pool2d(x, kernel_size=2, stride=2, ceil_mode=ceil_mode).mul_(2)


def image_bands(image: torch.Tensor, num_levels: int, ceil_modes: Optional[List[bool]] = None) -> List[torch.Tensor]:
    """Low bands of an image, each made from the one before: A_k = LL(A_{k-1}), A_0 the image itself.

    Args:
        image: Image batch (N, C, H, W).
        num_levels: Deepest level to compute.
        ceil_modes: How odd sides are halved at each level, see `low_band`; rounded up if None.

    Returns:
        `num_levels + 1` tensors; the one at index k is A_k, (N, C, H / 2^k, W / 2^k).
    """
    bands = [image]
    for level in range(num_levels):
        bands.append(low_band(bands[level], True if ceil_modes is None else ceil_modes[level]))
    return bands


class Gate(nn.Module):
    """Convolution with bias, batch norm and ReLU: the form that the input gate and the supplement gate share.

    Args:
        in_chs: Channels read.
        out_chs: Channels put out.
        kernel_size: Side of the kernel, odd; the output has the size of the input.
    """

    def __init__(self, in_chs: int, out_chs: int, kernel_size: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel_size, padding=kernel_size // 2, **dd)
        self.norm = nn.BatchNorm2d(out_chs, **dd)
        nn.init.kaiming_normal_(self.conv.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)

    @torch.jit.ignore
    def fold_norm(self) -> 'FoldedGate':
        """The gate in eval mode, as one convolution and ReLU."""
        return FoldedGate(self)


class FoldedGate(nn.Module):
    """A gate whose norm is folded into its convolution, for inference; it cannot be saved as a checkpoint.

    Args:
        gate: The gate, which is left as it is.
    """

    def __init__(self, gate: Gate):
        super().__init__()
        norm = gate.norm
        self.conv = copy.deepcopy(gate.conv)
        self.conv.weight, self.conv.bias = fuse_conv_bn_weights(
            gate.conv.weight, gate.conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x), inplace=True)

    @torch.jit.ignore
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if not keep_vars:  # torch.export asks for the variables themselves
            raise RuntimeError(
                'The memory of this network is fused, which no checkpoint can hold: save the network before fuse().')
        super()._save_to_state_dict(destination, prefix, keep_vars)


class LowFrequencyMemoryUnit(nn.Module):
    """Low-frequency memory unit: fuses the memory into the trunk's feature and writes the next memory.

    The equations stand at the top of this file.

    Args:
        num_chs: Channels C of the trunk's feature.
        memory_chs: Channels M of the memory that the input gate reads.
        in_chans: Channels of the image, which the supplement gate sees.
        level: Haar level k at the feature's resolution, log2(image size / feature size).
        update: How the feature and the fused memory make the next memory, 'add' or 'cat'.
        supplement: Whether the unit has a supplement gate.
        forget: Haar levels that the forget gate takes the next memory down, each of which halves its sides.
        ceil_mode: How the forget gate halves odd sides, see `low_band`.
        last: Whether the unit is the last of its network, so that nothing reads the memory that it writes.

    Raises:
        ValueError: `update` is neither 'add' nor 'cat'.
    """

    def __init__(
            self,
            num_chs: int,
            memory_chs: int,
            in_chans: int = 3,
            level: int = 1,
            update: str = 'add',
            supplement: bool = True,
            forget: int = 1,
            ceil_mode: bool = True,
            last: bool = False,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        check_option('memory_update', update, MEMORY_UPDATES)
        self.level = level
        self.update = update
        self.forget = forget
        self.ceil_mode = ceil_mode
        self.last = last
        self.fused = False
        self.grad_checkpointing = False
        self.input_gate = Gate(memory_chs, num_chs, kernel_size=1, **dd)
        self.supplement_gate = Gate(in_chans, num_chs, kernel_size=3, **dd) if supplement else None
        self.output_gate = nn.BatchNorm2d(num_chs, **dd)

    def forward(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Fuse memory into a feature.

        Args:
            x: Trunk feature (N, C, H, W).
            memory: Memory (N, M, H, W).
            bands: The image's bands, as `image_bands` returns them; the one of the unit's level is (N, in_chans, H, W).

        Returns:
            The feature that replaces x (N, C, H, W), and the next memory: C channels for update 'add', 2C with x
            first for 'cat', with sides halved as often as the unit forgets.
        """
        if not torch.jit.is_scripting():
            if self.fused and not self.training and _is_eager(x) and not torch.is_grad_enabled():
                return self._forward_fused(x, memory, bands)
            if self.grad_checkpointing:
                return checkpoint(self._forward, x, memory, bands)
        return self._forward(x, memory, bands)

    def _forward(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        low = self.input_gate(memory)
        if self.supplement_gate is not None:
            low = low + self.supplement_gate(bands[self.level])
        fused = x + low
        # Nothing reads the last memory. A scripted, compiled or exported graph leaves its low band out, which would
        # only tie the graph to sizes at which that band has more than one pixel.
        forget = self.forget
        if self.last and (torch.jit.is_scripting() or torch.compiler.is_compiling()):
            forget = 0
        if self.update == 'add':
            memory = self._forget(fused, forget)
        else:  # the low bands of a concatenation are those of its parts, which are smaller to put together
            memory = torch.cat([self._forget(x, forget), self._forget(low, forget)], dim=1)
        return self.output_gate(fused), memory

    def _forget(self, x: torch.Tensor, levels: int) -> torch.Tensor:
        for _ in range(levels):
            x = low_band(x, self.ceil_mode)
        return x

    @torch.jit.ignore
    def _forward_fused(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """As `forward` in eval mode, in the fastest way that there is; x may be overwritten."""
        autocast = _is_autocast(x)
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
            x, self.input_gate.conv(memory), supplement, self.scale, self.shift, self.update == 'cat', self.forget > 0,
            self.ceil_mode, self.last)
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
        scale, shift = self.scale[:, None, None], self.shift[:, None, None]
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
                memories.append(torch.cat([self._forget(x_part, self.forget), self._forget(low, self.forget)], dim=1))
                fused = x_part.add_(low)
            elif self.forget:
                fused = x_part.add_(low)
                memories.append(self._forget(fused, self.forget))
            else:
                fused = x_part + low
                memories.append(fused)
            torch.addcmul(shift, fused, scale, out=x_part)
        if self.last:
            return x, x
        return x, memories[0] if len(memories) == 1 else torch.cat(memories)

    @torch.jit.ignore
    def fuse(self) -> 'LowFrequencyMemoryUnit':
        """Make the unit ready for inference: its gates' norms are folded into their convolutions.

        Outputs are those of eval mode before, to rounding. Without gradients the unit then works in place: it
        overwrites the feature that it is given, as the ReLU of a trunk does. A fused unit cannot be trained further or
        saved as a checkpoint.

        Returns:
            The unit itself, as `timm.models.reparameterize_model` expects.
        """
        if not self.fused:
            self.input_gate = self.input_gate.fold_norm()
            if self.supplement_gate is not None:
                self.supplement_gate = self.supplement_gate.fold_norm()
            bn = self.output_gate
            scale = bn.weight.detach() * (bn.running_var + bn.eps).rsqrt()
            self.register_buffer('scale', scale, persistent=False)
            self.register_buffer('shift', bn.bias.detach() - bn.running_mean * scale, persistent=False)
            self.fused = True
        return self

    @torch.no_grad()
    def init_identity(self) -> None:
        """Set the unit so that x passes unchanged in eval mode and every parameter can be trained away from there.

        The norms of the gates get weight 0 and a small positive bias, which holds their ReLU open: a ReLU at exactly
        zero would pass no gradient. The output gate takes that constant off again. The norms' weights and biases
        receive a gradient at the first step, the convolutions before them from the second.
        """
        for gate in self._gates():
            gate.norm.weight.zero_()
            gate.norm.bias.fill_(IDENTITY_OFFSET)
        bn = self.output_gate
        self.calibrate_identity(torch.zeros_like(bn.running_mean), torch.ones_like(bn.running_var) - bn.eps)

    @torch.no_grad()
    def calibrate_identity(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Set the output gate of a unit at identity to normalise x by its own statistics and undo that again.

        So x passes in training mode too, as far as a batch has the statistics given.

        Args:
            mean: Mean of each channel of x (C,).
            var: Variance of each channel of x (C,).
        """
        bn = self.output_gate
        bn.running_mean.copy_(mean + IDENTITY_OFFSET * len(self._gates()))
        bn.running_var.copy_(var)
        bn.weight.copy_((var + bn.eps).sqrt())
        bn.bias.copy_(mean)

    def is_identity(self) -> bool:
        """Whether the gates are as `init_identity` sets them."""
        return not self.fused and all(
            bool((g.norm.weight == 0).all() and (g.norm.bias == IDENTITY_OFFSET).all()) for g in self._gates())

    @torch.jit.ignore
    def _gates(self) -> List[Gate]:
        return [gate for gate in (self.input_gate, self.supplement_gate) if gate is not None]

    def extra_repr(self) -> str:
        return f"level={self.level}, update='{self.update}', forget={self.forget}"


class PassThrough(nn.Module):
    """Stands where a trunk has no memory unit, so that a walk over blocks and units is a plain loop."""

    def forward(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        return x, memory


class MemorySite(NamedTuple):
    """Where a memory unit sits, and the trunk's feature there.

    Attributes:
        name: Name of the unit, see `LowFrequencyMemory`.
        num_chs: Channels of the feature.
        reduction: Image size over feature size, a power of 2.
        ceil_mode: Whether the trunk rounds odd sides up where it halves them on its way here from the site before.
    """
    name: str
    num_chs: int
    reduction: int
    ceil_mode: bool = True


class LowFrequencyMemory(nn.Module):
    """All memory units of one network, under names that mirror the trunk's, and the image bands that they share.

    A site named 'stem' becomes the submodule `stem`. A site named 'layer2.3' becomes entry 3 of the ModuleList
    `layer2`, whose other entries pass through, so that the list can be zipped with the trunk's own.

    Calling the module with the image returns the image's bands; `bands[first_level]` is the first memory.

    Args:
        sites: The sites in the order in which the trunk passes them.
        lengths: Length of each ModuleList, by its name.
        in_chans: Channels of the image.
        update: 'add' or 'cat', see `LowFrequencyMemoryUnit`.
        supplement: Which units have a supplement gate: 'all', 'all_but_last' or 'none'.
        forget_last: Whether the last unit forgets as well. The network does not read the memory that it writes.

    Raises:
        ValueError: `update`, `supplement` or `forget_last` is not one of the values above.
    """

    def __init__(
            self,
            sites: Sequence[MemorySite],
            lengths: Mapping[str, int] = MappingProxyType({}),
            in_chans: int = 3,
            update: str = 'add',
            supplement: str = 'all',
            forget_last: bool = False,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        check_option('memory_update', update, MEMORY_UPDATES)
        check_option('memory_supplement', supplement, MEMORY_SUPPLEMENTS)
        check_option('memory_forget_last', forget_last, (True, False))
        memory_chs = in_chans
        for i, site in enumerate(sites):
            last = i == len(sites) - 1
            unit = LowFrequencyMemoryUnit(
                site.num_chs,
                memory_chs,
                in_chans=in_chans,
                level=_level(site.reduction),
                update=update,
                supplement=supplement == 'all' or supplement == 'all_but_last' and not last,
                forget=int(forget_last) if last else _level(sites[i + 1].reduction) - _level(site.reduction),
                ceil_mode=True if last else sites[i + 1].ceil_mode,
                last=last,
                **dd,
            )
            parent, _, name = site.name.rpartition('.')
            if not parent:
                self.add_module(name, unit)
            else:
                if not hasattr(self, parent):
                    self.add_module(parent, nn.ModuleList(PassThrough() for _ in range(lengths[parent])))
                getattr(self, parent)[int(name)] = unit
            memory_chs = site.num_chs if update == 'add' else 2 * site.num_chs
        self.first_level = _level(sites[0].reduction)
        self.ceil_modes: List[bool] = []  # a level of the image's bands rounds as the trunk does on its way there
        for site in sites:
            self.ceil_modes += [site.ceil_mode] * (_level(site.reduction) - len(self.ceil_modes))
        self.update_levels()

    def update_levels(self) -> None:
        """Count how deep the image bands have to go for the units that are there; call it after removing units."""
        units = self.units()
        self.num_levels = max([self.first_level] + [u.level for u in units if u.supplement_gate is not None])
        self.reduction = 2 ** max([u.level for u in units])

    def units(self) -> List[LowFrequencyMemoryUnit]:
        """The units in the order in which the trunk passes them."""
        return [m for m in self.modules() if isinstance(m, LowFrequencyMemoryUnit)]

    def fuse(self) -> 'LowFrequencyMemory':
        """Fuse every unit, see `LowFrequencyMemoryUnit.fuse`; returns the memory itself."""
        for unit in self.units():
            unit.fuse()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether units keep only their inputs for the backward pass and compute the rest again."""
        for unit in self.units():
            unit.grad_checkpointing = enable

    def init_identity(self) -> None:
        """Set every unit to the identity, see `LowFrequencyMemoryUnit.init_identity`."""
        for unit in self.units():
            unit.init_identity()

    def forward(self, image: torch.Tensor) -> List[torch.Tensor]:
        """Make the image's bands.

        Args:
            image: Image batch (N, C, H, W).

        Returns:
            Bands as `image_bands` returns them, as deep as the units need.

        Raises:
            ValueError: The image is smaller than one cell of the network's deepest map.
        """
        check_image_size(image, self.reduction)
        return image_bands(image, self.num_levels, self.ceil_modes)


def _kernel_applies(x: torch.Tensor) -> bool:
    """Whether the Triton kernel takes x; on a CPU Triton's interpreter runs it, for tests."""
    return (
        (x.is_cuda or os.environ.get('TRITON_INTERPRET') == '1') and _has_triton()
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last))


@lru_cache(maxsize=None)
def _has_triton() -> bool:
    return find_spec('triton') is not None


@torch.jit.ignore
def _pools_slowly(x: torch.Tensor) -> bool:
    """Whether a convolution halves x faster than pooling: a CPU pools few channels in channels_last one by one."""
    return (
        _is_eager(x) and not _is_autocast(x) and x.device.type == 'cpu' and x.dtype == torch.float32
        and 0 < x.shape[1] <= 8 and len(x) > 0 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        and x.is_contiguous(memory_format=torch.channels_last) and not (torch.is_grad_enabled() and x.requires_grad))


def _is_eager(x: torch.Tensor) -> bool:
    """Whether x is a real tensor, computed with at once."""
    return isinstance(x, torch.Tensor) and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def _is_autocast(x: torch.Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@register_notrace_function
def check_image_size(image: torch.Tensor, reduction: int) -> None:
    """Refuse an image that is smaller than one cell of the deepest map.

    Args:
        image: Image batch (N, C, H, W).
        reduction: Pixels a side of that cell.

    Raises:
        ValueError: H or W is smaller than `reduction`.
    """
    height, width = image.shape[-2], image.shape[-1]
    if height < reduction or width < reduction:
        raise ValueError(
            f'The image of {height}x{width} pixels is smaller than one cell of the deepest feature map, expected '
            f'at least {reduction}x{reduction}: resize it, or build the model with a smaller output_stride.')


def check_option(name: str, value: Union[str, bool], choices: Tuple[Union[str, bool], ...]) -> None:
    if type(value) is not type(choices[0]) or value not in choices:  # 1 is no True
        raise ValueError(f'{name} is {value!r}, expected {" or ".join(map(repr, choices))}.')


def _level(reduction: int) -> int:
    return reduction.bit_length() - 1
