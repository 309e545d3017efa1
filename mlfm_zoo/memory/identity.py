"""Units that let a trunk's features pass unchanged: where a memory starts that is given to a trained trunk."""

from typing import List

import torch

from .unit import Gate, LowFrequencyMemoryUnit

__all__ = ['calibrate_identity', 'init_identity', 'is_identity']

# What a gate of a unit at identity puts out: far enough above 0 for its ReLU to stay open while it is trained, near
# enough for x to keep its precision in bfloat16.
IDENTITY_OFFSET = 1 / 32


@torch.no_grad()
def init_identity(unit: LowFrequencyMemoryUnit) -> None:
    """Set a unit so that x passes unchanged in eval mode and every parameter can be trained away from there.

    The norms of the gates get weight 0 and a small positive bias, which holds their ReLU open: a ReLU at exactly
    zero would pass no gradient. The output gate takes that constant off again. The norms' weights and biases
    receive a gradient at the first step, the convolutions before them from the second.

    Args:
        unit: A unit that is not fused.
    """
    for gate in _gates(unit):
        gate.norm.weight.zero_()
        gate.norm.bias.fill_(IDENTITY_OFFSET)
    bn = unit.output_gate
    calibrate_identity(unit, torch.zeros_like(bn.running_mean), torch.ones_like(bn.running_var) - bn.eps)


@torch.no_grad()
def calibrate_identity(unit: LowFrequencyMemoryUnit, mean: torch.Tensor, var: torch.Tensor) -> None:
    """Set the output gate of a unit at identity to normalise x by its own statistics and undo that again.

    So x passes in training mode too, as far as a batch has the statistics given.

    Args:
        unit: A unit at identity.
        mean: Mean of each channel of x (C,).
        var: Variance of each channel of x (C,).
    """
    bn = unit.output_gate
    bn.running_mean.copy_(mean + IDENTITY_OFFSET * len(_gates(unit)))
    bn.running_var.copy_(var)
    bn.weight.copy_((var + bn.eps).sqrt())
    bn.bias.copy_(mean)


def is_identity(unit: LowFrequencyMemoryUnit) -> bool:
    """Whether the gates of a unit that is not fused are as `init_identity` sets them."""
    return all(bool((g.norm.weight == 0).all() and (g.norm.bias == IDENTITY_OFFSET).all()) for g in _gates(unit))


def _gates(unit: LowFrequencyMemoryUnit) -> List[Gate]:
    return [gate for gate in (unit.input_gate, unit.supplement_gate) if gate is not None]
