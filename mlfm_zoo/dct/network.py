"""Convert networks to read DCT coefficients, and freeze a learned selection."""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple, TypeVar, Union

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import EfficientNet, ResNet

from .._timm import config_of, update_model_args
from ..memory import LowFrequencyMemory
from ..memory.options import Options, check_option
from .channels import NUM_CHANNELS, select_channels
from .gate import ChannelGate, gated_stem
from .stem import DCTStem

__all__ = ['DCTOptions', 'coefficient_config', 'freeze_selection', 'start_from_trunk', 'to_dct']

NetworkT = TypeVar('NetworkT', bound=nn.Module)


def to_dct(
        model: NetworkT,
        channels: Union[str, int, Sequence[int]] = '24s',
        dct_input: str = 'rgb',
        layer2_stride: int = 1,
        gate: bool = False,
        statistics: Optional[Sequence[Sequence[float]]] = None,
        in_chans: Optional[int] = None,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        dense: bool = False,
) -> NetworkT:
    """Replace a network's stem by a DCT stem, in place.

    The layer after the stem then has one input channel per coefficient. As in the paper, it keeps its leading input
    channels. If there are more coefficients than channels, it is re-initialized. A pretrained network becomes an
    initialization, not a classifier.

    ResNet: stem and pooling are removed, and layer1 runs at 1/8 of the image's size. layer2 has stride 1, as in the
    released code, or 2, as in the RGB network.

    MobileNetV2 and EfficientNet: the first convolution is removed. The first block's depthwise convolution reads the
    coefficients; with all 192, or if squeeze-and-excitation follows, it is a grouped one that keeps its number of
    outputs. If the block begins with an ordinary convolution, that one reads the coefficients. The block's shortcut is
    removed.

    The network has no registered name, so timm cannot load a saved folder of it. Save its state dict, and load it into
    the same network, converted again.

    Args:
        model: A timm ResNet (of any block), MobileNetV2 or EfficientNet, without a low-frequency memory.
        channels: Coefficients, see `select_channels`.
        dct_input: 'rgb' for a network that takes normalized images and computes coefficients itself, 'coefficients'
            for one that takes normalized coefficients (N, C, H / 8, W / 8).
        layer2_stride: Stride of a ResNet's second stage, 1 or 2.
        gate: Whether a `ChannelGate` selects among the coefficients.
        statistics: As `DCTStem`.
        in_chans: Channels of the image, 3 or 1; the model's own if None.
        mean: Mean that images are normalized with; that of the model's config if None.
        std: Standard deviation that images are normalized with; that of the model's config if None.
        dense: Whether each output of the first depthwise convolution of an EfficientNet reads all coefficients, as it
            does after `freeze_selection`.

    Returns:
        The model.

    Raises:
        ValueError: The model is of another kind or has a memory, or an argument is out of range.

    Examples:
        >>> model = to_dct(timm.create_model('test_resnet', num_classes=10), '24s')
        >>> model(torch.randn(2, 3, 128, 128)).shape
        torch.Size([2, 10])
    """
    check_option('dct_input', dct_input, ('rgb', 'coefficients'))
    check_option('layer2_stride', layer2_stride, (1, 2))
    check_option('gate', gate, (True, False))
    chosen = select_channels(channels)
    if any(isinstance(module, LowFrequencyMemory) for module in model.modules()):
        raise ValueError(
            'The network has a low-frequency memory, which starts at half of the image size, where a network on 8 x 8 '
            'blocks has no feature: build it with memory=False.')
    if not isinstance(model, (ResNet, EfficientNet)):
        raise ValueError(
            f'A {type(model).__name__} cannot read DCT coefficients: give a timm ResNet, MobileNetV2 or EfficientNet.')
    network: Any = model
    config, num_chs, dd = config_of(model), len(chosen), get_device_dtype(model)
    in_chans = in_chans or network.in_chans
    first: nn.Module = nn.Identity()
    if dct_input == 'rgb':
        mean = mean or config.get('mean') or IMAGENET_DEFAULT_MEAN
        std = std or config.get('std') or IMAGENET_DEFAULT_STD
        first = DCTStem(chosen, in_chans, mean, std, statistics, **dd)
    if gate:
        first = nn.Sequential(first, ChannelGate(num_chs, **dd))
    if isinstance(model, ResNet):
        _turn_resnet(network, first, num_chs, layer2_stride)
    else:
        _turn_efficientnet(network, first, num_chs, dense)
    network.in_chans = in_chans if dct_input == 'rgb' else num_chs
    if config and dct_input == 'coefficients':
        config.update(coefficient_config(num_chs, config['input_size'][1:]))
    network.train(model.training)
    return model


def coefficient_config(num_chs: int, img_size: Sequence[int]) -> Dict[str, Any]:
    """Make a pretrained config's input entries for coefficients of this image size."""
    height, width = (size // 8 for size in img_size)
    return dict(input_size=(num_chs, height, width), mean=(0.,) * num_chs, std=(1.,) * num_chs)


@dataclass(frozen=True)
class DCTOptions(Options):
    """Options of a network on DCT coefficients, by their names in `timm.create_model`.

    Attributes:
        dct_channels: As `channels` of `to_dct`.
        dct_input: As in `to_dct`.
        dct_gate: As `gate` of `to_dct`.
        dct_dense: As `dense` of `to_dct`.
        dct_statistics: As `statistics` of `to_dct`.
        dct_mean: Mean that images are normalized with.
        dct_std: Standard deviation that images are normalized with.
        in_chans: Channels of the image, 3 or 1.

    Examples:
        >>> model = timm.create_model('dct_mobilenetv2_100_6s', dct_channels='12s')
        >>> model.conv_stem.out_channels
        12
    """
    dct_channels: Union[str, int, Sequence[int]] = '24s'
    dct_input: str = 'rgb'
    dct_gate: bool = False
    dct_dense: bool = False
    dct_statistics: Optional[Sequence[Sequence[float]]] = None
    dct_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN
    dct_std: Sequence[float] = IMAGENET_DEFAULT_STD
    in_chans: int = 3

    def turn(self, model: NetworkT, layer2_stride: int = 1) -> NetworkT:
        """Convert a trunk by `to_dct`."""
        return to_dct(
            model, self.dct_channels, self.dct_input, layer2_stride, self.dct_gate, self.dct_statistics, self.in_chans,
            self.dct_mean, self.dct_std, self.dct_dense)


def freeze_selection(
        model: NetworkT,
        k: int,
        counts: Optional[torch.Tensor] = None,
) -> Tuple[NetworkT, List[int]]:
    """Replace a trained gate by the k channels that are most often open, in place.

    Ties keep the first channels: luma before chroma, and low frequencies before high ones. A folder saved by timm
    builds the frozen network.

    Args:
        model: A network whose `conv1` or `conv_stem` ends with a `ChannelGate`.
        k: Channels to keep.
        counts: How often each channel was open (C,), as `share_open` returns it. If None, the difference of the gate's
            biases for on and off.

    Returns:
        The model, and its channels, in the numbering of `select_channels`.

    Raises:
        ValueError: There is no gate, it has fewer than k channels, or the counts are of other channels.

    Examples:
        >>> model = to_dct(timm.create_model('test_resnet'), '192', gate=True)
        >>> model, channels = freeze_selection(model, k=24)
        >>> len(channels), model.conv1.out_channels
        (24, 24)
    """
    network: Any = model
    name = 'conv1' if hasattr(model, 'conv1') else 'conv_stem'
    old, gate = gated_stem(model)
    if any(conv.groups == conv.in_channels > 1 for conv in _readers(network)):
        raise ValueError(
            'The first convolution is depthwise, and has outputs for closed channels too: freeze a network of 192 '
            'channels.')
    num_chs = gate.conv1.in_channels
    if counts is None:
        assert gate.conv2.bias is not None
        counts = gate.conv2.bias[1::2] - gate.conv2.bias[0::2]
    if not 0 < k <= num_chs or len(counts) != num_chs:
        raise ValueError(f'k is {k} and there are {len(counts)} counts, expected those of {num_chs} channels.')
    kept = sorted(counts.detach().cpu().sort(descending=True, stable=True).indices[:k].tolist())
    dd = get_device_dtype(model)
    if isinstance(old, DCTStem):
        channels = [old.channels[i] for i in kept]
        first: nn.Module = DCTStem(channels, old.in_chans, old.mean, old.std, old.statistics, **dd)
    else:
        channels, first = kept, nn.Identity()
        network.in_chans = k
        if config := config_of(model):
            config.update(coefficient_config(k, [8 * size for size in config['input_size'][1:]]))
    setattr(network, name, first)
    changed: Dict[str, Any] = dict(dct_gate=False, dct_channels=channels)
    for conv in _readers(network):
        weight = _dense_weight(conv)[:, kept]
        if conv.groups > 1:
            changed['dct_dense'] = True
            conv.groups = 1
        _replace_weight(conv, weight)
    update_model_args(network, **changed)
    for info in network.feature_info:
        if info['module'] == 'act1':
            info['num_chs'] = k
    network.train(model.training)
    return model, channels


def start_from_trunk(state_dict: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, torch.Tensor]:
    """Convert an RGB trunk's weights to initialize a network on DCT coefficients.

    As in `to_dct`, the stem's weights are left out, and the layer that reads the coefficients keeps its leading input
    channels. Missing weights keep the network's values. A network on YCbCr takes all weights.
    """
    own = model.state_dict()
    if 'bn1.weight' in own:  # it has a stem of its own
        return state_dict
    stem = ('conv1.', 'conv_stem.')
    kept = {k: v for k, v in state_dict.items() if not k.startswith((*stem, 'bn1.'))}
    readers = ('layer1.0.conv1.', 'layer1.0.downsample.', 'blocks.0.0.')
    kept.update(_leading(kept, {k: v for k, v in own.items() if k.startswith((*stem, *readers))}))
    return kept


def _leading(weights: Dict[str, torch.Tensor], own: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Crop weights to the network's shapes; keep the network's own where too small."""
    taken = dict(own)
    for name, value in own.items():
        leading = weights[name][tuple(map(slice, value.shape))] if name in weights else value
        if leading.shape == value.shape:
            taken[name] = leading
    return taken


def _turn_resnet(model: Any, first: nn.Module, num_chs: int, layer2_stride: int) -> None:
    if not isinstance(model.layer1[0].conv1, nn.Conv2d):
        raise ValueError(
            f'The first block is a {type(model.layer1[0]).__name__}, expected one that begins with a convolution.')
    block, dd = model.layer1[0], get_device_dtype(model)
    model.conv1, model.bn1, model.act1, model.maxpool = first, nn.Identity(), nn.Identity(), nn.Identity()
    if block.downsample is None:  # the shortcut of a basic block is the feature itself
        in_chs, out_chs = (info['num_chs'] for info in model.feature_info[:2])
        block.downsample = nn.Sequential(
            nn.Conv2d(in_chs, out_chs, 1, bias=False, **dd), nn.BatchNorm2d(out_chs, **dd))
        nn.init.kaiming_normal_(block.downsample[0].weight, mode='fan_out', nonlinearity='relu')
    for conv in _readers(model):
        _read(conv, num_chs)
    if layer2_stride == 1:
        _remove_stride(model.layer2[0])
    # blocks of 8 are twice the reduction of stem and pooling, 4, which a layer2 without stride cancels
    reductions = [8, 8, *(info['reduction'] * layer2_stride for info in model.feature_info[2:])]
    for info, reduction in zip(model.feature_info, reductions):
        info['reduction'] = reduction
    model.feature_info[0].update(num_chs=num_chs, module='act1')


def _turn_efficientnet(model: Any, first: nn.Module, num_chs: int, dense: bool) -> None:
    block = model.blocks[0][0]
    old: Any = _first_conv(block)
    if getattr(block, 'conv_s2d', None) is not None or old.groups not in (1, old.in_channels):
        raise ValueError(
            f'The first block is a {type(block).__name__} that reads its input in parts, expected one that begins with '
            'an ordinary or a depthwise convolution.')
    model.conv_stem, model.bn1 = first, nn.Identity()
    block.has_skip = False  # coefficients are not features to add to
    dd = get_device_dtype(model)
    if old.groups == 1:
        _read(old, num_chs)
    elif num_chs < NUM_CHANNELS and not dense and isinstance(block.se, nn.Identity):
        for conv in (old, block.conv_pw):
            _read(conv, num_chs)
        norm = type(block.bn1)(num_chs, eps=block.bn1.eps, momentum=block.bn1.momentum, **dd)
        norm.act, norm.drop = block.bn1.act, block.bn1.drop
        norm.load_state_dict(_leading(block.bn1.state_dict(), norm.state_dict()))
        block.bn1 = norm
    else:
        block.conv_dw = nn.Conv2d(
            num_chs, old.out_channels, old.kernel_size, old.stride, old.padding,
            groups=1 if dense else math.gcd(num_chs, old.out_channels), bias=False, **dd)
        nn.init.kaiming_normal_(block.conv_dw.weight, mode='fan_out')
    for info in model.feature_info:
        info['reduction'] *= 4  # from a stem of stride 2 to blocks of 8
        if info['stage'] == 0:
            info['num_chs'] = num_chs


def _readers(model: Any) -> List[nn.Conv2d]:
    """The convolutions that read the coefficients."""
    if hasattr(model, 'layer1'):
        block = model.layer1[0]
        return [block.conv1, *[m for m in block.downsample.modules() if isinstance(m, nn.Conv2d)][:1]]
    return [_first_conv(model.blocks[0][0])]


def _first_conv(block: Any) -> nn.Conv2d:
    """The first convolution of an EfficientNet block: plain, expanding or depthwise."""
    names = ('conv', 'conv_exp', 'conv_pw' if hasattr(block, 'conv_pwl') else 'conv_dw')
    return next(getattr(block, name) for name in names if hasattr(block, name))


def _read(conv: nn.Conv2d, num_chs: int) -> None:
    """Set the input channels of a convolution; a depthwise one's outputs follow.

    A depthwise one keeps its leading weights. Another keeps them only if it has enough of them; else all are new.
    """
    weight = conv.weight.detach()
    if conv.groups > 1:
        new = weight.new_empty(num_chs, *weight.shape[1:])
        nn.init.kaiming_normal_(new, mode='fan_out')
        new[:len(weight)] = weight[:num_chs]
        conv.out_channels = conv.groups = num_chs
    else:
        new = weight.new_empty(len(weight), num_chs, *weight.shape[2:])
        nn.init.kaiming_normal_(new, mode='fan_out', nonlinearity='relu')
        if num_chs <= weight.shape[1]:
            new = weight[:, :num_chs]
    _replace_weight(conv, new)


def _replace_weight(conv: nn.Conv2d, weight: torch.Tensor) -> None:
    conv.in_channels = weight.shape[1] * conv.groups
    conv.weight = nn.Parameter(weight.clone())


def _dense_weight(conv: nn.Conv2d) -> torch.Tensor:
    """The weight of a grouped convolution as one of a single group."""
    weight, groups = conv.weight.detach(), conv.groups
    dense = weight.new_zeros(groups, len(weight) // groups, groups, *weight.shape[1:])
    dense[range(groups), :, range(groups)] = weight.unflatten(0, (groups, -1))
    return dense.flatten(0, 1).flatten(1, 2)


def _remove_stride(block: Any) -> None:
    """Remove the stride of a block."""
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            module.stride = (1, 1)
        elif 'Pool' in type(module).__name__ and name:
            parent, _, child = name.rpartition('.')
            setattr(block.get_submodule(parent), child, nn.Identity())
    if hasattr(block, 'stride'):
        block.stride = 1
