"""Converter for the checkpoints of the authors' code (github.com/AlphaWuSeu/MLFM): MobileNetV2 and ResNet10/18/34.

Everything is recognised from the parameters' names and shapes alone: the network, its width, whether it has a memory,
how the memory is updated, which units have a supplement gate, and the number of classes. The result is checked against
the registered network, name by name and shape by shape, before anything is written.
"""

import re
from typing import Any, Dict, List, Optional, Tuple

import torch

from .._timm import round_channels
from .form import Conversion, StateDict, known, replace_prefix

__all__ = ['convert_authors', 'mobilenetv2_block']

# The parts of a memory unit: the authors' names and ours.
UNIT_PARTS = {
    'convinput': 'input_gate.conv',
    'bninput': 'input_gate.norm',
    'convsupplement': 'supplement_gate.conv',
    'bnsupplement': 'supplement_gate.norm',
    'bnx': 'output_gate',
}

MOBILENETV2_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
MOBILENETV2_CHANNELS = (16, 24, 32, 64, 96, 160, 320)
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
    """Recognise one of the authors' networks and rename its parameters.

    Args:
        state_dict: Parameters under the authors' names, as `read_checkpoint` returns them.

    Returns:
        The conversion, or None if the parameters are not of this form.

    Raises:
        ValueError: The network, its width or a parameter was not recognised.
    """
    if 'featuresconv.0.weight' in state_dict or 'features.0.0.weight' in state_dict:
        return _convert_mobilenetv2(state_dict)
    if 'stage1.block1.conv1.weight' in state_dict:
        return _convert_resnet(state_dict)
    return None


def _convert_mobilenetv2(state_dict: StateDict) -> Conversion:
    memory = 'featuresconv.0.weight' in state_dict
    stem = 'featuresconv' if memory else 'features.0'
    # the plain network counts its 17 blocks through, from 1; the one with memory has seven groups of them
    blocks = [(group, i) for group, depth in enumerate(MOBILENETV2_DEPTHS) for i in range(depth)]
    renamed = {}
    for name, tensor in state_dict.items():
        if match := re.fullmatch(r'features(\d)\.(\d+)\.conv\.(.+)', name):
            new_name = mobilenetv2_block(int(match[1]), int(match[2]), match[3])
        elif (match := re.fullmatch(r'features\.(\d+)\.conv\.(.+)', name)) and 1 <= int(match[1]) <= len(blocks):
            new_name = mobilenetv2_block(*blocks[int(match[1]) - 1], match[2])
        elif match := re.fullmatch(r'wavelet_(conv|\d)\.(.+)', name):
            new_name = _unit('stem' if match[1] == 'conv' else f'blocks.{match[1]}', match[2])
        else:
            new_name = replace_prefix(name, {
                f'{stem}.0.': 'conv_stem.', f'{stem}.1.': 'bn1.',
                'conv.0.': 'conv_head.', 'conv.1.': 'bn2.',
                'classifier.': 'classifier.',
            })
        renamed[known(name, new_name)] = tensor

    try:
        channels = [renamed['conv_stem.weight'].shape[0], renamed['blocks.0.0.conv_pw.weight'].shape[0]]
        channels += [renamed[f'blocks.{i}.0.conv_pwl.weight'].shape[0] for i in range(1, len(MOBILENETV2_DEPTHS))]
        channels += [renamed['conv_head.weight'].shape[0]]
        model_args: Dict[str, Any] = dict(num_classes=renamed['classifier.weight'].shape[0])
        if memory:
            read = renamed['memory.blocks.1.input_gate.conv.weight'].shape[1]
            written = renamed['memory.stem.input_gate.conv.weight'].shape[0]
            model_args['memory_update'] = 'cat' if read == 2 * written else 'add'
        else:
            model_args['memory'] = False
    except KeyError as error:
        raise ValueError(f'The checkpoint looks like a MobileNetV2 but lacks the weight of {error}.') from None
    except IndexError:
        raise ValueError('The checkpoint looks like a MobileNetV2 but has weights of too few dimensions.') from None

    width = _mobilenetv2_width(channels)
    architecture = MOBILENETV2_NETWORKS.get(width)
    if architecture is None:
        architecture, model_args['channel_multiplier'] = 'mlfm_mobilenetv2_100', width
    return Conversion(architecture, model_args, renamed)


def _mobilenetv2_width(channels: List[int]) -> float:
    """Width multiplier of a MobileNetV2 with these channels: of stem, seven groups and head."""
    # several multipliers can round to the same channels: prefer the registered ones, then round numbers
    widths = [*MOBILENETV2_NETWORKS, *(i / 20 for i in range(1, 81)), *(i / 100 for i in range(5, 401))]
    for width in widths:
        divisor = 4 if width == 0.1 else 8
        base = (32, *MOBILENETV2_CHANNELS)
        if channels == [*(round_channels(c, width, divisor) for c in base), max(1280, round_channels(1280, width))]:
            return width
    raise ValueError(
        f'The width was not recognised: no multiplier from 0.05 to 4 gives a MobileNetV2 with {channels} channels '
        '(stem, seven groups, head).')


def mobilenetv2_block(group: int, block: int, part: str) -> Optional[str]:
    """The registered name of a part of a block, of which the released code counts the layers; None if it has none.

    Args:
        group: Number of the group, from 0.
        block: Number of the block in its group, from 0.
        part: Released name below the block's.

    Returns:
        The name.
    """
    if group == 0:  # its block does not expand
        parts = {'0.': 'conv_dw.', '1.': 'bn1.', '3.': 'conv_pw.', '4.': 'bn2.'}
    else:
        parts = {'0.': 'conv_pw.', '1.': 'bn1.', '3.': 'conv_dw.', '4.': 'bn2.', '6.': 'conv_pwl.', '7.': 'bn3.'}
    new_part = replace_prefix(part, parts)
    return new_part and f'blocks.{group}.{block}.{new_part}'


def _convert_resnet(state_dict: StateDict) -> Conversion:
    depths = _resnet_depths(state_dict)
    layers = tuple(sum(depths[stage]) for stage in range(1, 5))
    architecture = RESNET_NETWORKS.get(layers)
    if architecture is None or any('.conv3.' in name for name in state_dict):
        kind = 'bottleneck' if any('.conv3.' in name for name in state_dict) else 'basic'
        raise ValueError(
            f'The network was not recognised: a ResNet of {layers} {kind} blocks, expected ResNet10, 18 or 34, of '
            'basic blocks.')

    renamed = {}
    for name, tensor in state_dict.items():
        # 'stage3' is a whole stage, 'stage31' and 'stage32' are the halves of one; so for memory units
        if match := re.fullmatch(r'stage([1-4])([12]?)\.block(\d+)\.(.+)', name):
            stage, half = int(match[1]), int(match[2] or 1)
            block = sum(depths[stage][:half - 1]) + int(match[3]) - 1
            part = match[4].replace('shortcut.conv.', 'downsample.0.').replace('shortcut.bn.', 'downsample.1.')
            new_name: Optional[str] = f'layer{stage}.{block}.{part}'
        elif match := re.fullmatch(r'wavelet_(?:conv|block0)\.(.+)', name):
            new_name = _unit('stem', match[1])
        elif match := re.fullmatch(r'wavelet_(?:pool|blockpool)\.(.+)', name):
            new_name = _unit('pool', match[1])
        elif match := re.fullmatch(r'wavelet_(?:block)?([1-4])([12]?)\.(.+)', name):
            stage, half = int(match[1]), int(match[2] or len(depths[int(match[1])]))
            new_name = _unit(f'layer{stage}.{sum(depths[stage][:half]) - 1}', match[3])
        else:
            new_name = replace_prefix(name, {'conv.': 'conv1.', 'bn.': 'bn1.', 'fc.': 'fc.'})
        renamed[known(name, new_name)] = tensor

    if 'fc.weight' not in renamed:
        raise ValueError("The checkpoint looks like a ResNet but lacks the weight of 'fc.weight'.")
    model_args: Dict[str, Any] = dict(num_classes=renamed['fc.weight'].shape[0])
    if 'memory.stem.input_gate.conv.weight' not in renamed:
        model_args['memory'] = False
    else:
        read = renamed.get('memory.pool.input_gate.conv.weight', torch.empty(0, 0)).shape[1]
        written = renamed['memory.stem.input_gate.conv.weight'].shape[0]
        last = f'memory.layer4.{layers[3] - 1}.supplement_gate.conv.weight'
        model_args['memory_update'] = 'cat' if read == 2 * written else 'add'
        model_args['memory_supplement'] = 'all' if last in renamed else 'all_but_last'
        model_args['memory_split'] = len(depths[2]) == 2
    return Conversion(architecture, model_args, renamed)


def _resnet_depths(state_dict: StateDict) -> Dict[int, List[int]]:
    """Blocks of each stage, in one number, or in two where the stage is split in halves."""
    depths: Dict[int, List[int]] = {}
    for stage in range(1, 5):
        halves = [f'stage{stage}1', f'stage{stage}2']
        names = halves if any(k.startswith(f'{halves[0]}.') for k in state_dict) else [f'stage{stage}']
        depths[stage] = [
            len({m[1] for k in state_dict if (m := re.match(rf'{name}\.block(\d+)\.', k))}) for name in names]
    return depths


def _unit(site: str, part: str) -> Optional[str]:
    new_part = replace_prefix(part, {f'{old}.': f'{new}.' for old, new in UNIT_PARTS.items()})
    return new_part and f'memory.{site}.{new_part}'
