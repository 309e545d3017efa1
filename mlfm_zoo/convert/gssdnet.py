"""Converter for checkpoints of GSSDNet.

Parameters have the names of its authors' code, such as features.stage3.2.2.0.weight. Shapes determine width, image
channels and classes, and the fixed kernels determine the order of the derivatives. A network for small images has the
same parameters as any other, so the caller has to give thumbnail=True.
"""

from typing import Any, Dict, Mapping, Optional

import torch

from .form import Conversion, StateDict, rename, shape_of, widths

__all__ = ['convert_gssdnet']

# The parts of a block: the authors' names and ours.
PARTS = {'0': 'conv_dw', '1': 'bn1', '2.0': 'conv_pw', '2.1': 'bn2'}

# Blocks whose operator is a derivative.
DERIVATIVES = ('stem.1', 'stages.0.1', 'stages.1.1', 'stages.2.1', 'stages.2.3', 'stages.2.5', 'stages.3.1')

# Parts of registered names.
OPERATORS = {'order2': 'o2', 'order1': 'o1', 'learned': 'vanilla'}
WIDTHS = {1.0: '100', 0.75: '075', 0.5: '050'}


def convert_gssdnet(state_dict: StateDict, model_args: Mapping[str, Any]) -> Optional[Conversion]:
    """Recognize a GSSDNet or VanillaNet and rename its parameters.

    Args:
        state_dict: Parameters under the authors' names, as `read_checkpoint` returns them. Fixed kernels may be
            missing; those of the derivatives only if `model_args` has the operators.
        model_args: Arguments of the network that the caller gives.

    Returns:
        The conversion, or None if the parameters are not of this form. Released files lack the kernels of channels that
        pass unchanged, which are added. Operators without any kernel stay without.

    Raises:
        ValueError: The width, the operators or a parameter was not recognized.
    """
    if 'features.stem.0.2.0.weight' not in state_dict:
        return None
    renamed = rename(state_dict, {
        r'features\.stem\.(\d+)\.([01]|2\.[01])\.(.+)': lambda m: f'stem.{m[1]}.{PARTS[m[2]]}.{m[3]}',
        r'features\.stage([1-4])\.(\d+)\.([01]|2\.[01])\.(.+)':
            lambda m: f'stages.{int(m[1]) - 1}.{m[2]}.{PARTS[m[3]]}.{m[4]}',
        r'classifier\.1\.(.+)': r'head.fc.\1',
    })
    found: Dict[str, Any] = dict(num_classes=shape_of(renamed, 'head.fc.weight', 'GSSDNet', ndim=2)[0])
    if (in_chans := shape_of(renamed, 'stem.0.conv_pw.weight', 'GSSDNet')[1]) != 3:
        found['in_chans'] = in_chans
    width = _width(shape_of(renamed, 'stages.3.1.conv_pw.weight', 'GSSDNet')[0])
    if width not in WIDTHS:
        found['channel_multiplier'] = width
    operators = _operators(renamed) or model_args.get('operators')
    if operators is None:
        raise ValueError(
            'The checkpoint looks like a GSSDNet but holds no fixed kernels of a derivative, which would tell its '
            'order: give operators=order2 or operators=order1 as an argument of the network.')
    for name in [name for name in renamed if name.endswith('conv_dw.weight')]:
        renamed[name] = _with_passing(renamed[name], _num_chs(renamed, name))
    return Conversion(f'gssdnet_{OPERATORS.get(operators, "o2")}_{WIDTHS.get(width, "100")}', found, renamed)


def _width(channels: int) -> float:
    """Width multiplier of a network, from the channels of its last stage."""
    for width in widths(*WIDTHS):
        if channels == max(int(1024 * width), 8):
            return width
    raise ValueError(
        f'The width was not recognized: no multiplier from 0.05 to 4 gives a GSSDNet whose last stage has {channels} '
        'channels.')


def _operators(weights: StateDict) -> Optional[str]:
    """The operators, by the depthwise kernels; None if no kernel is of a derivative."""
    for name in (f'{block}.conv_dw.weight' for block in DERIVATIVES):
        if name in weights:
            shape = shape_of(weights, name, 'GSSDNet')
            if shape[0] == _num_chs(weights, name):  # a derivative is on half of the channels
                return 'learned'
            if shape[0] > 2 and shape[1:] == (1, 3, 3):
                # the third kernel is d2/dx2, with 2 in the middle, or d/dx again, with 0
                return 'order2' if weights[name][2, 0, 1, 1] else 'order1'
    return None


def _num_chs(weights: StateDict, name: str) -> int:
    """Input channels of a depthwise operator."""
    return shape_of(weights, name.replace('conv_dw', 'conv_pw'), 'GSSDNet')[1]


def _with_passing(kernels: torch.Tensor, num_chs: int) -> torch.Tensor:
    """Kernels for all channels: the last ones pass unchanged, with 1 in the middle."""
    if kernels.shape[1:] != (1, 3, 3) or len(kernels) >= num_chs:
        return kernels
    passing = kernels.new_zeros(num_chs - len(kernels), 1, 3, 3)
    passing[:, :, 1, 1] = 1
    return torch.cat([kernels, passing])
