"""The paper's literal GSSDNet (split, filter, concatenate), to compare speed with."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from mlfm_zoo.models.gssdnet import FixedConv2d, GSSDBlock


class LiteralOperator(nn.Module):
    """An operator with the kernels of another that filters the first channels and lets the others pass."""

    def __init__(self, operator: FixedConv2d):
        super().__init__()
        passing = operator.weight.flatten(1).eq(torch.eye(9)[4].to(operator.weight)).all(1)
        self.sizes = [int((~passing).sum()), int(passing.sum())]
        self.stride = operator.stride
        self.register_buffer('weight', operator.weight[~passing])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filtered, passed = x.split(self.sizes, dim=1)
        filtered = F.conv2d(filtered, self.weight, stride=self.stride, padding=1, groups=self.sizes[0])
        return torch.cat([filtered, passed], dim=1) if self.sizes[1] else filtered


def use_literal_operators(model: nn.Module) -> nn.Module:
    """Put literal operators in the place of a network's own; returns the network."""
    for module in model.modules():
        if isinstance(module, GSSDBlock):
            module.conv_dw = LiteralOperator(module.conv_dw)
    return model
