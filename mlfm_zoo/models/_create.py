"""What the families share: from a registered name and its keyword arguments to a model, with memory or without."""

import copy
from functools import partial
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Optional, Tuple, Type

import safetensors
import timm
import torch
import torch.nn as nn
from timm.data import ImageNetInfo
from timm.models import PretrainedCfg, build_model_with_cfg

from .._timm import FeatureGetterNet
from ..data import imagenet100
from ..hub.loading import fetch_checkpoint, find_checkpoint
from ..memory import LowFrequencyMemoryUnit, check_option

__all__ = ['MemoryNetwork', 'create_mlfm_model', 'image_convs']


# What a pretrained config names a place for weights with.
SOURCES = {'url', 'file', 'state_dict', 'hf_hub_id', 'source'}


class FeatureNet(FeatureGetterNet):
    """timm's feature extractor for models with `forward_intermediates`, with a switch for gradient checkpointing.

    timm's extractor for ResNet and the like has that switch, this one of timm's has not.
    """

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)


def create_mlfm_model(
        model_cls: Type[nn.Module],
        trunk_cls: Type[nn.Module],
        variant: str,
        pretrained: bool = False,
        memory: bool = True,
        memory_args: Optional[Dict[str, Any]] = None,
        imagenet100_head: bool = False,
        **kwargs,
) -> nn.Module:
    """Build the network `variant`, as `timm.create_model` asks for it.

    Weights that the manifest lists are downloaded and verified first; weights that the caller names a place for, with
    `pretrained_cfg` or `pretrained_cfg_overlay`, are timm's business alone.

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

    Raises:
        TypeError: An argument is unknown to the class.
        ValueError: `memory` or a memory option is out of range, or features are asked for in a way that would bypass
            the memory.
        RuntimeError: There are no pretrained weights, or they are another network's.
    """
    check_option('memory', memory, (True, False))
    feature_cls = kwargs.pop('feature_cls', 'getter')
    is_getter = feature_cls in ('getter', FeatureGetterNet)
    if memory and not is_getter:
        # they call or trace the trunk's modules one by one
        raise ValueError(f"feature_cls is {feature_cls!r}, expected 'getter': the others would bypass the memory.")
    if kwargs.get('features_only'):
        kwargs['feature_cls'] = FeatureNet if is_getter else feature_cls
    checkpoint = None
    overlay = dict(kwargs.get('pretrained_cfg_overlay') or {})
    if pretrained and not isinstance(kwargs.get('pretrained_cfg'), (dict, PretrainedCfg)) and not SOURCES & {*overlay}:
        tag = kwargs.get('pretrained_cfg') or timm.get_pretrained_cfg(variant).tag or ''
        checkpoint = find_checkpoint(variant, tag)
        overlay['file'] = str(fetch_checkpoint(checkpoint, kwargs.get('cache_dir')))
    if imagenet100_head:
        if checkpoint is None or checkpoint.kind != 'warm_start' or checkpoint.num_classes != 1000:
            raise ValueError(
                f'imagenet100_head cuts the classifier of a warm start, expected one of {variant} of 1,000 classes '
                'with pretrained=True: name it by its tag, or leave imagenet100_head out.')
        overlay['num_classes'] = len(imagenet100.SYNSETS)
    if overlay:
        kwargs['pretrained_cfg_overlay'] = overlay
    if kwargs.get('pretrained_strict', True):
        kwargs['pretrained_filter_fn'] = partial(
            _prepare_state_dict,
            warm_start=memory and checkpoint is not None and checkpoint.kind == 'warm_start',
            imagenet100_head=imagenet100_head,
        )
    if memory:
        kwargs = dict(memory_args or {}, **kwargs)
    else:  # a folder's config may carry memory options, which are not the caller's
        saved = kwargs.get('pretrained_model_args') or {}
        kwargs = {k: v for k, v in kwargs.items() if not (k.startswith('memory_') and k in saved and v == saved[k])}
    if pretrained and isinstance(kwargs.get('pretrained_cfg'), dict):
        _refuse_bad_config(model_cls if memory else trunk_cls, variant, **kwargs)
    try:
        model = build_model_with_cfg(model_cls if memory else trunk_cls, variant, pretrained, **kwargs)
    except safetensors.SafetensorError as error:
        raise RuntimeError(f'The weights file for {variant} is damaged ({error}): get it again.') from None
    if checkpoint is not None:
        del model.pretrained_cfg['file']  # where the file lies here is no property of the weights
    return model


def _refuse_bad_config(cls: Type[nn.Module], variant: str, **kwargs) -> None:
    """Refuse a folder's config that builds no network, or one far too large for the weights beside it."""
    cfg, saved = kwargs['pretrained_cfg'], kwargs.get('pretrained_model_args')
    if cfg.get('source') not in ('local-dir', 'hf-hub'):
        return
    for name in ('num_classes', 'in_chans'):  # the caller's may be any
        kwargs.pop(name, None)
        if saved and name in saved:
            kwargs[name] = saved[name]
    try:
        for name in ('layers', 'depths'):
            if sum(kwargs.get(name) or ()) > 1000:
                raise ValueError(f'{name} are more than 1,000 blocks')
        with torch.device('meta'):
            model = build_model_with_cfg(cls, variant, False, **copy.deepcopy(kwargs))  # builders take it apart
        values = sum(p.numel() for p in model.parameters())
        folder = Path(cfg['file']) if cfg['source'] == 'local-dir' else None
        if folder and values > 8 * sum(file.stat().st_size for file in folder.iterdir()):
            raise ValueError(f'it has {values:,} parameters, and the files beside it are far smaller')
    except Exception as error:  # of any kind: timm does not check these values
        what = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
        raise ValueError(f'The config.json given for {variant} describes no network ({what}): get it again.') from None


def image_convs(model: nn.Module) -> Tuple[str, ...]:
    """Names of all convolutions that see the image: the stem's, the first input gate's and every supplement gate's.

    They are what `in_chans` changes, and what timm adapts when weights of other `in_chans` are loaded.
    """
    stem = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    units = [(n, m) for n, m in model.named_modules() if isinstance(m, LowFrequencyMemoryUnit)]
    return (
        stem,
        *(f'{name}.input_gate.conv' for name, _ in units[:1]),
        *(f'{name}.supplement_gate.conv' for name, unit in units if unit.supplement_gate is not None),
    )


def imagenet100_rows() -> List[int]:
    """Rows of an ImageNet-1k classifier that belong to the classes of ImageNet100, in its order."""
    rows = {synset: row for row, synset in enumerate(ImageNetInfo('imagenet-1k').label_names())}
    return [rows[synset] for synset in imagenet100.SYNSETS]


def _identity_memory(model: nn.Module) -> Dict[str, torch.Tensor]:
    """Weights of a memory at identity, for images of the channels that the trunk's weights were trained on."""
    model.memory.init_identity()
    weights = {f'memory.{k}': v for k, v in model.memory.state_dict().items()}
    in_chans = model.pretrained_cfg['input_size'][0]
    for name in image_convs(model)[1:]:
        weight = weights[f'{name}.weight']
        if weight.shape[1] != in_chans:
            weights[f'{name}.weight'] = nn.init.kaiming_normal_(
                weight.new_empty(weight.shape[0], in_chans, *weight.shape[2:]), mode='fan_out', nonlinearity='relu')
    return weights


class MemoryNetwork(nn.Module):
    """What networks with memory share, to be put before the trunk's class."""

    def fuse(self) -> 'MemoryNetwork':
        """Fuse the memory for inference, as `timm.models.reparameterize_model` does; the trunk is left as it is.

        Outputs are those of eval mode before, to rounding. A fused network cannot be saved as a checkpoint.

        Returns:
            The network itself.
        """
        self.memory.fuse()
        return self

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether blocks and memory units compute their insides again in the backward pass."""
        super().set_grad_checkpointing(enable)
        self.memory.set_grad_checkpointing(enable)

    # Says in one sentence why weights do not fit, where torch would list every parameter.
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        if strict:
            _refuse_misfit(self, state_dict, _faults(self.state_dict(), state_dict))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _prepare_state_dict(
        state_dict: Dict[str, torch.Tensor],
        model: nn.Module,
        warm_start: bool = False,
        imagenet100_head: bool = False,
) -> Dict[str, torch.Tensor]:
    """Complete a warm start, and refuse weights that do not fit, before timm adapts input convs and classifier."""
    classifiers = model.pretrained_cfg.get('classifier') or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    prefixes = tuple(f'{name}.' for name in classifiers)
    if warm_start:
        state_dict = dict(state_dict, **_identity_memory(model))
    if imagenet100_head:
        rows = imagenet100_rows()
        state_dict = {k: v[rows] if k.startswith(prefixes) else v for k, v in state_dict.items()}
    expected = {k: v for k, v in model.state_dict().items() if not k.startswith(prefixes)}
    given = {k: v for k, v in state_dict.items() if not k.startswith(prefixes)}
    adapted = {f'{name}.weight' for name in image_convs(model)}
    _refuse_misfit(model, state_dict, _faults(expected, given, adapted))
    return state_dict


def _faults(expected: Mapping[str, Any], given: Mapping[str, Any], adapted: Collection[str] = ()) -> List[str]:
    """What keeps the tensors `given` from being loaded for those `expected`; shapes of `adapted` may differ."""
    faults = [f'lacks {k}' for k in expected if k not in given]
    faults += [f'has {k}, which the model lacks' for k in given if k not in expected]
    return faults + [
        f'has {k} of shape {tuple(given[k].shape)} where the model has {tuple(v.shape)}'
        for k, v in expected.items()
        if k in given and k not in adapted and getattr(given[k], 'shape', v.shape) != v.shape
    ]


def _refuse_misfit(model: nn.Module, state_dict: Mapping[str, Any], faults: List[str]) -> None:
    if not faults:
        return
    more = f' (and {len(faults) - 1} more such faults)' if len(faults) > 1 else ''
    name = getattr(model, 'pretrained_cfg', {}).get('architecture') or type(model).__name__
    remedy = 'give weights of this network, made with the same memory options'
    if any('convinput' in key for key in state_dict):
        remedy = "it looks like a checkpoint of the authors', which python -m mlfm_zoo convert reads"
    raise RuntimeError(f'The weights do not fit {name}: the file {faults[0]}{more}; {remedy}.')
