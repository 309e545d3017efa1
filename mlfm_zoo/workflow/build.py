"""Build a network from a name and arguments of a user or a file."""

from typing import Any, Mapping, Optional

import timm
import torch.nn as nn

from ..hub.manifest import load_manifest

__all__ = ['build_network', 'first_line']


def build_network(name: str, model_args: Optional[Mapping[str, Any]] = None, pretrained: bool = False) -> nn.Module:
    """Build a network; any error is one sentence with its name.

    Args:
        name: A name that `timm.create_model` takes, such as 'local-dir:FOLDER'.
        model_args: Arguments of the network.
        pretrained: Whether to load its weights.

    Returns:
        The network.

    Raises:
        ValueError: There is no such network, it takes no such arguments, or its folder is damaged.
        RuntimeError: The weights are not available, or do not fit.
    """
    if ':' not in name and not timm.is_model(name):
        raise ValueError(f'timm knows no model named {name}: give a registered name, or local-dir:FOLDER for a folder.')
    if pretrained and any(c.name == name and c.kind == 'initialisation' for c in load_manifest().values()):
        raise ValueError(f'{name} is an initialisation, which has yet to be trained on DCT coefficients: train it, and '
                         'give the trained weights.')
    try:
        return timm.create_model(name, pretrained=pretrained, **(model_args or {}))
    except (MemoryError, RuntimeError):
        raise
    except Exception as error:  # of any kind: arguments go unchecked into timm and torch
        raise ValueError(f'{name} could not be loaded ({first_line(error)}): correct its arguments, or give a whole '
                         'folder with config.json and weights.') from error


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f'{type(error).__name__}: {error}'.splitlines()[0][:200]
