"""Converter for the checkpoints of the authors' code (github.com/AlphaWuSeu/MLFM): MobileNetV2 and ResNet10/18/34.

Everything is recognised from the parameters' names and shapes alone: the network, its width, whether it has a memory,
how the memory is updated, which units have a supplement gate, and the number of classes. The result is checked against
the registered network, name by name and shape by shape, before anything is written.
"""

import pickle
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import safetensors.torch
import timm
import torch

from .._timm import round_channels, save_model

__all__ = ['Conversion', 'convert_checkpoint', 'convert_state_dict', 'read_checkpoint']

StateDict = Dict[str, torch.Tensor]

# Left in the released files by a profiler (counters) and by pytorch_wavelets (the fixed Haar filters).
LEFTOVERS = re.compile(r'(^|\.)(total_ops|total_params|h[01]_(col|row))$')

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


class Conversion(NamedTuple):
    """A recognised checkpoint: registered network, the arguments that build it, and its weights under our names."""
    architecture: str
    model_args: Dict[str, Any]
    state_dict: StateDict


def read_checkpoint(path: Union[str, Path]) -> StateDict:
    """Read the parameters of a checkpoint file, pickles with `weights_only=True`.

    Args:
        path: A .safetensors file, or a file written by `torch.save` that holds a state dict, alone or under
            'state_dict' or 'model'.

    Returns:
        The parameters without a 'module.' prefix and without leftovers of profilers and wavelet filters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds more than tensors and plain values, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint at {path}: give the path of a file.')
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(file.file_size for file in archive.infolist()) > size:
                    raise ValueError('packed: torch.save never does, and a small file may fill the memory')
        if path.suffix == '.safetensors':
            checkpoint: Any = safetensors.torch.load_file(path)
        else:
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except PermissionError:
        raise ValueError(f'{path} may not be read: change its permissions.') from None
    except pickle.UnpicklingError as error:
        if 'weights_only' in str(error):
            raise ValueError(
                f'{path} is a pickle that holds objects other than tensors and plain values, and is not loaded because '
                'that could run code: save its state dict alone and convert that.') from None
        raise ValueError(f'{path} is damaged or no PyTorch checkpoint: get the file again.') from None
    except Exception:  # of any kind: the unpickler trusts its file, and fails wherever that leads it
        raise ValueError(f'{path} is damaged or no PyTorch checkpoint: get the file again.') from None

    for key in ('state_dict', 'model'):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not any(torch.is_tensor(v) for v in checkpoint.values()):
        raise ValueError(f'{path} holds no state dict, expected one, alone or under "state_dict" or "model".')
    tensors = {str(k).removeprefix('module.'): v for k, v in checkpoint.items() if torch.is_tensor(v)}
    tensors = {k: v for k, v in tensors.items() if not LEFTOVERS.search(k)}
    for name, tensor in tensors.items():
        if not re.fullmatch(r'[!-~]{1,200}', name):
            raise ValueError(f'{path} holds a parameter named {name[:40]!r}, expected letters, digits and dots.')
        counter = name.endswith('num_batches_tracked')
        if tensor.layout != torch.strided or tensor.is_floating_point() == counter or tensor.is_quantized:
            raise ValueError(f'{path} holds {name} as {tensor.dtype}, expected dense numbers of a floating-point type.')
        if tensor.device.type != 'cpu' or tensor.nbytes > size:  # no values at all, or one value over and over
            raise ValueError(f'{path} holds {name} of shape {tuple(tensor.shape)}, but not that many values.')
        if not counter and not tensor.isfinite().all():
            raise ValueError(f'{path} holds values in {name} that are not finite: the training had diverged.')
    return tensors


def convert_state_dict(state_dict: StateDict) -> Conversion:
    """Recognise one of the authors' networks and rename its parameters.

    Args:
        state_dict: Parameters under the authors' names, as `read_checkpoint` returns them.

    Returns:
        The registered network, the arguments that build it, and its weights.

    Raises:
        ValueError: The network, its width or a parameter was not recognised.
    """
    if 'featuresconv.0.weight' in state_dict or 'features.0.0.weight' in state_dict:
        conversion = _convert_mobilenetv2(state_dict)
    elif 'stage1.block1.conv1.weight' in state_dict:
        conversion = _convert_resnet(state_dict)
    else:
        raise ValueError(
            f'The network was not recognised by its parameters ({_some(state_dict)}): this converter knows the '
            "authors' MobileNetV2 of any width, with memory or without, and their ResNet10, 18 and 34.")
    _check(conversion)
    return conversion


def convert_checkpoint(path: Union[str, Path], output: Union[str, Path]) -> Conversion:
    """Convert a checkpoint of the authors' into a folder with `model.safetensors` and `config.json`.

    Args:
        path: The checkpoint, see `read_checkpoint`.
        output: The folder to make, which must not exist or be empty. Its files appear only when they are whole,
            config.json last.

    Returns:
        What was recognised.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: `output` is there already.
        OSError: `output` cannot be written.
        ValueError: The file was not read or not recognised.
    """
    output = Path(output)
    if output.is_file() or output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f'{output} is there already and not empty: name another folder, or remove it.')
    conversion = convert_state_dict(read_checkpoint(path))
    model = timm.create_model(conversion.architecture, **conversion.model_args)
    model.load_state_dict(conversion.state_dict)

    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{output.name}.', dir=output.parent) as unfinished:
        save_model(model, Path(unfinished), model_args=conversion.model_args)
        output.mkdir(exist_ok=True)
        for name in ('model.safetensors', 'config.json'):
            Path(unfinished, name).replace(output / name)
    return conversion


def _convert_mobilenetv2(state_dict: StateDict) -> Conversion:
    memory = 'featuresconv.0.weight' in state_dict
    stem = 'featuresconv' if memory else 'features.0'
    # the plain network counts its 17 blocks through, from 1; the one with memory has seven groups of them
    blocks = [(group, i) for group, depth in enumerate(MOBILENETV2_DEPTHS) for i in range(depth)]
    renamed = {}
    for name, tensor in state_dict.items():
        if match := re.fullmatch(r'features(\d)\.(\d+)\.conv\.(.+)', name):
            new_name = _mobilenetv2_block(int(match[1]), int(match[2]), match[3])
        elif (match := re.fullmatch(r'features\.(\d+)\.conv\.(.+)', name)) and 1 <= int(match[1]) <= len(blocks):
            new_name = _mobilenetv2_block(*blocks[int(match[1]) - 1], match[2])
        elif match := re.fullmatch(r'wavelet_(conv|\d)\.(.+)', name):
            new_name = _unit('stem' if match[1] == 'conv' else f'blocks.{match[1]}', match[2])
        else:
            new_name = _replace_prefix(name, {
                f'{stem}.0.': 'conv_stem.', f'{stem}.1.': 'bn1.',
                'conv.0.': 'conv_head.', 'conv.1.': 'bn2.',
                'classifier.': 'classifier.',
            })
        renamed[_known(name, new_name)] = tensor

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


def _mobilenetv2_block(group: int, block: int, part: str) -> Optional[str]:
    if group == 0:  # its block does not expand
        parts = {'0.': 'conv_dw.', '1.': 'bn1.', '3.': 'conv_pw.', '4.': 'bn2.'}
    else:
        parts = {'0.': 'conv_pw.', '1.': 'bn1.', '3.': 'conv_dw.', '4.': 'bn2.', '6.': 'conv_pwl.', '7.': 'bn3.'}
    new_part = _replace_prefix(part, parts)
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
            new_name = _replace_prefix(name, {'conv.': 'conv1.', 'bn.': 'bn1.', 'fc.': 'fc.'})
        renamed[_known(name, new_name)] = tensor

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
    new_part = _replace_prefix(part, {f'{old}.': f'{new}.' for old, new in UNIT_PARTS.items()})
    return new_part and f'memory.{site}.{new_part}'


def _replace_prefix(name: str, prefixes: Dict[str, str]) -> Optional[str]:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def _known(name: str, new_name: Optional[str]) -> str:
    if new_name is None:
        raise ValueError(f"The parameter {name} was not recognised: the authors' networks have none of that name.")
    return new_name


def _check(conversion: Conversion) -> None:
    """Every parameter of the registered network is there, of its shape, and none is left over."""
    try:
        model = timm.create_model(conversion.architecture, device='meta', **conversion.model_args)
    except TypeError:  # memory options that the network lacks
        raise ValueError(f'The memory options {conversion.model_args} do not fit {conversion.architecture}.') from None
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    given = {k: tuple(v.shape) for k, v in conversion.state_dict.items() if not k.endswith('num_batches_tracked')}
    faults = [f'{k} is missing' for k in expected if k not in given]
    faults += [f'{k} is left over' for k in given if k not in expected]
    faults += [f'{k} is {given[k]}, not {expected[k]}' for k in expected if k in given and given[k] != expected[k]]
    if faults:
        raise ValueError(
            f'The checkpoint looks like {conversion.architecture} with {conversion.model_args}, but {_some(faults)}.')
    for name in model.state_dict():  # files written by hand lack the counters, which nothing in eval mode reads
        if name.endswith('num_batches_tracked'):
            conversion.state_dict.setdefault(name, torch.tensor(0))


def _some(names) -> str:
    names = list(names)
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
