"""The low-frequency memory unit: its equations, and nothing else.

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

where LL, the forget gate, is one Haar low band (bands.py); it is skipped where the next site has the same resolution.
The first memory is the image's own low band at the stem's resolution.
"""

from typing import Any, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import checkpoint

from .bands import low_band
from .identity import Identity
from .options import MEMORY_UPDATES, check_option
from .training import fuse_in_training, trains_fused

__all__ = ['Gate', 'LowFrequencyMemoryUnit']


class Gate(nn.Module):
    """Convolution with bias, batch norm and ReLU: the form that the input gate and the supplement gate share.

    Args:
        in_chs: Channels read.
        out_chs: Channels put out.
        kernel_size: Side of the kernel, odd; the output has the size of the input.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    def __init__(self, in_chs: int, out_chs: int, kernel_size: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel_size, padding=kernel_size // 2, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(out_chs, device=device, dtype=dtype)
        nn.init.kaiming_normal_(self.conv.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(self.conv.get_parameter('bias'))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class LowFrequencyMemoryUnit(Identity, nn.Module):
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
        dtype: Type of the parameters.

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
            self, x: torch.Tensor, memory: torch.Tensor, bands: List[torch.Tensor],
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
        if not torch.jit.is_scripting():  # by itself: TorchScript then does not look at what follows
            if trains_fused(self, x, memory, bands):
                return fuse_in_training(self, x, memory, bands)
        low = self.input_gate(memory)
        if self.supplement_gate is not None:
            low = low + self.supplement_gate(bands[self.level])
        fused = x + low
        if self.update == 'add':
            memory = self._forget(fused)
        else:  # the low bands of a concatenation are those of its parts, which are smaller to put together
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

    @torch.jit.ignore
    def fuse(self) -> 'LowFrequencyMemoryUnit':
        """The unit in its form for inference, see `FusedMemoryUnit`; this one is left as it is."""
        from .fused import FusedMemoryUnit  # which builds on this class
        return FusedMemoryUnit(self)

    def extra_repr(self) -> str:
        return f"level={self.level}, update='{self.update}', forget={self.forget}"
