"""Build a network from its registered name and keyword arguments."""

import inspect
from functools import partial
from typing import Any, Callable, Dict, Optional, Type, TypeVar

import safetensors
import timm
import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, build_model_with_cfg

from .._timm import FeatureGetterNet, config_of, model_name
from ..data import imagenet100
from ..hub.loading import fetch_checkpoint, find_checkpoint
from ..hub.manifest import Checkpoint
from ..hub.released import source_url
from ..memory.options import check_option
from ._features import FeatureNet
from ._weights import StateDict, classifier_prefixes, prepare_state_dict

__all__ = ['BUILDER_ARGS', 'base_cfg', 'create_mlfm_model', 'create_network', 'without_saved']

NetworkT = TypeVar('NetworkT', bound=nn.Module)

# Fields of a pretrained config that say where weights are.
SOURCES = {'url', 'file', 'state_dict', 'hf_hub_id', 'source'}

# Arguments of timm's builder. The caller may give them.
BUILDER_ARGS = {
    *inspect.signature(build_model_with_cfg).parameters, 'feature_cls', 'features_only', 'out_indices', 'pruned'}


def base_cfg(**kwargs: Any) -> Dict[str, Any]:
    """Pretrained config of a network of the low-frequency memory's paper, without weights."""
    return {
        'num_classes': 100, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'license': 'apache-2.0', 'paper_ids': 'arXiv:2403.08157',
        **kwargs
    }


def without_saved(kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Drop arguments of timm's builder that a config.json beside weights gives.

    It describes the network alone.
    """
    saved = kwargs.get('pretrained_model_args') or {}
    return {k: v for k, v in kwargs.items() if k not in BUILDER_ARGS or k not in saved or v != saved[k]}


def create_network(
        model_cls: Type[NetworkT],
        variant: str,
        pretrained: bool,
        prepare: Callable[..., StateDict],
        model_args: Dict[str, Any],
        memory: bool = True,
        /,  # so that an argument of one of these names is the network's, or unknown
        **kwargs,
) -> NetworkT:
    """Build the network `variant` for its entrypoint; with `features_only=True`, timm's extractor around it.

    Weights come from the manifest and are verified, unless the caller gives their location with `pretrained_cfg` or
    `pretrained_cfg_overlay`; timm fetches those. Loading options in a config.json beside such weights are ignored.
    `prepare` makes weights fit for the network, or raises, before timm adapts input convolutions and classifier. It is
    called with the state dict, the network and `checkpoint`, the weights' entry in the manifest or None, except if
    `pretrained_strict` is False.

    `model_args` are the variant's; arguments of the caller and of the weights take precedence. `memory` tells which
    weights to load, those of the network with its memory or without.
    """
    saved = kwargs.get('pretrained_model_args') or {}
    kwargs = without_saved(kwargs)
    if isinstance(kwargs.get('pretrained_cfg'), dict):  # a folder's or repository's, or the caller's
        kwargs['pretrained_cfg_overlay'] = {
            'classifier': timm.get_pretrained_cfg_value(variant, 'classifier'),
            **({'num_classes': saved['num_classes']} if 'num_classes' in saved else {}),
            **(kwargs.get('pretrained_cfg_overlay') or {})}
    if kwargs.get('features_only') and kwargs.setdefault('feature_cls', 'getter') in ('getter', FeatureGetterNet):
        kwargs['feature_cls'] = FeatureNet
    checkpoint = _find_checkpoint(kwargs, variant, memory) if pretrained else None
    if checkpoint is not None:
        weights = fetch_checkpoint(checkpoint, kwargs.get('cache_dir'))
        overlay = kwargs['pretrained_cfg_overlay'] = dict(kwargs.get('pretrained_cfg_overlay') or {})
        overlay['file'] = str(weights.path)
        if 'authors' in checkpoint.places:
            overlay['url'] = source_url(checkpoint)  # the network without memory has another file
        for name, value in weights.model_args.items() if memory else ():
            if kwargs.setdefault(name, value) != value:
                raise ValueError(
                    f'{name} is {kwargs[name]!r}, but the weights {checkpoint.name} were trained with {value!r}: leave '
                    'it out, or build the network with pretrained=False.')
    if kwargs.get('pretrained_strict', True):
        kwargs['pretrained_filter_fn'] = partial(_prepare_whole, prepare=partial(prepare, checkpoint=checkpoint))
    try:
        model = build_model_with_cfg(model_cls, variant, pretrained, **{**model_args, **kwargs})
    except safetensors.SafetensorError as error:
        raise RuntimeError(f'The weights file for {variant} is damaged ({error}): get it again.') from error
    if checkpoint is not None:
        del config_of(model)['file']  # the file's path on this machine is no property of the weights
    return model


def create_mlfm_model(
        model_cls: Type[NetworkT],
        trunk_cls: Type[NetworkT],
        variant: str,
        pretrained: bool,
        model_args: Dict[str, Any],
        memory_args: Optional[Dict[str, Any]] = None,
        memory: bool = True,
        imagenet100_head: bool = False,
        **kwargs,
) -> NetworkT:
    """Build the network `variant`, of `model_cls` with memory or of `trunk_cls` without, for its entrypoint.

    `model_args` and `memory_args` are the variant's. `imagenet100_head` reduces the classifier of a warm start from the
    1,000 classes of ImageNet-1k to the 100 of ImageNet100. Other arguments are those of `create_network`.
    """
    saved = kwargs.get('pretrained_model_args') or {}
    imagenet100_head = imagenet100_head and 'imagenet100_head' not in saved  # a saved classifier is already reduced
    check_option('memory', memory, (True, False))
    if memory and kwargs.get('feature_cls', 'getter') not in ('getter', FeatureGetterNet):
        # other extractors call or trace the trunk's modules one by one
        raise ValueError(
            f"feature_cls is {kwargs['feature_cls']!r}, expected 'getter': the others would bypass the memory.")
    if not memory:  # a folder's config may hold memory options
        kwargs = {k: v for k, v in kwargs.items() if not k.startswith('memory_') or k not in saved or v != saved[k]}
    prepare: Callable[..., StateDict] = prepare_state_dict
    if imagenet100_head:
        checkpoint = _find_checkpoint(kwargs, variant, memory) if pretrained else None
        if checkpoint is None or checkpoint.kind != 'warm_start' or checkpoint.num_classes != 1000:
            raise ValueError(
                f'imagenet100_head cuts the classifier of a warm start, expected one of {variant} of 1,000 classes '
                'with pretrained=True: name it by its tag, or leave imagenet100_head out.')
        prepare = partial(prepare_state_dict, imagenet100_head=True)
        kwargs['pretrained_cfg_overlay'] = dict(
            kwargs.get('pretrained_cfg_overlay') or {}, num_classes=len(imagenet100.SYNSETS))
    if memory:
        model_args = {**model_args, **(memory_args or {})}
    return create_network(
        model_cls if memory else trunk_cls, variant, pretrained, prepare, model_args, memory, **kwargs)


def _prepare_whole(state_dict: StateDict, model: nn.Module, prepare: Callable[..., StateDict]) -> StateDict:
    """Raise for weights that are not finite; make timm load a classifier that fits."""
    for name, value in state_dict.items():
        if torch.is_tensor(value) and not value.isfinite().all():
            raise RuntimeError(
                f'The weights of {model_name(model)} hold values in {name} that are not finite: the training had '
                'diverged, or the file is damaged.')
    state_dict, network = prepare(state_dict, model), model.state_dict()
    names = [f'{prefix}weight' for prefix in classifier_prefixes(model)]
    if names and all(k in network and k in state_dict and network[k].shape == state_dict[k].shape for k in names):
        # timm compares the numbers of classes of config and caller, and may drop a classifier that fits
        config_of(model)['num_classes'] = model.num_classes
    return state_dict


def _find_checkpoint(kwargs: Dict[str, Any], variant: str, memory: bool) -> Optional[Checkpoint]:
    """The manifest's checkpoint to load; None if the caller specifies other weights."""
    pretrained_cfg, overlay = kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay') or {}
    if isinstance(pretrained_cfg, (dict, PretrainedCfg)) or SOURCES & {*overlay}:
        return None
    return find_checkpoint(variant, pretrained_cfg or timm.get_pretrained_cfg_value(variant, 'tag') or '', memory)
