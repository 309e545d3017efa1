"""Buffers whose values follow from the arguments of their module."""

from typing import Dict, List, Tuple

import torch
import torch.nn as nn

__all__ = ['FixedBuffers']


class FixedBuffers(nn.Module):
    """Base of modules with buffers that are computed, never trained.

    The values are computed again after anything that changes or loses them: a change of dtype, `to_empty`, a move off
    the meta device, a state dict without them, or timm's `init_non_persistent_buffers`.

    A subclass registers its buffers empty, implements `fixed_buffers`, and ends its constructor with
    `self.init_non_persistent_buffers()`.
    """

    def fixed_buffers(self) -> Dict[str, torch.Tensor]:
        """Compute the values of the buffers by name, on the CPU and of any floating-point dtype."""
        raise NotImplementedError

    def init_non_persistent_buffers(self) -> None:
        """Restore the values of the buffers; those on the meta device stay without values."""
        for name, value in self._values():
            buffer = getattr(self, name)
            if not buffer.is_meta and not torch.equal(buffer, value.to(buffer)):
                setattr(self, name, value.to(buffer))

    def _values(self) -> List[Tuple[str, torch.Tensor]]:
        """The values by buffer, except for fake tensors, which hold none (as in a trace)."""
        with torch.device('cpu'):  # also inside a loader's `with torch.device('meta')`
            values = self.fixed_buffers()
        return [(name, value) for name, value in values.items() if type(getattr(self, name)) is torch.Tensor]

    def _leave_meta(self) -> None:
        """Move meta buffers to the CPU: a convolution with a meta weight returns garbage."""
        if any(buffer.is_meta for buffer in self.buffers(recurse=False)):
            for name, value in self._values():
                buffer = getattr(self, name)
                if buffer.is_meta:
                    setattr(self, name, value.to(buffer.dtype))

    def _apply(self, fn, recurse=True):
        self._leave_meta()
        super()._apply(fn, recurse)
        self.init_non_persistent_buffers()
        return self

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._leave_meta()
