"""Buffers whose values follow from the arguments of their module."""

from typing import Dict

import torch
import torch.nn as nn

__all__ = ['FixedBuffers']


class FixedBuffers(nn.Module):
    """Base of modules with buffers that are computed, never trained.

    The values are computed again after whatever changes or loses them: a change of dtype, `to_empty`, or a loader that
    builds on the meta device and then calls timm's `init_non_persistent_buffers`. A subclass registers its buffers
    empty, implements `fixed_buffers`, and ends its constructor with `self.init_non_persistent_buffers()`.
    """

    def fixed_buffers(self) -> Dict[str, torch.Tensor]:
        """Compute the values of the buffers.

        Returns:
            Values by the names of the buffers, on the CPU and of any floating-point dtype.
        """
        raise NotImplementedError

    def init_non_persistent_buffers(self) -> None:
        """Restore the values of the buffers; those on the meta device stay without values."""
        with torch.device('cpu'):  # also inside a loader's `with torch.device('meta')`
            values = self.fixed_buffers()
        for name, value in values.items():
            buffer = getattr(self, name)
            if type(buffer) is not torch.Tensor or buffer.is_meta:  # or a fake tensor, which has no values either
                continue
            value = value.to(buffer)
            if not torch.equal(buffer, value):
                setattr(self, name, value)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.init_non_persistent_buffers()
        return self
