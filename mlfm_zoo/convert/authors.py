"""Converter for the MLFM authors' checkpoints: MobileNetV2 and ResNet10/18/34.

They come from github.com/AlphaWuSeu/MLFM. Names and shapes of the parameters determine everything: the network, its
width, whether it has a memory, the memory's update, the units with a supplement gate, and the number of classes.
"""

import re
from typing import Any, Dict, List, Optional, Tuple

from .._timm import round_channels
from .form import Conversion, StateDict, find_width, rename

__all__ = ['MOBILENETV2_BLOCKS', 'MOBILENETV2_HEAD', 'convert_authors', 'mobilenetv2_block']

# The parts of a memory unit: the authors' names and ours.
UNIT_PARTS = {
    'convinput': 'input_gate.conv',
    'bninput': 'input_gate.norm',
    'convsupplement': 'supplement_gate.conv',
    'bnsupplement': 'supplement_gate.norm',
    'bnx': 'output_gate',
}

# Blocks and channels of the seven groups of a MobileNetV2, and the parts of a block by released layer number.
MOBILENETV2_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
MOBILENETV2_CHANNELS = (16, 24, 32, 64, 96, 160, 320)
MOBILENETV2_PARTS = {'0': 'conv_pw', '1': 'bn1', '3': 'conv_dw', '4': 'bn2', '6': 'conv_pwl', '7': 'bn3'}
FIRST_PARTS = {'0': 'conv_dw', '1': 'bn1', '3': 'conv_pw', '4': 'bn2'}  # of the first block, which does not expand
# Group and place in the group, by the number of a block.
MOBILENETV2_BLOCKS = dict(enumerate((g, i) for g, depth in enumerate(MOBILENETV2_DEPTHS) for i in range(depth)))
MOBILENETV2_HEAD = {
    r'conv\.0\.(.+)': r'conv_head.\1', r'conv\.1\.(.+)': r'bn2.\1', r'classifier\.(.+)': r'classifier.\1'}
MOBILENETV2_NETWORKS = {
    0.1: 'mlfm_mobilenetv2_010',
    0.35: 'mlfm_mobilenetv2_035',
    0.5: 'mlfm_mobilenetv2_050',
    0.75: 'mlfm_mobilenetv2_075',
    1.0: 'mlfm_mobilenetv2_100',
}
RESNET_NETWORKS: Dict[Tuple[int, ...], str] = {
    (1, 1, 1, 1): 'mlfm_resnet10',
    (2, 2, 2, 2): 'mlfm_resnet18',
    (3, 4, 6, 3): 'mlfm_resnet34',
}


def convert_authors(state_dict: StateDict) -> Optional[Conversion]:
    """Recognize one of the authors' networks; None if it is none of them."""
    if 'featuresconv.0.weight' in state_dict or 'features.0.0.weight' in state_dict:
        return _convert_mobilenetv2(state_dict)
    if 'stage1.block1.conv1.weight' in state_dict:
        return _convert_resnet(state_dict)
    return None


def _convert_mobilenetv2(state_dict: StateDict) -> Conversion:
    renamed = rename(state_dict, {
        # the network with memory has seven groups of blocks; the plain one numbers its 17 blocks from 1
        r'features(\d)\.(\d+)\.conv\.(\d)\.(.+)': lambda m: mobilenetv2_block(int(m[1]), int(m[2]), m[3], m[4]),
        r'features\.(\d+)\.conv\.(\d)\.(.+)':
            lambda m: mobilenetv2_block(*MOBILENETV2_BLOCKS[int(m[1]) - 1], m[2], m[3]),
        r'features(?:conv|\.0)\.0\.(.+)': r'conv_stem.\1',
        r'features(?:conv|\.0)\.1\.(.+)': r'bn1.\1',
        **MOBILENETV2_HEAD,
        r'wavelet_conv\.(\w+)\.(.+)': lambda m: f'memory.stem.{UNIT_PARTS[m[1]]}.{m[2]}',
        r'wavelet_(\d)\.(\w+)\.(.+)': lambda m: f'memory.blocks.{m[1]}.{UNIT_PARTS[m[2]]}.{m[3]}',
    })
    convs = ['conv_stem', 'blocks.0.0.conv_pw', *(f'blocks.{i}.0.conv_pwl' for i in range(1, 7)), 'conv_head']
    channels = [renamed[f'{name}.weight'].shape[0] for name in convs]
    width = find_width('MobileNetV2', channels, _mobilenetv2_channels)
    model_args: Dict[str, Any] = dict(num_classes=renamed['classifier.weight'].shape[0])
    if 'featuresconv.0.weight' in state_dict:
        model_args['memory_update'] = _memory_update(renamed, 'blocks.1')
    else:
        model_args['memory'] = False
    if width not in MOBILENETV2_NETWORKS:
        model_args['channel_multiplier'] = width
    return Conversion(MOBILENETV2_NETWORKS.get(width, 'mlfm_mobilenetv2_100'), model_args, renamed)


def _mobilenetv2_channels(width: float) -> List[int]:
    """Channels of a MobileNetV2: stem, seven groups, head."""
    divisor = 4 if width == 0.1 else 8
    return [*(round_channels(c, width, divisor) for c in (32, *MOBILENETV2_CHANNELS)),
            max(1280, round_channels(1280, width))]


def mobilenetv2_block(group: int, index: int, layer: str, rest: str) -> str:
    """The registered name of a parameter, from the released number of its layer."""
    part = (FIRST_PARTS if group == 0 else MOBILENETV2_PARTS)[layer]
    return f'blocks.{group}.{index}.{part}.{rest}'


def _convert_resnet(state_dict: StateDict) -> Conversion:
    # 'stage3' is a whole stage, 'stage31' and 'stage32' are the halves of one; so for memory units
    matches = (re.match(r'stage([1-4])([12]?)\.block(\d+)\.', name) for name in state_dict)
    blocks = sorted({(int(m[1]), m[2], int(m[3])) for m in matches if m})
    stages = {stage: [block for block in blocks if block[0] == stage] for stage in range(1, 5)}
    layers = tuple(map(len, stages.values()))
    if layers not in RESNET_NETWORKS:
        raise ValueError(
            f'The network was not recognized: a ResNet of {layers} blocks, expected ResNet10, 18 or 34.')

    def block_of(m: Any) -> str:
        index = stages[int(m[1])].index((int(m[1]), m[2], int(m[3])))
        part = m[4].replace('shortcut.conv.', 'downsample.0.').replace('shortcut.bn.', 'downsample.1.')
        return f'layer{m[1]}.{index}.{part}'

    def unit_of(m: Any) -> str:
        last = [i for i, (_, half, _) in enumerate(stages[int(m[1])]) if m[2] in ('', half)][-1]
        return f'memory.layer{m[1]}.{last}.{UNIT_PARTS[m[3]]}.{m[4]}'

    renamed = rename(state_dict, {
        r'stage([1-4])([12]?)\.block(\d+)\.(.+)': block_of,
        r'wavelet_(?:conv|block0)\.(\w+)\.(.+)': lambda m: f'memory.stem.{UNIT_PARTS[m[1]]}.{m[2]}',
        r'wavelet_(?:pool|blockpool)\.(\w+)\.(.+)': lambda m: f'memory.pool.{UNIT_PARTS[m[1]]}.{m[2]}',
        r'wavelet_(?:block)?([1-4])([12]?)\.(\w+)\.(.+)': unit_of,
        r'(conv|bn)\.(.+)': r'\g<1>1.\2',
        r'fc\.(.+)': r'fc.\1',
    })
    model_args: Dict[str, Any] = dict(num_classes=renamed['fc.weight'].shape[0])
    if 'memory.stem.input_gate.conv.weight' not in renamed:
        model_args['memory'] = False
    else:
        last = f'memory.layer4.{layers[3] - 1}.supplement_gate.conv.weight'
        model_args['memory_update'] = _memory_update(renamed, 'pool')
        model_args['memory_supplement'] = 'all' if last in renamed else 'all_but_last'
        model_args['memory_split'] = any(half for _, half, _ in blocks)
    return Conversion(RESNET_NETWORKS[layers], model_args, renamed)


def _memory_update(weights: StateDict, second: str) -> str:
    """The memory's update: 'cat' doubles the channels that the second unit reads."""
    read = weights[f'memory.{second}.input_gate.conv.weight'].shape[1]
    written = weights['memory.stem.input_gate.conv.weight'].shape[0]
    return 'cat' if read == 2 * written else 'add'
