"""The gate that learns which of the 192 coefficients a network needs (the paper's section 3.3)."""

from typing import Any, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ['ChannelGate']


class ChannelGate(nn.Module):
    """Opens or closes each channel, for each image.

    Mean over positions, 1x1 convolution, norm, ReLU, and two values a channel, off and on. In training the decision is
    drawn by a straight-through Gumbel softmax; in eval mode it is the larger value, so that answers repeat themselves
    (the released code draws then too).

    Attributes:
        penalty: Number of open channels, mean over the images of the last training batch, with a gradient; None in eval
            mode. The loss of the paper is cross entropy plus a factor times this.

    Args:
        num_chs: Channels.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    def __init__(self, num_chs: int = 192, device: Any = None, dtype: Any = None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv1 = nn.Conv2d(num_chs, num_chs, 1, **dd)
        self.norm = nn.BatchNorm2d(num_chs, **dd)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(num_chs, 2 * num_chs, 1, groups=num_chs, **dd)
        self.penalty: Optional[torch.Tensor] = None
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=0.001)
            assert conv.bias is not None
            with torch.no_grad():
                conv.bias[0::2] = 0 if conv is self.conv1 else 0.1
                conv.bias[1::2] = 0 if conv is self.conv1 else 2

    def decide(self, x: torch.Tensor) -> torch.Tensor:
        """Decide on channels of x (N, C, H, W): 1 for open ones and 0 for others, (N, C, 1, 1)."""
        x_mean = x.mean((2, 3), keepdim=True)
        pair = self.conv2(self.act(self.norm(self.conv1(x_mean)))).flatten(1).unflatten(1, (-1, 2))
        if self.training:
            return F.gumbel_softmax(pair.float(), hard=True)[..., 1, None, None].to(x.dtype)
        return (pair[..., 1] > pair[..., 0])[..., None, None].to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Close channels of x (N, C, H, W)."""
        decision = self.decide(x)
        if self.training and not torch.jit.is_scripting():
            self.penalty = decision.sum(1).mean()
        return x * decision
