"""The input gate and the supplement gate of a memory unit."""

from typing import Any

import torch
import torch.nn as nn

__all__ = ['Gate']


class Gate(nn.Module):
    """Convolution with bias, batch norm and ReLU: an input gate or a supplement gate.

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output.
        kernel_size: Side of the kernel, odd; the output has the size of the input.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Examples:
        >>> Gate(3, 16, kernel_size=1)(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(self, in_chs: int, out_chs: int, kernel_size: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel_size, padding=kernel_size // 2, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(out_chs, device=device, dtype=dtype)
        self.act = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(self.conv.get_parameter('bias'))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))
