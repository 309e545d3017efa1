"""Count a network's parameters, multiply-adds and activations on the meta device."""

from typing import NamedTuple, Optional, Tuple

import timm
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from .._timm import config_of

__all__ = ['Cost', 'cost_of', 'count_cost']


class Cost(NamedTuple):
    """Cost of one image.

    Attributes:
        params: Parameters.
        madds: Multiply-adds of convolutions and linear layers, half of what torch's FlopCounterMode counts.
        activations: Elements of the outputs of convolutions and linear layers.
        input_size: The image (channels, height, width).
    """
    params: int
    madds: int
    activations: int
    input_size: Tuple[int, int, int]


def count_cost(name: str, input_size: Optional[Tuple[int, int, int]] = None, **kwargs) -> Cost:
    """Count the cost of a network by name, without weights or arithmetic.

    Args:
        name: Name that `timm.create_model` takes.
        input_size: The image (channels, height, width), that of the network's config if None.
        **kwargs: Arguments of the network.

    Returns:
        The cost of one image.

    Examples:
        >>> cost = count_cost('mlfm_mobilenetv2_010', num_classes=100)
        >>> cost.input_size, cost.params < 1e6
        ((3, 224, 224), True)
    """
    model = timm.create_model(name, device='meta', **kwargs)
    return cost_of(model, tuple(input_size or config_of(model)['input_size']))


def cost_of(model: nn.Module, input_size: Tuple[int, int, int]) -> Cost:
    """Count the cost of a model on the meta device.

    Args:
        model: The model, which is set to eval mode.
        input_size: The image (channels, height, width).

    Returns:
        The cost of one image.

    Examples:
        >>> model = timm.create_model('test_mlfm_resnet', device='meta')
        >>> cost_of(model, (3, 64, 64)).input_size
        (3, 64, 64)
    """
    model.eval()
    activations = 0

    def count(module, args, output):
        nonlocal activations
        activations += output.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(count)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.empty(1, *input_size, device='meta'))
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, activations, input_size)
