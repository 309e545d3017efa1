"""What the converters of all forms share."""

import re
from typing import Any, Callable, Dict, Mapping, NamedTuple, Union

import torch

__all__ = ['Conversion', 'StateDict', 'find_width', 'rename']

StateDict = Dict[str, torch.Tensor]


class Conversion(NamedTuple):
    """A recognized checkpoint: the network, its arguments, and the renamed weights."""
    architecture: str
    model_args: Dict[str, Any]
    state_dict: StateDict


def rename(state_dict: StateDict, rules: Mapping[str, Union[str, Callable[[Any], str]]]) -> StateDict:
    """Rename each parameter by the first rule whose pattern matches its whole name.

    A new name is a template, as `re.sub` takes it, or a function of the match. The function raises LookupError for a
    name that no network has.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        matches = ((re.fullmatch(pattern, name), new) for pattern, new in rules.items())
        try:
            new_name = next(m.expand(new) if isinstance(new, str) else new(m) for m, new in matches if m)
        except (StopIteration, LookupError) as error:
            raise ValueError(
                f'The parameter {name} was not recognized: no released network of this form has one of that name.'
            ) from error
        renamed[new_name] = tensor
    return renamed


def find_width(kind: str, channels: Any, channels_of: Callable[[float], Any]) -> float:
    """Find the width multiplier for which `channels_of` gives these channels."""
    # several widths can give the same channels: the likely ones come first
    for width in (*(i / 20 for i in range(1, 81)), *(i / 100 for i in range(5, 401))):
        if channels_of(width) == channels:
            return width
    raise ValueError(
        f'The width was not recognized: no multiplier from 0.05 to 4 gives a {kind} with {channels} channels.')
