"""Converter for checkpoints of GSSDNet in the form of its authors' code (features.stage3.2.2.0.weight).

Width, image channels and classes are recognised from the shapes, and the order of the derivatives from the fixed
kernels, each of which is compared with the registered network's. That a network is one for small images is not
recognised: its parameters are those of any other, so the caller says it, with thumbnail=True.
"""

import re
from typing import Any, Dict, List, Mapping, Optional

import timm
import torch
import torch.nn as nn

from ..memory.options import check_option
from .form import Conversion, StateDict, known, replace_prefix, some

__all__ = ['convert_gssdnet']

# The parts of a block: the authors' names and ours.
PARTS = {'0.': 'conv_dw.', '1.': 'bn1.', '2.0.': 'conv_pw.', '2.1.': 'bn2.'}

# What registered names are made of.
OPERATORS = {'order2': 'o2', 'order1': 'o1', 'learned': 'vanilla'}
WIDTHS = {1.0: '100', 0.75: '075', 0.5: '050'}


def convert_gssdnet(state_dict: StateDict, model_args: Mapping[str, Any]) -> Optional[Conversion]:
    """Recognise a GSSDNet or VanillaNet and rename its parameters.

    Args:
        state_dict: Parameters under the authors' names, as `read_checkpoint` returns them. Fixed kernels may be
            missing; those of the derivatives only if `model_args` names the operators.
        model_args: Arguments of the network that the caller gives.

    Returns:
        The conversion, or None if the parameters are not of this form.

    Raises:
        ValueError: The width, the operators, a kernel or a parameter was not recognised.
    """
    if 'features.stem.0.2.0.weight' not in state_dict:
        return None
    if 'operators' in model_args:
        check_option('operators', model_args['operators'], tuple(OPERATORS))
    renamed: StateDict = {}
    for name, tensor in state_dict.items():
        new_name = replace_prefix(name, {'classifier.1.': 'head.fc.'})
        if match := re.fullmatch(r'features\.(stem|stage[1-4])\.(\d+)\.(.+)', name):
            part = replace_prefix(match[3], PARTS)
            stage = 'stem' if match[1] == 'stem' else f'stages.{int(match[1][-1]) - 1}'
            new_name = part and f'{stage}.{match[2]}.{part}'
        renamed[known(name, new_name)] = tensor

    found: Dict[str, Any] = {}
    try:
        found['num_classes'] = renamed['head.fc.weight'].shape[0]
        if (in_chans := renamed['stem.0.conv_pw.weight'].shape[1]) != 3:
            found['in_chans'] = in_chans
        width = _width(renamed)
        # of these kernels a GSSDNet has half as many as channels
        learned = len(renamed.get('stem.1.conv_dw.weight', ())) == renamed['stem.1.conv_pw.weight'].shape[1]
    except KeyError as error:
        raise ValueError(f'The checkpoint looks like a GSSDNet but lacks the weight of {error}.') from None
    except (IndexError, TypeError):
        raise ValueError('The checkpoint looks like a GSSDNet but has weights of too few dimensions.') from None
    if width not in WIDTHS:
        found['channel_multiplier'] = width

    names = {operators: f'gssdnet_{short}_{WIDTHS.get(width, "100")}' for operators, short in OPERATORS.items()}
    if learned or model_args.get('operators') == 'learned':
        return Conversion(names['learned'], found, renamed)
    matching: List[Conversion] = []
    others: List[List[str]] = []
    for operators in ('order2', 'order1'):
        if model_args.get('operators', operators) == operators:
            network = timm.create_model(names[operators], **found)
            fixed = {name: value for name, value in network.state_dict().items() if '.conv_dw.' in name}
            differing = [name for name in fixed if name in renamed and not _has_kernels(network, name, renamed[name])]
            if differing:
                others.append(differing)
            else:
                matching.append(Conversion(names[operators], found, {**renamed, **fixed}))
    if not matching:
        raise ValueError(
            f'The checkpoint looks like a GSSDNet, but {some(sorted(others, key=len)[0])} holds other values than the '
            'fixed kernels: it is of another network, or damaged.')
    if len(matching) > 1:
        raise ValueError(
            'The checkpoint looks like a GSSDNet but holds no fixed kernels of a derivative, which would tell its '
            'order: give operators=order2 or operators=order1 as an argument of the network.')
    return matching[0]


def _width(weights: StateDict) -> float:
    """Width multiplier of a network with these weights."""
    base = {
        name: value.shape[0] for name, value in timm.create_model('gssdnet_o2_100', device='meta').state_dict().items()
        if name.endswith('conv_pw.weight')}
    channels = [weights[name].shape[0] for name in base]
    # several multipliers can give the same channels: prefer the registered ones, then round numbers
    for width in (*WIDTHS, *(i / 20 for i in range(1, 81)), *(i / 100 for i in range(5, 401))):
        if channels == [max(int(chs * width), 8) for chs in base.values()]:
            return width
    raise ValueError(
        f'The width was not recognised: no multiplier from 0.05 to 4 gives a GSSDNet with {channels} channels.')


def _has_kernels(network: nn.Module, name: str, given: torch.Tensor) -> bool:
    """Whether `given` are the network's fixed kernels of that name, all or those of the channels that do not pass."""
    operator: Any = network.get_submodule(name.removesuffix('.weight'))  # a FixedConv2d, which lies above this room
    passing = operator.weight.flatten(1).eq(torch.eye(9)[4]).all(1)
    if given.shape[1:] == operator.weight.shape[1:] and len(given) == (~passing).sum():
        given = torch.cat([given, operator.weight[passing].to(given)])
    return operator.has_kernels(given)
