"""Converter for checkpoints of GSSDNet.

Parameters have the names of its authors' code, such as features.stage3.2.2.0.weight. Shapes determine width, image
channels and classes, and the fixed kernels determine the order of the derivatives. A network for small images has the
same parameters as any other, so the caller has to give thumbnail=True.
"""

from typing import Any, Dict, Mapping, Optional

import torch

from .form import Conversion, StateDict, find_width, rename

__all__ = ['convert_gssdnet']

# The parts of a block: the authors' names and ours.
PARTS = {'0': 'conv_dw', '1': 'bn1', '2.0': 'conv_pw', '2.1': 'bn2'}

# Parts of registered names.
OPERATORS = {'order2': 'o2', 'order1': 'o1', 'learned': 'vanilla'}
WIDTHS = {1.0: '100', 0.75: '075', 0.5: '050'}


def convert_gssdnet(state_dict: StateDict, model_args: Mapping[str, Any]) -> Optional[Conversion]:
    """Recognize a GSSDNet or VanillaNet, rename its parameters; None if it is neither.

    Released files lack the kernels of channels that pass unchanged, which are added. Files that were saved without
    buffers lack all fixed kernels; `model_args` must then have the operators.
    """
    if 'features.stem.0.2.0.weight' not in state_dict:
        return None
    renamed = rename(state_dict, {
        r'features\.stem\.(\d+)\.([01]|2\.[01])\.(.+)': lambda m: f'stem.{m[1]}.{PARTS[m[2]]}.{m[3]}',
        r'features\.stage([1-4])\.(\d+)\.([01]|2\.[01])\.(.+)':
            lambda m: f'stages.{int(m[1]) - 1}.{m[2]}.{PARTS[m[3]]}.{m[4]}',
        r'classifier\.1\.(.+)': r'head.fc.\1',
    })
    found: Dict[str, Any] = dict(num_classes=renamed['head.fc.weight'].shape[0])
    if (in_chans := renamed['stem.0.conv_pw.weight'].shape[1]) != 3:
        found['in_chans'] = in_chans
    out_chs, in_chs = renamed['stages.3.1.conv_pw.weight'].shape[:2]
    width = find_width('GSSDNet', out_chs, lambda width: max(int(1024 * width), 8))
    if width not in WIDTHS:
        found['channel_multiplier'] = width
    if (derivatives := renamed.get('stages.3.1.conv_dw.weight')) is None:
        operators = model_args.get('operators')
        if operators is None:
            raise ValueError(
                'The checkpoint looks like a GSSDNet but holds no fixed kernels of a derivative, which would tell its '
                'order: give operators=order2 or operators=order1 as an argument of the network.')
    elif derivatives.shape[0] == in_chs:  # a derivative is on half of the channels
        operators = 'learned'
    else:  # the third kernel is d2/dx2, with 2 in the middle, or d/dx again, with 0
        operators = 'order2' if derivatives[2, 0, 1, 1] else 'order1'
    for name in [name for name in renamed if name.endswith('conv_dw.weight')]:
        kernels, num_chs = renamed[name], renamed[name.replace('conv_dw', 'conv_pw')].shape[1]
        if kernels.shape[1:] == (1, 3, 3) and len(kernels) < num_chs:
            passing = kernels.new_zeros(num_chs - len(kernels), 1, 3, 3)
            passing[:, :, 1, 1] = 1
            renamed[name] = torch.cat([kernels, passing])
    return Conversion(f'gssdnet_{OPERATORS.get(operators, "o2")}_{WIDTHS.get(width, "100")}', found, renamed)
