"""The memory unit's equations written on pytorch_wavelets, to compare speed with.

Each unit makes its own Haar transform of the image, all four bands of every level, and keeps one; the forget gate is
another. Weights and equations are those of `LowFrequencyMemoryUnit`, so its outputs are the same.
"""

from typing import List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from pytorch_wavelets import DWTForward

from mlfm_zoo.memory import LowFrequencyMemory, LowFrequencyMemoryUnit


class WaveletUnit(nn.Module):
    """A unit with the parameters of another."""

    def __init__(self, unit: LowFrequencyMemoryUnit):
        super().__init__()
        self.update, self.forget = unit.update, unit.forget
        self.input_gate, self.supplement_gate, self.output_gate = (
            unit.input_gate, unit.supplement_gate, unit.output_gate)
        self.image_transform = DWTForward(J=unit.level, wave='haar', mode='periodization')
        self.forget_gate = DWTForward(J=1, wave='haar', mode='periodization')

    def forward(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        low = F.relu(self.input_gate.norm(self.input_gate.conv(memory)))
        if self.supplement_gate is not None:
            image_low, _ = self.image_transform(bands[0])
            low = low + F.relu(self.supplement_gate.norm(self.supplement_gate.conv(image_low)))
        fused = x + low
        memory = fused if self.update == 'add' else torch.cat([x, low], dim=1)
        for _ in range(self.forget):
            memory, _ = self.forget_gate(memory)
        return self.output_gate(fused), memory


def use_wavelet_units(model: nn.Module) -> nn.Module:
    """Put wavelet units in the place of a network's own; returns the network."""
    memory: LowFrequencyMemory = model.memory
    memory.num_levels = memory.first_level  # the first memory only: units make their own bands
    for parent in list(memory.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LowFrequencyMemoryUnit):
                setattr(parent, name, WaveletUnit(child))
    return model
