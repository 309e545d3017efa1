"""The low-frequency memory unit: its equations, and the identity at which it can start.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157.

With `I` the normalized image, `A_k(I)` its k-level orthonormal Haar low band, `x` the trunk's feature at a site and
`m` the memory at x's resolution, a unit computes

    i  = ReLU(BN(Conv1x1(m)))         input gate
    s  = ReLU(BN(Conv3x3(A_k(I))))    supplement gate (optional)
    l  = i + s
    y  = BN(x + l)                    output gate; y replaces x
    m' = LL(x + l)                    update 'add'
    m' = LL(concat[x, l])             update 'cat'

where LL, the forget gate, is one Haar low band (bands.py). It is skipped where the next site has the same resolution.
The first memory is the image's own low band at the stem's resolution.
"""

from typing import Any, Dict, Iterable, List, Tuple

import torch
import torch.nn as nn
from timm.models import checkpoint

from .._folding import NORMS, Fusible, fold_norm, is_plain
from .bands import low_band
from .gates import Gate
from .options import MEMORY_UPDATES, check_option

__all__ = ['LowFrequencyMemoryUnit', 'fuse_units']

# Output of a gate at identity: far enough above 0 for its ReLU to stay open in training, near enough for x to keep its
# precision in bfloat16.
IDENTITY_OFFSET = 1 / 32


class LowFrequencyMemoryUnit(Fusible):
    """Low-frequency memory unit: fuses the memory into the trunk's feature and writes the next memory.

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
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `update` is neither 'add' nor 'cat'.

    Example:
        >>> unit = LowFrequencyMemoryUnit(num_chs=16, memory_chs=3, level=1)
        >>> bands = mlfm_zoo.image_bands(torch.randn(1, 3, 64, 64), num_levels=1)
        >>> y, memory = unit(torch.randn(1, 16, 32, 32), bands[1], bands)
        >>> y.shape, memory.shape
        (torch.Size([1, 16, 32, 32]), torch.Size([1, 16, 16, 16]))
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
            device: Any = None,
            dtype: Any = None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        check_option('memory_update', update, MEMORY_UPDATES)
        self.level, self.update = level, update
        self.forget, self.ceil_mode, self.last = forget, ceil_mode, last
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
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(self._forward, x, memory, bands)
        return self._forward(x, memory, bands)

    def _forward(self, x: torch.Tensor, memory: torch.Tensor, bands: List[torch.Tensor]):
        low = self.input_gate(memory)
        if self.supplement_gate is not None:
            low = low + self.supplement_gate(bands[self.level])
        fused = x + low
        if self.update == 'add':
            memory = self._forget(fused)
        else:  # the low bands of a concatenation are those of its parts, which are smaller to concatenate
            memory = torch.cat([self._forget(x), self._forget(low)], dim=1)
        return self.output_gate(fused), memory

    def _forget(self, x: torch.Tensor) -> torch.Tensor:
        # Nothing reads the last memory. A scripted, compiled or exported graph leaves its low band out, which would
        # only tie the graph to sizes at which that band has more than one pixel.
        if self.last and (torch.jit.is_scripting() or torch.compiler.is_compiling()):
            return x
        for _ in range(self.forget):
            x = low_band(x, self.ceil_mode)
        return x

    def is_fused(self) -> bool:
        """Whether the unit is in its form for inference, see `fuse`."""
        return isinstance(getattr(self.input_gate, 'norm', None), nn.Identity)

    @torch.jit.ignore
    def fuse(self) -> 'LowFrequencyMemoryUnit':
        """Put the unit into its form for inference: the same forward pass, on gates without norms.

        Outputs are those of eval mode, to rounding. A fused unit can be neither trained nor saved as a checkpoint.
        A unit stays as it is if fusing would lose what was put on a convolution or a norm of its input gate or
        supplement gate: a hook, pruning, a parametrization, a module of another class. Hooks on the unit and on its
        gates remain. The output gate is a norm alone, which compilers and inference engines turn into a scale and a
        shift themselves.

        Returns:
            The unit itself.
        """
        fuse_units([self])
        return self

    def folded_parts(self) -> Dict[str, nn.Module]:
        """Make the modules of the form for inference; the unit is left as it is.

        Returns:
            What to put under which name; nothing for a unit that is fused already or that has to stay as it is.
        """
        gates: Dict[str, Any] = {
            name: gate for name, gate in self.named_children() if name in ('input_gate', 'supplement_gate')}
        if type(self) is not LowFrequencyMemoryUnit or not all(
                type(gate) is Gate and is_plain(gate.conv, (nn.Conv2d,)) and is_plain(gate.norm, NORMS)
                and gate.norm.running_mean is not None for gate in gates.values()):
            return {}
        parts: Dict[str, nn.Module] = {}
        for name, gate in gates.items():
            parts[f'{name}.conv'] = fold_norm(gate.conv, gate.norm)
            parts[f'{name}.norm'] = nn.Identity().eval()
        return parts

    @torch.no_grad()
    def init_identity(self) -> None:
        """Set the unit so that x passes unchanged in eval mode and every parameter can be trained from there.

        The norms of the gates get weight 0 and a small positive bias, which holds their ReLU open: a ReLU at exactly
        zero would pass no gradient. The output gate subtracts that constant again. The norms' weights and biases
        receive a gradient at the first step, the convolutions before them from the second.
        """
        for gate in self._gates():
            gate.norm.weight.zero_()
            gate.norm.bias.fill_(IDENTITY_OFFSET)
        bn = self.output_gate
        self.calibrate_identity(torch.zeros_like(bn.weight), torch.ones_like(bn.weight) - bn.eps)

    @torch.no_grad()
    def calibrate_identity(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Set the output gate of a unit at identity to normalize x by its own statistics and undo that again.

        So x passes in training mode too, as far as a batch has these statistics.

        Args:
            mean: Mean of each channel of x (C,).
            var: Variance of each channel of x (C,).
        """
        bn = self.output_gate
        bn.get_buffer('running_mean').copy_(mean + IDENTITY_OFFSET * len(self._gates()))
        bn.get_buffer('running_var').copy_(var)
        bn.weight.copy_((var + bn.eps).sqrt())
        bn.bias.copy_(mean)

    @torch.jit.ignore
    def is_identity(self) -> bool:
        """Whether the gates are as `init_identity` sets them; False for a fused unit, whose norms are gone."""
        return not self.is_fused() and all(
            isinstance(gate, Gate) and bool((gate.norm.weight == 0).all() and (gate.norm.bias == IDENTITY_OFFSET).all())
            for gate in self._gates())

    @torch.jit.ignore
    def _gates(self) -> List[Any]:
        return [gate for gate in (self.input_gate, self.supplement_gate) if gate is not None]

    def extra_repr(self) -> str:
        return f"level={self.level}, update='{self.update}', forget={self.forget}"


def fuse_units(units: Iterable[LowFrequencyMemoryUnit]) -> None:
    """Fuse all units that can be, see `LowFrequencyMemoryUnit.fuse`, or none of them if that raises."""
    folded = [(unit, unit.folded_parts()) for unit in units]
    for unit, parts in folded:
        unit.eval()
        for name, part in parts.items():
            unit.set_submodule(name, part)
