"""What the families share: from a registered name and its keyword arguments to a model, with memory or without."""

from typing import Any, Collection, Dict, List, Mapping, Optional, Tuple, Type

import safetensors
import torch
import torch.nn as nn
from timm.models import build_model_with_cfg

from .._timm import FeatureGetterNet
from ..memory import LowFrequencyMemoryUnit, check_option

__all__ = ['CheckedLoading', 'create_mlfm_model', 'image_convs']


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
        **kwargs,
) -> nn.Module:
    """Build the network `variant`, as `timm.create_model` asks for it.

    Args:
        model_cls: Class of the network with memory.
        trunk_cls: Class of the same network without; built, with none of the memory options, if `memory` is False.
        variant: Registered name.
        pretrained: Whether to load the weights that the pretrained config names.
        memory: Whether the network has a memory.
        memory_args: The variant's own defaults for the memory options of `model_cls`.
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
    if kwargs.get('pretrained_strict', True):
        kwargs['pretrained_filter_fn'] = _check_state_dict
    if memory:
        kwargs = dict(memory_args or {}, **kwargs)
    else:  # a folder's config may carry memory options, which are not the caller's
        saved = kwargs.get('pretrained_model_args') or {}
        kwargs = {k: v for k, v in kwargs.items() if not (k.startswith('memory_') and k in saved and v == saved[k])}
    try:
        return build_model_with_cfg(model_cls if memory else trunk_cls, variant, pretrained, **kwargs)
    except safetensors.SafetensorError as error:
        raise RuntimeError(f'The weights file for {variant} is damaged ({error}): get it again.') from None


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


class CheckedLoading(nn.Module):
    """Says in one sentence why weights do not fit, where torch would list every parameter."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        if strict:
            _refuse_misfit(self, state_dict, _faults(self.state_dict(), state_dict))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _check_state_dict(state_dict: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, torch.Tensor]:
    """Refuse weights that do not fit, before timm adapts input convs and classifier and loads."""
    classifiers = model.pretrained_cfg.get('classifier') or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    prefixes = tuple(f'{name}.' for name in classifiers)
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
