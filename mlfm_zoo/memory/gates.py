"""The gates of a memory unit, and the form of its output gate for inference."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from .._folding import InferenceOnly, scale_and_shift

__all__ = ['FoldedNorm', 'Gate']


class Gate(nn.Module):
    """Convolution with bias, batch norm and ReLU: the form of the input gate and of the supplement gate.

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output.
        kernel_size: Side of the kernel, odd; the output has the size of the input.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
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


class FoldedNorm(InferenceOnly):
    """Batch norm of eval mode as the scale and the shift that it is then: an output gate for inference.

    Args:
        norm: The norm, which stays as it is.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor

    def __init__(self, norm: Any):
        super().__init__()
        scale, shift = (value.detach().to(norm.running_var.dtype) for value in scale_and_shift(norm))
        self.register_buffer('scale', scale, persistent=False)
        self.register_buffer('shift', shift, persistent=False)
        self.register_buffer('mean', torch.zeros_like(shift), persistent=False)
        self.register_buffer('var', torch.ones_like(shift), persistent=False)
        self.training = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting() or torch.compiler.is_compiling():
            # A compiled norm would compute both values again from four statistics wherever it is used.
            return (x * self.scale[:, None, None] + self.shift[:, None, None]).to(x.dtype)
        # Torch's norm is faster than a multiplication and an addition, and takes the two dtypes of autocast.
        return F.batch_norm(x, self.mean, self.var, self.scale, self.shift, eps=0.)
