"""The low-frequency memory unit: equations, and initialization at identity.

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

from typing import Any, List, Tuple

import torch
import torch.nn as nn
from timm.models import checkpoint

from .._folding import NORMS, Fusible, fold_norm, is_plain
from .bands import low_band
from .gates import Gate
from .options import MEMORY_UPDATES, check_option

__all__ = ['LowFrequencyMemoryUnit']

# Output of a gate at identity: large enough to keep its ReLU open in training, and small enough for x to keep its
# precision in bfloat16.
IDENTITY_OFFSET = 1 / 32


class LowFrequencyMemoryUnit(Fusible):
    """Memory unit: adds the memory to the trunk's feature and writes the next memory.

    Args:
        num_chs: Channels C of the trunk's feature.
        memory_chs: Channels M of the memory that the input gate reads.
        in_chans: Channels of the image, which the supplement gate reads.
        level: Haar level k at the feature's resolution, log2(image size / feature size).
        update: How the next memory is made, 'add' or 'cat', see the module's equations.
        supplement: Whether the unit has a supplement gate.
        forget: Number of times the forget gate halves the next memory.
        ceil_mode: How the forget gate halves odd sides, see `low_band`.
        last: Whether the unit is the last of its network, so that nothing reads its memory.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `update` is neither 'add' nor 'cat'.

    Examples:
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
        """Add the memory to a feature.

        Args:
            x: Trunk feature (N, C, H, W).
            memory: Memory (N, M, H, W).
            bands: The image's bands, as `image_bands` returns them; the one of the unit's level is (N, in_chans, H, W).

        Returns:
            The feature that replaces x (N, C, H, W), and the next memory (N, C, H / 2^forget, W / 2^forget); with the
            update 'cat' it has 2C channels, x first.
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
        else:  # the low band works channel by channel, and its outputs are smaller to concatenate than its inputs
            memory = torch.cat([self._forget(x), self._forget(low)], dim=1)
        return self.output_gate(fused), memory

    def _forget(self, x: torch.Tensor) -> torch.Tensor:
        # Nothing reads the last memory. Scripted, compiled and exported graphs leave its low band out, which would
        # restrict them to sizes at which the band has more than one pixel.
        if self.last and (torch.jit.is_scripting() or torch.compiler.is_compiling()):
            return x
        for _ in range(self.forget):
            x = low_band(x, self.ceil_mode)
        return x

    def is_fused(self) -> bool:
        """Whether the unit is fused for inference, see `fuse`."""
        return isinstance(getattr(self.input_gate, 'norm', None), nn.Identity)

    @torch.jit.ignore
    def fuse(self) -> 'LowFrequencyMemoryUnit':
        """Fold the norms of the input and supplement gates into their convolutions.

        Outputs equal those of eval mode, to rounding. A fused unit can be neither trained nor saved as a checkpoint.
        The unit stays unfused if a convolution or norm of these gates has a hook, pruning or a parametrization, or is
        of another class. The output gate stays a norm, which inference engines turn into a scale and a shift.

        Returns:
            The unit itself.
        """
        self.eval()
        gates = self._gates()
        if type(self) is LowFrequencyMemoryUnit and all(
                type(gate) is Gate and is_plain(gate.conv, (nn.Conv2d,)) and is_plain(gate.norm, NORMS)
                and gate.norm.running_mean is not None for gate in gates):
            for gate in gates:
                gate.conv, gate.norm = fold_norm(gate.conv, gate.norm), nn.Identity().eval()
        return self

    @torch.no_grad()
    def init_identity(self) -> None:
        """Set the unit to pass x unchanged in eval mode, with all parameters trainable.

        The norms of the gates get weight 0 and a small positive bias, since a ReLU at exactly zero would pass no
        gradient. The output gate subtracts that constant again. The norms' weights and biases receive a gradient from
        the first step on, the convolutions before them from the second.
        """
        for gate in self._gates():
            gate.norm.weight.zero_()
            gate.norm.bias.fill_(IDENTITY_OFFSET)
        bn = self.output_gate
        self.calibrate_identity(torch.zeros_like(bn.weight), torch.ones_like(bn.weight) - bn.eps)

    @torch.no_grad()
    def calibrate_identity(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Set the output gate of a unit at identity to undo its own normalization of x.

        x then passes unchanged in training mode too, as far as a batch has this mean (C,) and variance (C,).
        """
        bn = self.output_gate
        bn.get_buffer('running_mean').copy_(mean + IDENTITY_OFFSET * len(self._gates()))
        bn.get_buffer('running_var').copy_(var)
        bn.weight.copy_((var + bn.eps).sqrt())
        bn.bias.copy_(mean)

    @torch.jit.ignore
    def is_identity(self) -> bool:
        """Whether the gates are as `init_identity` sets them; False for a fused unit."""
        return not self.is_fused() and all(
            isinstance(gate, Gate) and bool((gate.norm.weight == 0).all() and (gate.norm.bias == IDENTITY_OFFSET).all())
            for gate in self._gates())

    @torch.jit.ignore
    def _gates(self) -> List[Any]:
        return [gate for gate in (self.input_gate, self.supplement_gate) if gate is not None]

    def extra_repr(self) -> str:
        return f"level={self.level}, update='{self.update}', forget={self.forget}"
