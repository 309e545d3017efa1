"""A unit that lets a trunk's features pass unchanged: where a memory starts that is given to a trained trunk."""

from typing import TYPE_CHECKING, Any, List

import torch

__all__ = ['Identity']

# What a gate of a unit at identity puts out: far enough above 0 for its ReLU to stay open while it is trained, near
# enough for x to keep its precision in bfloat16.
IDENTITY_OFFSET = 1 / 32


class Identity:
    """The part of a memory unit that sets it to the identity, and knows whether it is there."""

    if TYPE_CHECKING:  # what the unit brings along; TorchScript would read annotations that it can see
        input_gate: Any  # a Gate, in a fused unit a FoldedGate
        supplement_gate: Any  # the same, or None
        output_gate: Any  # a BatchNorm2d, in a fused unit a FoldedNorm

    @torch.no_grad()
    def init_identity(self) -> None:
        """Set the unit so that x passes unchanged in eval mode and every parameter can be trained away from there.

        The norms of the gates get weight 0 and a small positive bias, which holds their ReLU open: a ReLU at exactly
        zero would pass no gradient. The output gate takes that constant off again. The norms' weights and biases
        receive a gradient at the first step, the convolutions before them from the second.
        """
        for gate in self._gates():
            gate.norm.weight.zero_()
            gate.norm.bias.fill_(IDENTITY_OFFSET)
        bn = self.output_gate
        self.calibrate_identity(torch.zeros_like(bn.weight), torch.ones_like(bn.weight) - bn.eps)

    @torch.no_grad()
    def calibrate_identity(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Set the output gate of a unit at identity to normalise x by its own statistics and undo that again.

        So x passes in training mode too, as far as a batch has the statistics given.

        Args:
            mean: Mean of each channel of x (C,).
            var: Variance of each channel of x (C,).
        """
        bn = self.output_gate
        bn.get_buffer('running_mean').copy_(mean + IDENTITY_OFFSET * len(self._gates()))
        bn.get_buffer('running_var').copy_(var)
        bn.weight.copy_((var + bn.eps).sqrt())
        bn.bias.copy_(mean)

    def is_identity(self) -> bool:
        """Whether the gates are as `init_identity` sets them."""
        return all(bool((g.norm.weight == 0).all() and (g.norm.bias == IDENTITY_OFFSET).all()) for g in self._gates())

    @torch.jit.ignore
    def _gates(self) -> List[Any]:
        return [gate for gate in (self.input_gate, self.supplement_gate) if gate is not None]
