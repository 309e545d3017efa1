"""What the converters of all forms share: what they make, and how they speak of parameters."""

from typing import Any, Dict, Iterable, NamedTuple, Optional

import torch

__all__ = ['Conversion', 'StateDict', 'known', 'replace_prefix', 'some']

StateDict = Dict[str, torch.Tensor]


class Conversion(NamedTuple):
    """A recognised checkpoint: registered network, the arguments that build it, and its weights under our names."""
    architecture: str
    model_args: Dict[str, Any]
    state_dict: StateDict


def replace_prefix(name: str, prefixes: Dict[str, str]) -> Optional[str]:
    """A name with the first of some prefixes, old to new, that it starts with replaced; None if it has none of them."""
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def known(name: str, new_name: Optional[str]) -> str:
    """The new name of a parameter, refused if there is none."""
    if new_name is None:
        raise ValueError(
            f'The parameter {name} was not recognised: no released network of this form has one of that name.')
    return new_name


def some(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
