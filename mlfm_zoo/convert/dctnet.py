"""Converter for checkpoints of Learning in the Frequency Domain.

Parameters have the names of its code, such as model.0.0.conv1.weight. Shapes determine the classes and the number of
coefficients, but not which coefficients they are. The converter assumes the square of that number, as in the released
files, unless the caller gives dct_channels.
"""

from typing import Any, Mapping, Optional

from .authors import MOBILENETV2_BLOCKS, MOBILENETV2_HEAD, mobilenetv2_block
from .form import Conversion, StateDict, rename

__all__ = ['convert_dctnet']

RESNET50_NETWORKS = {24: 'dct_resnet50_24s', 48: 'dct_resnet50_48s', 64: 'dct_resnet50_64s', 192: 'dct_resnet50_192'}
MOBILENETV2_NETWORKS = {
    6: 'dct_mobilenetv2_100_6s', 12: 'dct_mobilenetv2_100_12s', 24: 'dct_mobilenetv2_100_24s',
    32: 'dct_mobilenetv2_100_32s', 192: 'dct_mobilenetv2_100_192',
}


def convert_dctnet(state_dict: StateDict, model_args: Mapping[str, Any]) -> Optional[Conversion]:
    """Recognize a ResNet-50 or MobileNetV2 on DCT coefficients; None if it is neither."""
    if 'model.0.0.conv1.weight' in state_dict:
        kind, networks, classifier = 'ResNet', RESNET50_NETWORKS, 'fc.weight'
        renamed = rename(state_dict, {
            r'model\.([0-3])\.(.+)': lambda m: f'layer{int(m[1]) + 1}.{m[2]}',
            r'fc\.(.+)': r'fc.\1',
        })
        num_chs = renamed['layer1.0.conv1.weight'].shape[1]
    elif 'features.0.conv.0.weight' in state_dict:
        kind, networks, classifier = 'MobileNetV2', MOBILENETV2_NETWORKS, 'classifier.weight'
        renamed = rename(state_dict, {
            r'features\.(\d+)\.conv\.(\d)\.(.+)':
                lambda m: mobilenetv2_block(*MOBILENETV2_BLOCKS[int(m[1])], m[2], m[3]),
            **MOBILENETV2_HEAD,
        })
        shape = renamed['blocks.0.0.conv_dw.weight'].shape
        # a depthwise convolution has a filter per coefficient; with 192 it is grouped, and six make an output
        num_chs = shape[0] if shape[1] == 1 else 192
    else:
        return None
    if num_chs not in networks and 'dct_channels' not in model_args:
        raise ValueError(
            f'The checkpoint looks like a {kind} on {num_chs} DCT coefficients, expected one of '
            f'{", ".join(map(str, networks))}: give dct_channels as an argument of the network.')
    architecture = networks.get(num_chs, next(iter(networks.values())))
    return Conversion(architecture, dict(num_classes=renamed[classifier].shape[0]), renamed)
