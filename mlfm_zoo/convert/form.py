"""What the converters of all forms share."""

import re
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Optional, Union

import torch

__all__ = ['Conversion', 'StateDict', 'rename', 'shape_of', 'widths']

StateDict = Dict[str, torch.Tensor]


class Conversion(NamedTuple):
    """A recognized checkpoint: the network, its arguments, and the renamed weights."""
    architecture: str
    model_args: Dict[str, Any]
    state_dict: StateDict


def rename(state_dict: StateDict, rules: Mapping[str, Union[str, Callable[[Any], Optional[str]]]]) -> StateDict:
    """Rename each parameter by the first rule that applies to it.

    Args:
        state_dict: Parameters under their released names.
        rules: New names by patterns of the whole released name. A new name is a template, as `re.sub` takes it, or a
            function of the match that returns None for a name that no network has.

    Returns:
        The same parameters under their new names.

    Raises:
        ValueError: No rule applies to a name.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        matches = ((re.fullmatch(pattern, name), new) for pattern, new in rules.items())
        new_name = next((m.expand(new) if isinstance(new, str) else new(m) for m, new in matches if m), None)
        if new_name is None:
            raise ValueError(
                f'The parameter {name} was not recognized: no released network of this form has one of that name.')
        renamed[new_name] = tensor
    return renamed


def shape_of(weights: StateDict, name: str, kind: str, ndim: int = 4) -> torch.Size:
    """Return the shape of a weight; raise ValueError unless it has `ndim` dimensions."""
    if name not in weights:
        raise ValueError(f'The checkpoint looks like a {kind} but lacks {name}.')
    if weights[name].ndim != ndim:
        raise ValueError(f'The checkpoint looks like a {kind}, but its {name} does not have {ndim} dimensions.')
    return weights[name].shape


def widths(*registered: float) -> Iterator[float]:
    """Width multipliers to try, likely ones first: several can give the same channels."""
    yield from registered
    yield from (i / 20 for i in range(1, 81))
    yield from (i / 100 for i in range(5, 401))
