"""Converter for checkpoints of Learning in the Frequency Domain in the form of its code (model.0.0.conv1.weight).

Classes and the number of coefficients are recognised from the shapes. Which coefficients they are is not: they are
taken for the square of that number, as in the released files, unless the caller says it with dct_channels.
"""

import re
from typing import Any, Dict, Mapping, Optional

from .authors import mobilenetv2_block
from .form import Conversion, StateDict, known, replace_prefix

__all__ = ['convert_dctnet']

RESNET50_NETWORKS = {24: 'dct_resnet50_24s', 48: 'dct_resnet50_48s', 64: 'dct_resnet50_64s', 192: 'dct_resnet50_192'}
MOBILENETV2_NETWORKS = {
    6: 'dct_mobilenetv2_100_6s', 12: 'dct_mobilenetv2_100_12s', 24: 'dct_mobilenetv2_100_24s',
    32: 'dct_mobilenetv2_100_32s', 192: 'dct_mobilenetv2_100_192',
}
MOBILENETV2_DEPTHS = (1, 2, 3, 4, 3, 3, 1)


def convert_dctnet(state_dict: StateDict, model_args: Mapping[str, Any]) -> Optional[Conversion]:
    """Recognise a ResNet-50 or MobileNetV2 on DCT coefficients and rename its parameters.

    Args:
        state_dict: Parameters under the released names, as `read_checkpoint` returns them.
        model_args: Arguments of the network that the caller gives.

    Returns:
        The conversion, or None if the parameters are not of this form.

    Raises:
        ValueError: The number of coefficients or a parameter was not recognised.
    """
    if 'model.0.0.conv1.weight' in state_dict:
        kind, networks, first, head = 'ResNet', RESNET50_NETWORKS, 'model.0.0.conv1.weight', 'fc.weight'
    elif 'features.0.conv.0.weight' in state_dict:
        kind, networks = 'MobileNetV2', MOBILENETV2_NETWORKS
        first, head = 'features.0.conv.0.weight', 'classifier.weight'
    else:
        return None
    blocks = [(group, i) for group, depth in enumerate(MOBILENETV2_DEPTHS) for i in range(depth)]
    renamed: StateDict = {}
    for name, tensor in state_dict.items():
        new_name = replace_prefix(name, {'fc.': 'fc.'} if kind == 'ResNet' else {
            'conv.0.': 'conv_head.', 'conv.1.': 'bn2.', 'classifier.': 'classifier.'})
        if kind == 'ResNet' and (match := re.fullmatch(r'model\.([0-3])\.(.+)', name)):
            new_name = f'layer{int(match[1]) + 1}.{match[2]}'
        elif (match := re.fullmatch(r'features\.(\d+)\.conv\.(.+)', name)) and int(match[1]) < len(blocks):
            new_name = mobilenetv2_block(*blocks[int(match[1])], match[2])
        renamed[known(name, new_name)] = tensor
    if head not in state_dict or state_dict[head].ndim < 2 or state_dict[first].ndim != 4:
        raise ValueError(f'The checkpoint looks like a {kind} on DCT coefficients but lacks its classifier, or has '
                         'weights of too few dimensions.')
    shape = state_dict[first].shape
    # a depthwise convolution has a filter for each coefficient; of 192 it is grouped, six of them for an output
    num_chs = shape[1] if kind == 'ResNet' else shape[0] if shape[1] == 1 else 192
    found: Dict[str, Any] = dict(num_classes=state_dict[head].shape[0])
    if num_chs in networks:
        return Conversion(networks[num_chs], found, renamed)
    if 'dct_channels' not in model_args:
        raise ValueError(
            f'The checkpoint looks like a {kind} on {num_chs} DCT coefficients, expected one of '
            f'{", ".join(map(str, networks))}: give dct_channels as an argument of the network.')
    return Conversion(next(iter(networks.values())), found, renamed)
