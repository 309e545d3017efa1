"""Build a network from its registered name and keyword arguments."""

import inspect
from dataclasses import fields
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Type, TypeVar

import safetensors
import timm
import torch
import torch.nn as nn
from timm.data import ImageNetInfo
from timm.models import PretrainedCfg, build_model_with_cfg

from .._timm import FeatureGetterNet, config_of, model_name
from ..data import imagenet100
from ..hub.loading import fetch_checkpoint, find_checkpoint
from ..hub.manifest import Checkpoint
from ..hub.released import source_url
from ..memory.options import check_option
from ._network import MemoryNetwork, classifier_prefixes, image_convs, refuse_other_weights

__all__ = ['create_mlfm_model', 'create_network']

StateDict = Dict[str, torch.Tensor]
NetworkT = TypeVar('NetworkT', bound=nn.Module)

# Fields of a pretrained config that say where weights are.
SOURCES = {'url', 'file', 'state_dict', 'hf_hub_id', 'source'}

# Arguments of timm's builder. The caller may give them; a config.json beside weights may not, since it describes the
# network alone.
BUILDER_ARGS = {
    *inspect.signature(build_model_with_cfg).parameters, 'feature_cls', 'features_only', 'out_indices', 'pruned'}


class FeatureNet(FeatureGetterNet):
    """timm's extractor for models with `forward_intermediates`, with two additions.

    They are a switch for gradient checkpointing, and a return type, which TorchScript needs.
    """

    def forward(self, x: torch.Tensor) -> List[torch.Tensor]:
        network: Any = self.model
        features = network.forward_intermediates(
            x, indices=self.out_indices, norm=self.norm, output_fmt=self.output_fmt, intermediates_only=True)
        assert isinstance(features, list)  # for TorchScript; with `intermediates_only` nothing else is returned
        return features

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        network: Any = self.model
        network.set_grad_checkpointing(enable)


def create_network(
        model_cls: Type[NetworkT],
        variant: str,
        pretrained: bool,
        prepare: Callable[..., StateDict],
        memory: bool = True,
        defaults: Optional[Dict[str, Any]] = None,
        /,  # so that an argument of one of these names is the network's, or unknown
        **kwargs,
) -> NetworkT:
    """Build the network `variant` for its entrypoint.

    Weights come from the manifest and are verified, unless the caller gives their location with `pretrained_cfg` or
    `pretrained_cfg_overlay`; timm fetches those. Loading options in a config.json beside such weights are ignored.

    Args:
        model_cls: Class of the network.
        variant: Registered name.
        pretrained: Whether to load the weights that the pretrained config names.
        prepare: Prepares a state dict for the network, or raises, before timm adapts input convolutions and
            classifier. Its arguments are the state dict, the network and `checkpoint`, the weights' entry in the
            manifest or None. It is not called if `pretrained_strict` is False.
        memory: Whether to load weights of the network with its memory.
        defaults: The variant's default arguments; the caller's and those of the weights take precedence.
        **kwargs: Arguments of the class, or of `timm.models.build_model_with_cfg`.

    Returns:
        The network, or with `features_only=True` timm's extractor around it.

    Raises:
        TypeError: An argument is unknown to the class.
        ValueError: An argument contradicts the weights.
        RuntimeError: There are no pretrained weights, or they are of another network or not finite.
    """
    saved = kwargs.get('pretrained_model_args') or {}
    kwargs = {k: v for k, v in kwargs.items() if k not in BUILDER_ARGS or k not in saved or v != saved[k]}
    if isinstance(kwargs.get('pretrained_cfg'), dict):  # a folder's or repository's, or the caller's
        kwargs['pretrained_cfg_overlay'] = {
            'classifier': timm.get_pretrained_cfg_value(variant, 'classifier'),
            **{name: saved[name] for name in ('num_classes',) if name in saved},
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
        model = build_model_with_cfg(model_cls, variant, pretrained, **{**(defaults or {}), **kwargs})
    except safetensors.SafetensorError as error:
        raise RuntimeError(f'The weights file for {variant} is damaged ({error}): get it again.') from error
    if checkpoint is not None:
        del config_of(model)['file']  # the file's path on this machine is no property of the weights
    return model


def create_mlfm_model(
        model_cls: Type[NetworkT],
        trunk_cls: Type[NetworkT],
        variant: str,
        pretrained: bool = False,
        memory: bool = True,
        memory_args: Optional[Dict[str, Any]] = None,
        imagenet100_head: bool = False,
        **kwargs,
) -> NetworkT:
    """Build the network `variant`, with memory or without, for its entrypoint.

    Args:
        model_cls: Class of the network with memory.
        trunk_cls: Class of the same network without memory, which `memory=False` builds.
        variant: Registered name.
        pretrained: Whether to load the weights that the pretrained config names.
        memory: Whether the network has a memory.
        memory_args: The variant's defaults for the memory options of `model_cls`.
        imagenet100_head: Whether to reduce the classifier of a warm start from the 1,000 classes of ImageNet-1k to the
            100 of ImageNet100.
        **kwargs: As for `create_network`.

    Returns:
        The network, or with `features_only=True` timm's extractor around it.

    Raises:
        TypeError: An argument is unknown to the class.
        ValueError: `memory` or a memory option is out of range, or `feature_cls` would bypass the memory.
        RuntimeError: There are no pretrained weights, or they are of another network.
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
    network_cls: Any = model_cls
    options = [field.name for field in fields(network_cls.options_cls)] if memory else []
    for name in kwargs:
        if name.startswith('memory_') and name not in options:
            known = f'the options of its memory are {", ".join(options)}' if memory else 'memory=False has no options'
            raise TypeError(f'{variant} got an unexpected keyword argument {name!r}: {known}.')
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
    return create_network(
        model_cls if memory else trunk_cls, variant, pretrained, prepare, memory, memory_args if memory else None,
        **kwargs)


def prepare_state_dict(
        state_dict: StateDict,
        model: nn.Module,
        checkpoint: Optional[Checkpoint],
        imagenet100_head: bool = False,
) -> StateDict:
    """Complete a warm start, and raise for weights that do not fit.

    Args:
        state_dict: The weights, with any number of input channels and classes.
        model: The network.
        checkpoint: The weights' entry in the manifest, or None.
        imagenet100_head: Whether to reduce the classifier to the classes of ImageNet100.

    Returns:
        Weights that timm can adapt to the network's input channels and classes.

    Raises:
        RuntimeError: They are of another network.
    """
    if checkpoint is not None and checkpoint.kind == 'warm_start' and isinstance(model, MemoryNetwork):
        state_dict = dict(state_dict, **_identity_memory(model))
    if imagenet100_head:
        rows, prefixes = imagenet100_rows(), classifier_prefixes(model)
        state_dict = {k: v[rows] if k.startswith(prefixes) else v for k, v in state_dict.items()}
    refuse_other_weights(model, state_dict, {f'{name}.weight' for name in image_convs(model)})
    return state_dict


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


def imagenet100_rows() -> List[int]:
    """Return the rows of ImageNet100's classes in an ImageNet-1k classifier, in order."""
    rows = {synset: row for row, synset in enumerate(ImageNetInfo('imagenet-1k').label_names())}
    return [rows[synset] for synset in imagenet100.SYNSETS]


def _identity_memory(model: MemoryNetwork) -> StateDict:
    """Weights of a memory at identity, for the image channels of the trunk's weights."""
    model.memory.init_identity()
    weights = {f'memory.{k}': v for k, v in model.memory.state_dict().items()}
    in_chans = config_of(model)['input_size'][0]
    for name in (n for n in image_convs(model) if n.startswith('memory.')):
        weight = weights[f'{name}.weight']
        if weight.shape[1] != in_chans:
            weights[f'{name}.weight'] = nn.init.kaiming_normal_(
                weight.new_empty(weight.shape[0], in_chans, *weight.shape[2:]), mode='fan_out', nonlinearity='relu')
    return weights


def _find_checkpoint(kwargs: Dict[str, Any], variant: str, memory: bool) -> Optional[Checkpoint]:
    """The manifest's checkpoint to load; None if the caller specifies other weights."""
    pretrained_cfg, overlay = kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay') or {}
    if isinstance(pretrained_cfg, (dict, PretrainedCfg)) or SOURCES & {*overlay}:
        return None
    return find_checkpoint(variant, pretrained_cfg or timm.get_pretrained_cfg_value(variant, 'tag') or '', memory)
