"""What the families share: from a registered name and its keyword arguments to a model."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar

import safetensors
import timm
import torch
import torch.nn as nn
from timm.data import ImageNetInfo
from timm.models import PretrainedCfg, build_model_with_cfg
from torch.utils._python_dispatch import TorchDispatchMode

from .._timm import FeatureGetterNet, config_of
from ..data import imagenet100
from ..hub.files import Weights
from ..hub.loading import fetch_checkpoint, find_checkpoint
from ..hub.manifest import Checkpoint
from ..hub.released import source_url
from ..memory.options import check_option
from ._network import MemoryNetwork, classifier_prefixes, image_convs, refuse_other_weights

__all__ = ['create_mlfm_model', 'create_network']

StateDict = Dict[str, torch.Tensor]

# What a pretrained config names a place for weights with.
SOURCES = {'url', 'file', 'state_dict', 'hf_hub_id', 'source'}

TrunkT = TypeVar('TrunkT', bound=nn.Module)


class FeatureNet(FeatureGetterNet):
    """timm's feature extractor for models with `forward_intermediates`, with a switch for gradient checkpointing.

    timm's extractor for ResNet and the like has that switch, this one of timm's has not.
    """

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        network: Any = self.model  # of a class of timm's, which has that method
        network.set_grad_checkpointing(enable)


def create_mlfm_model(
        model_cls: Type[TrunkT],
        trunk_cls: Type[TrunkT],
        variant: str,
        pretrained: bool = False,
        memory: bool = True,
        memory_args: Optional[Dict[str, Any]] = None,
        imagenet100_head: bool = False,
        **kwargs,
) -> TrunkT:
    """Build the network `variant`, with memory or without, as `timm.create_model` asks for it.

    Args:
        model_cls: Class of the network with memory.
        trunk_cls: Class of the same network without; built, with none of the memory options, if `memory` is False.
        variant: Registered name.
        pretrained: Whether to load the weights that the pretrained config names.
        memory: Whether the network has a memory.
        memory_args: The variant's own defaults for the memory options of `model_cls`.
        imagenet100_head: Whether the classifier of a warm start, which tells the 1,000 classes of ImageNet-1k apart,
            is cut to the 100 of ImageNet100.
        **kwargs: Arguments of the class, or of `timm.models.build_model_with_cfg`.

    Returns:
        The network, or with `features_only=True` timm's extractor around it.

    Raises:
        TypeError: An argument is unknown to the class.
        ValueError: `memory` or a memory option is out of range, or features are asked for in a way that would bypass
            the memory.
        RuntimeError: There are no pretrained weights, or they are another network's.
    """
    check_option('memory', memory, (True, False))
    _choose_feature_extractor(kwargs, memory)
    checkpoint = _choose_checkpoint(kwargs, variant, memory) if pretrained else None
    _check_head(variant, imagenet100_head, checkpoint)
    weights = Weights(Path()) if checkpoint is None else fetch_checkpoint(checkpoint, kwargs.get('cache_dir'))
    _choose_memory_options(kwargs, memory, memory_args or {}, checkpoint, weights)
    warm_start = memory and checkpoint is not None and checkpoint.kind == 'warm_start'
    prepare = partial(_prepare_state_dict, warm_start=warm_start, imagenet100_head=imagenet100_head)
    _plan_loading(kwargs, checkpoint, weights, prepare)
    if imagenet100_head:
        kwargs['pretrained_cfg_overlay'].update(num_classes=len(imagenet100.SYNSETS))
    return _build(model_cls if memory else trunk_cls, variant, pretrained, checkpoint, **kwargs)


def create_network(
        model_cls: Type[TrunkT],
        variant: str,
        pretrained: bool,
        prepare: Callable[[StateDict, TrunkT], StateDict],
        initialise: Optional[Callable[[StateDict, TrunkT], StateDict]] = None,
        **kwargs,
) -> TrunkT:
    """Build the network `variant`, of a class that never has a memory, as `timm.create_model` asks for it.

    Args:
        model_cls: Class of the network.
        variant: Registered name.
        pretrained: Whether to load the weights that the pretrained config names.
        prepare: Makes weights ready for the network, or refuses them, before timm adapts input convs and classifier;
            not asked where `pretrained_strict` is False.
        initialise: Makes weights of an initialisation, which are of another network, into some of this one, before
            `prepare` sees them.
        **kwargs: Arguments of the class, or of `timm.models.build_model_with_cfg`.

    Returns:
        The network, or with `features_only=True` timm's extractor around it.

    Raises:
        TypeError: An argument is unknown to the class.
        RuntimeError: There are no pretrained weights, or they are another network's.
    """
    _choose_feature_extractor(kwargs, memory=False)
    checkpoint = _choose_checkpoint(kwargs, variant, memory=True) if pretrained else None
    weights = Weights(Path()) if checkpoint is None else fetch_checkpoint(checkpoint, kwargs.get('cache_dir'))
    if initialise is not None and checkpoint is not None and checkpoint.kind == 'initialisation':
        prepare = partial(_initialise, initialise=initialise, prepare=prepare)
    _plan_loading(kwargs, checkpoint, weights, prepare)
    return _build(model_cls, variant, pretrained, checkpoint, **kwargs)


def _initialise(
        state_dict: StateDict,
        model: TrunkT,
        initialise: Callable[[StateDict, TrunkT], StateDict],
        prepare: Callable[[StateDict, TrunkT], StateDict],
) -> StateDict:
    return prepare(initialise(state_dict, model), model)


def _build(
        model_cls: Type[TrunkT],
        variant: str,
        pretrained: bool,
        checkpoint: Optional[Checkpoint],
        **kwargs,
) -> TrunkT:
    build: Callable[..., TrunkT] = model_cls
    if pretrained and isinstance(kwargs.get('pretrained_cfg'), dict):
        build = _guarded(build, variant, kwargs['pretrained_cfg'], kwargs.get('pretrained_model_args') or {})
    try:
        model = build_model_with_cfg(build, variant, pretrained, **kwargs)
    except safetensors.SafetensorError as error:
        raise RuntimeError(f'The weights file for {variant} is damaged ({error}): get it again.') from None
    if checkpoint is not None:
        del config_of(model)['file']  # where the file lies here is no property of the weights
    return model


def _choose_feature_extractor(kwargs: Dict[str, Any], memory: bool) -> None:
    """Let `features_only` use the extractor that asks the network itself."""
    feature_cls = kwargs.pop('feature_cls', 'getter')
    is_getter = feature_cls in ('getter', FeatureGetterNet)
    if memory and not is_getter:
        # they call or trace the trunk's modules one by one
        raise ValueError(f"feature_cls is {feature_cls!r}, expected 'getter': the others would bypass the memory.")
    if kwargs.get('features_only'):
        kwargs['feature_cls'] = FeatureNet if is_getter else feature_cls


def _choose_checkpoint(kwargs: Dict[str, Any], variant: str, memory: bool) -> Optional[Checkpoint]:
    """The manifest's checkpoint to load, unless the caller names a place for weights."""
    pretrained_cfg, overlay = kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay') or {}
    if isinstance(pretrained_cfg, (dict, PretrainedCfg)) or SOURCES & {*overlay}:
        return None
    return find_checkpoint(variant, pretrained_cfg or timm.get_pretrained_cfg_value(variant, 'tag') or '', memory)


def _check_head(variant: str, imagenet100_head: bool, checkpoint: Optional[Checkpoint]) -> None:
    if imagenet100_head and (
            checkpoint is None or checkpoint.kind != 'warm_start' or checkpoint.num_classes != 1000):
        raise ValueError(
            f'imagenet100_head cuts the classifier of a warm start, expected one of {variant} of 1,000 classes '
            'with pretrained=True: name it by its tag, or leave imagenet100_head out.')


def _choose_memory_options(
        kwargs: Dict[str, Any],
        memory: bool,
        memory_args: Dict[str, Any],
        checkpoint: Optional[Checkpoint],
        weights: Weights,
) -> None:
    """Fill in what the weights decide and the variant's own options.

    Without memory, options that a folder's config brings along are left out.
    """
    if memory:
        for name, value in weights.model_args.items():
            if kwargs.setdefault(name, value) != value:
                assert checkpoint is not None
                raise ValueError(
                    f'{name} is {kwargs[name]!r}, but the weights {checkpoint.name} were trained with {value!r}: leave '
                    'it out, or build the network with pretrained=False.')
        for name, value in memory_args.items():
            kwargs.setdefault(name, value)
        return
    saved = kwargs.get('pretrained_model_args') or {}
    for name in [k for k, v in kwargs.items() if k.startswith('memory_') and k in saved and v == saved[k]]:
        del kwargs[name]


def _plan_loading(
        kwargs: Dict[str, Any],
        checkpoint: Optional[Checkpoint],
        weights: Weights,
        prepare: Callable[[StateDict, Any], StateDict],
) -> None:
    """Tell timm where the checkpoint's file lies and what to do with what is in it.

    Weights that the manifest lists are verified by now; weights that the caller names a place for, with
    `pretrained_cfg` or `pretrained_cfg_overlay`, are timm's business alone.
    """
    if checkpoint is not None:
        overlay = kwargs['pretrained_cfg_overlay'] = dict(kwargs.get('pretrained_cfg_overlay') or {})
        overlay['file'] = str(weights.path)
        if 'authors' in checkpoint.places:
            overlay['url'] = source_url(checkpoint)  # of the network without memory it is another file
    if kwargs.get('pretrained_strict', True):
        kwargs['pretrained_filter_fn'] = prepare


class _SizeLimit(TorchDispatchMode):
    """Refuses to make more values than a limit, before memory is taken for them.

    Args:
        limit: Values at most.
        free: Sizes of the first dimension, and of the second, whose tensors do not count.
    """

    def __init__(self, limit: int, free: Tuple[Optional[int], ...]):
        super().__init__()
        self.left = limit
        self.free = free

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.empty.memory_format:
            size = list(args[0])
            if size[:1] != [self.free[0]] and size[1:2] != [self.free[1]]:
                self.left -= math.prod(size)
            if self.left < 0:
                raise ValueError(f'it has a tensor {tuple(size)}, and the files beside it are far smaller')
        return func(*args, **(kwargs or {}))


def _guarded(
        cls: Callable[..., TrunkT],
        variant: str,
        pretrained_cfg: Dict[str, Any],
        saved: Dict[str, Any],
) -> Callable[..., TrunkT]:
    """Guard a class against a folder's config that builds no network, or one far too large for the weights beside it.

    Args:
        cls: The class.
        variant: Registered name.
        pretrained_cfg: The folder's, as timm read it.
        saved: Arguments of the network that the folder's config names.

    Returns:
        What is called in its place, and refuses such a config with a ValueError.
    """
    if pretrained_cfg.get('source') not in ('local-dir', 'hf-hub'):
        return cls

    def build(**kwargs) -> TrunkT:
        # heads and stems of the caller's own may be of any size
        free = tuple(kwargs.get(k) if kwargs.get(k) != saved.get(k) else None for k in ('num_classes', 'in_chans'))
        try:
            for name in ('layers', 'depths'):
                if sum(kwargs.get(name) or ()) > 1000:
                    raise ValueError(f'{name} are more than 1,000 blocks')
            if pretrained_cfg['source'] != 'local-dir':
                return cls(**kwargs)
            limit = 8 * sum(file.stat().st_size for file in Path(pretrained_cfg['file']).iterdir())
            with _SizeLimit(limit, free):
                return cls(**kwargs)
        except Exception as error:  # of any kind: timm does not check these values
            what = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
            raise ValueError(
                f'The config.json given for {variant} describes no network with the arguments given beside it '
                f'({what}): correct them, or get the file again.') from None
    return build


def imagenet100_rows() -> List[int]:
    """Rows of an ImageNet-1k classifier that belong to the classes of ImageNet100, in its order."""
    rows = {synset: row for row, synset in enumerate(ImageNetInfo('imagenet-1k').label_names())}
    return [rows[synset] for synset in imagenet100.SYNSETS]


def _identity_memory(model: MemoryNetwork) -> StateDict:
    """Weights of a memory at identity, for images of the channels that the trunk's weights were trained on."""
    model.memory.init_identity()
    weights = {f'memory.{k}': v for k, v in model.memory.state_dict().items()}
    in_chans = config_of(model)['input_size'][0]
    for name in (n for n in image_convs(model) if n.startswith('memory.')):
        weight = weights[f'{name}.weight']
        if weight.shape[1] != in_chans:
            weights[f'{name}.weight'] = nn.init.kaiming_normal_(
                weight.new_empty(weight.shape[0], in_chans, *weight.shape[2:]), mode='fan_out', nonlinearity='relu')
    return weights


def _prepare_state_dict(
        state_dict: StateDict,
        model: nn.Module,
        warm_start: bool = False,
        imagenet100_head: bool = False,
) -> StateDict:
    """Complete a warm start, and refuse weights that do not fit, before timm adapts input convs and classifier."""
    if warm_start:
        assert isinstance(model, MemoryNetwork)
        state_dict = dict(state_dict, **_identity_memory(model))
    if imagenet100_head:
        rows, prefixes = imagenet100_rows(), classifier_prefixes(model)
        state_dict = {k: v[rows] if k.startswith(prefixes) else v for k, v in state_dict.items()}
    refuse_other_weights(model, state_dict, {f'{name}.weight' for name in image_convs(model)})
    return state_dict
