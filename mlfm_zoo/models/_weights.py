"""Weights that a network is given: whether they fit, and what a warm start lacks."""

from typing import Any, Collection, Dict, List, Mapping, Optional, Tuple

import torch
import torch.nn as nn
from timm.data import ImageNetInfo

from .._timm import config_of, model_name
from ..data import imagenet100
from ..hub.manifest import Checkpoint
from ..memory import LowFrequencyMemoryUnit

__all__ = [
    'StateDict', 'classifier_prefixes', 'image_convs', 'prepare_state_dict', 'refuse_misfit', 'refuse_other_weights',
    'weight_faults',
]

StateDict = Dict[str, torch.Tensor]

MEMORY_REMEDY = 'give weights of this network, made with the same memory options'


def prepare_state_dict(
        state_dict: StateDict, model: nn.Module, checkpoint: Optional[Checkpoint], imagenet100_head: bool = False,
) -> StateDict:
    """Complete a warm start, and raise for weights that do not fit.

    The result can have any number of input channels and classes; timm adapts them.
    """
    if checkpoint is not None and checkpoint.kind == 'warm_start' and hasattr(model, 'memory'):
        state_dict = dict(state_dict, **_identity_memory(model))
    if imagenet100_head:
        row_of = {synset: row for row, synset in enumerate(ImageNetInfo('imagenet-1k').label_names())}
        rows, prefixes = [row_of[synset] for synset in imagenet100.SYNSETS], classifier_prefixes(model)
        state_dict = {k: v[rows] if k.startswith(prefixes) else v for k, v in state_dict.items()}
    refuse_other_weights(model, state_dict, {f'{name}.weight' for name in image_convs(model)})
    return state_dict


def _identity_memory(model: Any) -> StateDict:
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


def image_convs(model: nn.Module) -> Tuple[str, ...]:
    """Names of the convolutions that read the image, in the stem and in the memory.

    In the memory they are the first input gate's and the supplement gates'. `in_chans` changes all of these, and timm
    adapts them when weights of other `in_chans` are loaded.
    """
    units = [(n, m) for n, m in model.named_modules() if isinstance(m, LowFrequencyMemoryUnit)]
    return (
        *_stem_convs(model),
        *(f'{name}.input_gate.conv' for name, _ in units[:1]),
        *(f'{name}.supplement_gate.conv' for name, unit in units if unit.supplement_gate is not None),
    )


def _stem_convs(model: nn.Module) -> List[str]:
    """Names of the trunk's first convolution, or of those in each branch of its block."""
    first = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    for name, module in model.named_modules():
        # a block whose branches timm can merge into one convolution, as in the stems of RepVGG and MobileOne
        if hasattr(module, 'reparameterize') and first.startswith(f'{name}.'):
            convs = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
            return [f'{name}.{n}' for n in convs if not n.startswith('attn.')]  # which comes after the branches
    return [first]


def weight_faults(expected: Mapping[str, Any], given: Mapping[str, Any], adapted: Collection[str] = ()) -> List[str]:
    """Reasons why `given` does not fit `expected`; shapes in `adapted` may differ."""
    # torch fills in these counters, which older files and frozen networks lack
    faults = [f'lacks {k}' for k in expected if k not in given and not k.endswith('num_batches_tracked')]
    faults += [f'has {k}, which the model lacks' for k in given if k not in expected]
    return faults + [
        f'has {k} of shape {tuple(given[k].shape)} where the model has {tuple(v.shape)}'
        for k, v in expected.items()
        if k in given and k not in adapted and getattr(given[k], 'shape', v.shape) != v.shape
    ]


def classifier_prefixes(model: nn.Module) -> Tuple[str, ...]:
    """Prefixes of the names of the classifier's parameters."""
    names = config_of(model).get('classifier') or ()
    return tuple(f'{name}.' for name in ((names,) if isinstance(names, str) else names))


def refuse_other_weights(
        model: nn.Module, state_dict: Mapping[str, Any], adapted: Collection[str] = (), remedy: str = MEMORY_REMEDY,
) -> None:
    """Raise if weights do not fit. timm adapts the classifier and shapes in `adapted`."""
    classifiers = classifier_prefixes(model)
    expected, given = (
        {k: v for k, v in weights.items() if not k.startswith(classifiers)}
        for weights in (model.state_dict(), state_dict))
    refuse_misfit(model, state_dict, weight_faults(expected, given, adapted), remedy)


def refuse_misfit(
        model: nn.Module, state_dict: Mapping[str, Any], faults: List[str], remedy: str = MEMORY_REMEDY) -> None:
    """Raise if there are faults, with one sentence on why and what to do."""
    if not faults:
        return
    more = f' (and {len(faults) - 1} more such faults)' if len(faults) > 1 else ''
    if any('convinput' in key or key.startswith('features.stem.') for key in state_dict):
        remedy = "it looks like a checkpoint of the authors', which mlfm-zoo convert reads"
    raise RuntimeError(f'The weights do not fit {model_name(model)}: the file {faults[0]}{more}; {remedy}.')
