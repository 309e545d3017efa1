"""Build a network from a name and arguments of a user or a file."""

from typing import Any, Mapping, Optional

import timm
import torch
import torch.nn as nn
from timm.data import create_transform, resolve_model_data_config

from .._timm import config_of
from ..data.folders import label_names
from ..hub.manifest import load_manifest
from ..models._create import BUILDER_ARGS

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
        ValueError: There is no such network, it takes no such arguments, its folder is damaged, or its classifier would
            be untrained.
        RuntimeError: The weights are not available, do not fit, or are not finite.
    """
    if ':' not in name and not timm.is_model(name):
        raise ValueError(f'timm knows no model named {name}: give a registered name, or local-dir:FOLDER for a folder.')
    if pretrained and any(c.name == name and c.kind == 'initialisation' for c in load_manifest().values()):
        raise ValueError(f'{name} is an initialisation, which has yet to be trained on DCT coefficients: train it, and '
                         'give the trained weights.')
    args = dict(model_args or {})
    try:
        model = timm.create_model(name, pretrained=pretrained, **args)
        # fails here if a folder's config or an argument has another type
        config = resolve_model_data_config(model)
        create_transform(**config)
        label_names(model), dict(config_of(model).get('label_descriptions') or {})
        if pretrained and (args or ':' in name):
            with torch.no_grad():
                model.eval()(torch.zeros(1, *config['input_size']))
            model.train()
    except Exception as error:  # of any kind: arguments and configs go unchecked into timm and torch
        if isinstance(error, (MemoryError, RuntimeError)) and not isinstance(error, RecursionError):
            raise
        raise ValueError(f'{name} could not be loaded ({first_line(error)}): correct its arguments, or give a whole '
                         'folder with config.json and weights.') from error
    if pretrained:
        _refuse_untrained(name, model, args)
    if 'checkpoint_path' in args:  # weights of the caller, whose classes the registered config does not know
        config_of(model).update(file=str(args['checkpoint_path']), label_names=None, label_descriptions=None)
    return model


def _refuse_untrained(name: str, model: nn.Module, args: Mapping[str, Any]) -> None:
    """Raise if a part of a network has no trained weights, which timm allows."""
    steering = BUILDER_ARGS & {*getattr(model, 'pretrained_model_args', {})}
    if steering:
        raise ValueError(
            f'{name} has {min(steering)} in the model_args of its config.json, expected arguments of the network: '
            'remove it.')
    broken = next((k for k, v in model.state_dict().items() if not v.isfinite().all()), None)
    if broken:
        raise RuntimeError(
            f'The weights of {name} hold values in {broken} that are not finite: the training had diverged, or the '
            'file is damaged.')
    num_classes, trained = getattr(model, 'num_classes', 0), config_of(model).get('num_classes')
    if trained is not None and num_classes not in (0, trained) and 'checkpoint_path' not in args:
        raise ValueError(
            f'{name} has weights for {trained} classes, and num_classes is {num_classes}, for which its classifier is '
            'untrained: leave num_classes out, or give checkpoint_path.')


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f'{type(error).__name__}: {error}'.splitlines()[0][:200]
