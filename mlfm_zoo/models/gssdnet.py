"""GSSDNet, with fixed Gaussian and derivative filters, and VanillaNet.

Paper: Frequency and Scale Perspectives of Feature Extraction, https://arxiv.org/abs/2302.12477. Every block is a fixed
3x3 depthwise operator, a norm, a 1x1 convolution, a norm and a ReLU; there are no skip connections. The operators:

    blur        Gaussian of sigma 1 on all channels; it carries the stride
    low_pass    Gaussians on the first half of the channels, with sigma rising from 0.707 to 1.414
    derivative  on the first half of the channels; order 1: d/dx and d/dy in turn; order 2: also d2/dx2, d2/dy2, d2/dxdy

VanillaNet has a learned depthwise convolution in place of each. Outputs equal those of the released networks, which
split the channels and concatenate them. Here an operator is one convolution over all channels; the kernel of a channel
that passes unchanged is 1 in the middle.
"""

import math
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import ClassifierHead, get_device_dtype
from timm.models import checkpoint_seq, register_model

from .._buffers import FixedBuffers
from .._folding import Fusible, fuse_trunk, scale_and_shift
from .._timm import feature_take_indices
from ..hub.configs import default_cfgs_from_manifest
from ..hub.manifest import Checkpoint
from ..memory.options import check_option
from ._create import base_cfg, create_network
from ._features import StagedNetwork
from ._weights import StateDict, refuse_other_weights

__all__ = ['FixedConv2d', 'GSSDBlock', 'GSSDNet', 'fixed_kernels']

OPERATORS = ('order2', 'order1', 'learned')
REMEDY = 'give weights of this network, made with the same operators and width'

# Derivatives, as cross-correlations. d/dx and d/dy have opposite signs, as released.
DERIVATIVES = (
    ((0, 0, 0), (1, 0, -1), (0, 0, 0)),
    ((0, -1, 0), (0, 0, 0), (0, 1, 0)),
    ((0, 0, 0), (-1, 2, -1), (0, 0, 0)),
    ((0, -1, 0), (0, 2, 0), (0, -1, 0)),
    ((-1, 0, 1), (0, 0, 0), (1, 0, -1)),
)
NUM_DERIVATIVES = {'order1': 2, 'order2': 5}

# Channels at width 1, operator and stride of each block: the stem's, then those of four stages.
STEM = ((32, 'blur', 2), (64, 'derivative', 1))
STAGES = (
    ((128, 'blur', 2), (128, 'derivative', 1)),
    ((256, 'blur', 2), (256, 'derivative', 1)),
    ((512, 'blur', 2), (512, 'derivative', 1), (512, 'low_pass', 1), (512, 'derivative', 1), (512, 'low_pass', 1),
     (512, 'derivative', 1)),
    ((1024, 'blur', 2), (1024, 'derivative', 1)),
)


def fixed_kernels(kind: str, num_chs: int) -> torch.Tensor:
    """The kernels of a fixed operator.

    Args:
        kind: 'blur', 'low_pass', or a set of derivatives, 'order1' or 'order2'.
        num_chs: Channels C.

    Returns:
        Depthwise kernels (C, 1, 3, 3), for cross-correlation, in float32. The last channels, which pass unchanged, have
        kernels of 1 in the middle.

    Examples:
        >>> fixed_kernels('order1', 4)[0, 0]  # d/dx
        tensor([[ 0.,  0.,  0.],
                [ 1.,  0., -1.],
                [ 0.,  0.,  0.]])
    """
    dd: Dict[str, Any] = {'device': 'cpu', 'dtype': torch.float32}
    kernels = torch.zeros(num_chs, 3, 3, **dd)
    kernels[:, 1, 1] = 1
    if kind in ('blur', 'low_pass'):
        sigma = torch.ones(num_chs, **dd) if kind == 'blur' else torch.linspace(0.707, 1.414, num_chs // 2, **dd)
        squares = torch.tensor([[2, 1, 2], [1, 0, 1], [2, 1, 2]], **dd)
        gaussians = torch.exp(-squares / (2 * sigma[:, None, None] ** 2))
        kernels[:len(sigma)] = gaussians / gaussians.sum((1, 2), keepdim=True)
    else:
        derivatives = torch.tensor(DERIVATIVES[:NUM_DERIVATIVES[kind]], **dd)
        repeats = num_chs // 2 // len(derivatives)
        kernels[:repeats * len(derivatives)] = derivatives.repeat(repeats, 1, 1)
    return kernels[:, None]


class FixedConv2d(FixedBuffers):
    """Zero-padded depthwise 3x3 convolution with the kernels of `fixed_kernels`.

    Stride 1 keeps the size. The kernels are a buffer that state dicts hold. Loading other kernels is an error: they are
    of another network.

    Args:
        kind: 'blur', 'low_pass', 'order1' or 'order2'.
        num_chs: Channels.
        stride: Stride.
        dilation: Distance between the pixels that a kernel reads.
        device: Device of the kernels.
        dtype: Dtype of the kernels.
    """

    weight: torch.Tensor

    def __init__(
            self, kind: str, num_chs: int, stride: int = 1, dilation: int = 1, device: Any = None, dtype: Any = None):
        super().__init__()
        self.kind = kind
        self.num_chs = num_chs
        self.stride = stride
        self.dilation = dilation
        self.register_buffer('weight', torch.empty(num_chs, 1, 3, 3, device=device, dtype=dtype))
        self.init_non_persistent_buffers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Filter x (N, C, H, W); stride s makes H and W ceil(H / s) and ceil(W / s)."""
        return F.conv2d(
            x, self.weight, stride=self.stride, padding=self.dilation, dilation=self.dilation, groups=self.num_chs)

    def fixed_buffers(self) -> Dict[str, torch.Tensor]:
        return {'weight': fixed_kernels(self.kind, self.num_chs)}

    def _load_from_state_dict(self, state_dict, prefix, *args):
        given = state_dict.get(f'{prefix}weight')
        if given is not None and not given.is_meta:
            kernels = self.fixed_buffers()['weight']
            # to the rounding of their dtype
            same = given.shape == kernels.shape and given.is_floating_point() and torch.allclose(
                given.detach().cpu().float(), kernels, rtol=0, atol=max(torch.finfo(given.dtype).eps, 1e-5))
            if not same:
                raise RuntimeError(f'{prefix}weight differs from the fixed kernels of this network; {REMEDY}.')
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.init_non_persistent_buffers()  # those of a narrower dtype are rounded

    def extra_repr(self) -> str:
        return f"'{self.kind}', {self.num_chs}, stride={self.stride}, dilation={self.dilation}"


class GSSDBlock(nn.Module):
    """Depthwise operator, norm, 1x1 convolution, norm and ReLU.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        operator: Kind of `FixedConv2d`, or 'learned' for a convolution that is trained.
        stride: Stride of the operator.
        dilation: Dilation of the operator.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
            self, in_chs: int, out_chs: int, operator: str, stride: int = 1, dilation: int = 1, device: Any = None,
            dtype: Any = None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        conv_dw: Union[nn.Conv2d, FixedConv2d] = nn.Conv2d(
            in_chs, in_chs, 3, stride, padding=dilation, dilation=dilation, groups=in_chs, bias=False, **dd
        ) if operator == 'learned' else FixedConv2d(operator, in_chs, stride, dilation, **dd)
        self.conv_dw = conv_dw
        self.bn1 = nn.BatchNorm2d(in_chs, **dd)
        self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(out_chs, **dd)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From x (N, in_chs, H, W) to (N, out_chs, ceil(H / stride), ceil(W / stride))."""
        return self.act(self.bn2(self.conv_pw(self.bn1(self.conv_dw(x)))))

    @torch.jit.ignore
    def fuse(self) -> 'GSSDBlock':
        """Fold the norms into the convolutions; `reparameterize_model` of timm calls this."""
        return fuse_trunk(self)


class GSSDNet(Fusible, StagedNetwork):
    """GSSDNet, and VanillaNet with `operators='learned'`.

    Args:
        operators: 'order2' or 'order1', the order of the derivatives, or 'learned' for VanillaNet.
        channel_multiplier: Width: a layer of d channels has max(int(d * channel_multiplier), 8).
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier; '' for none.
        output_stride: Image size over size of the deepest feature, 8, 16 or 32. Strides that this rules out become
            dilation; every second pixel of a feature then equals the undilated feature.
        thumbnail: Whether the first two strides are 1, for small images.
        drop_rate: Dropout before the classifier.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: An argument is out of range.

    Examples:
        >>> model = GSSDNet(channel_multiplier=0.1, num_classes=10)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
            self,
            operators: str = 'order2',
            channel_multiplier: float = 1.0,
            num_classes: int = 1000,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 32,
            thumbnail: bool = False,
            drop_rate: float = 0.2,
            device: Any = None,
            dtype: Any = None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        check_option('operators', operators, OPERATORS)
        check_option('thumbnail', thumbnail, (True, False))
        check_option('output_stride', output_stride, (8, 16, 32))
        if not 0 < channel_multiplier < math.inf:
            raise ValueError(f'channel_multiplier is {channel_multiplier!r}, expected a number above 0.')
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        num_chs, reduction, dilation, free_strides = in_chans, 1, 1, 2 if thumbnail else 0
        self.feature_info: List[Dict[str, Any]] = []
        parts = []
        for i, layout in enumerate((STEM, *STAGES)):
            blocks = []
            for width, kind, stride in layout:
                next_dilation = dilation
                if stride > 1 and free_strides:
                    stride, free_strides = 1, free_strides - 1
                elif reduction * stride > output_stride:
                    stride, next_dilation = 1, dilation * stride
                kind = 'learned' if operators == 'learned' else operators if kind == 'derivative' else kind
                out_chs = max(int(width * channel_multiplier), 8)
                blocks.append(GSSDBlock(num_chs, out_chs, kind, stride, dilation, **dd))
                num_chs, reduction, dilation = out_chs, reduction * stride, next_dilation
            parts.append(nn.Sequential(*blocks))
            module = f'stages.{i - 1}' if i else f'stem.{len(blocks) - 1}'
            self.feature_info.append(dict(num_chs=num_chs, reduction=reduction, module=module))
        self.stem = parts[0]
        self.stages = nn.Sequential(*parts[1:])
        self.num_features = num_chs
        self.head = ClassifierHead(num_chs, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialize all parameters."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Layers for learning rates that depend on depth."""
        return dict(stem=r'^stem', blocks=r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)')

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether blocks compute their activations again in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier, and the pooling before it if `global_pool` is given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def prune_intermediate_layers(
            self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True) -> List[int]:
        """Remove what the features at `indices` do not need, as timm's networks do; return the indices."""
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)
        self.stages = self.stages[:max_index]
        self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or max_index < len(STAGES):
            self.reset_classifier(0, '')
        return take_indices

    def _forward_stages(self, x: torch.Tensor, indices: List[int], end: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        features: List[torch.Tensor] = []
        x = self.stem(x) if torch.jit.is_scripting() or not self.grad_checkpointing else checkpoint_seq(self.stem, x)
        if 0 in indices:
            features.append(x)
        for i, stage in enumerate(self.stages):
            if i < end:
                x = stage(x) if torch.jit.is_scripting() or not self.grad_checkpointing else checkpoint_seq(stage, x)
                if i + 1 in indices:
                    features.append(x)
        return x, features

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return logits (N, num_classes), or with `pre_logits` the classifier's input."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From an image batch (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def fuse(self) -> 'GSSDNet':
        """Fold the norms for inference with `mlfm_zoo.fuse_trunk`; return the network."""
        return fuse_trunk(self)


def _prepare_state_dict(state_dict: StateDict, model: GSSDNet, checkpoint: Optional[Checkpoint]) -> StateDict:
    """Raise for weights that do not fit; fold the first norm if `in_chans` differs."""
    of_image = [name for name in state_dict if name.startswith(('stem.0.conv_', 'stem.0.bn1.'))]
    refuse_other_weights(model, state_dict, of_image, REMEDY)
    weight = state_dict['stem.0.conv_pw.weight']
    in_chs = weight.shape[1]
    if in_chs == model.in_chans:
        return state_dict
    if not isinstance(model.get_submodule('stem.0.conv_dw'), FixedConv2d):
        raise RuntimeError(
            f'The weights were learned on {in_chs} image channels, each with a kernel of its own, and cannot be '
            f'adapted to {model.in_chans}: give in_chans={in_chs}, or build the network with pretrained=False.')
    # Fold the first norm into the 1x1 convolution, which timm can adapt to any image channels. The blur has the same
    # kernel for all channels, so it commutes with what timm does. The network's own norm, still new, follows the blur.
    norm = nn.BatchNorm2d(in_chs)
    norm.load_state_dict({k: state_dict[f'stem.0.bn1.{k}'] for k in norm.state_dict()})
    scale, shift = scale_and_shift(norm)
    own = {k: v for k, v in model.state_dict().items() if k.startswith(('stem.0.conv_dw.', 'stem.0.bn1.'))}
    return dict(state_dict, **own, **{
        'stem.0.conv_pw.weight': weight * scale[:, None, None] * math.sqrt(1 + norm.eps),
        'stem.0.bn2.running_mean': state_dict['stem.0.bn2.running_mean'] - weight[..., 0, 0] @ shift,
    })


def _create_gssdnet(variant: str, pretrained: bool, model_args: Dict[str, Any], **kwargs) -> GSSDNet:
    feature_cfg = dict(out_indices=(0, 1, 2, 3, 4), flatten_sequential=True)
    return create_network(
        GSSDNet, variant, pretrained, _prepare_state_dict, model_args, feature_cfg=feature_cfg, **kwargs)


CONFIG = dict(num_classes=1000, crop_pct=0.965, interpolation='bilinear', classifier='head.fc',
              paper_ids='arXiv:2302.12477')

default_cfgs = default_cfgs_from_manifest({
    **dict.fromkeys(
        ('gssdnet_o2_100', 'gssdnet_o2_075', 'gssdnet_o2_050', 'gssdnet_o1_100', 'gssdnet_o1_075', 'gssdnet_o1_050'),
        base_cfg(first_conv='stem.0.conv_pw', **CONFIG)),
    **dict.fromkeys(
        ('gssdnet_vanilla_100', 'gssdnet_vanilla_075', 'gssdnet_vanilla_050'),
        base_cfg(first_conv='stem.0.conv_dw', **CONFIG)),
})


@register_model
def gssdnet_o2_100(pretrained: bool = False, **kwargs) -> GSSDNet:
    """GSSDNet x1.0 with derivatives of orders 1 and 2."""
    return _create_gssdnet('gssdnet_o2_100', pretrained, dict(operators='order2'), **kwargs)


@register_model
def gssdnet_o2_075(pretrained: bool = False, **kwargs) -> GSSDNet:
    """GSSDNet x0.75 with derivatives of orders 1 and 2."""
    return _create_gssdnet('gssdnet_o2_075', pretrained, dict(operators='order2', channel_multiplier=0.75), **kwargs)


@register_model
def gssdnet_o2_050(pretrained: bool = False, **kwargs) -> GSSDNet:
    """GSSDNet x0.5 with derivatives of orders 1 and 2."""
    return _create_gssdnet('gssdnet_o2_050', pretrained, dict(operators='order2', channel_multiplier=0.5), **kwargs)


@register_model
def gssdnet_o1_100(pretrained: bool = False, **kwargs) -> GSSDNet:
    """GSSDNet x1.0 with derivatives of order 1."""
    return _create_gssdnet('gssdnet_o1_100', pretrained, dict(operators='order1'), **kwargs)


@register_model
def gssdnet_o1_075(pretrained: bool = False, **kwargs) -> GSSDNet:
    """GSSDNet x0.75 with derivatives of order 1."""
    return _create_gssdnet('gssdnet_o1_075', pretrained, dict(operators='order1', channel_multiplier=0.75), **kwargs)


@register_model
def gssdnet_o1_050(pretrained: bool = False, **kwargs) -> GSSDNet:
    """GSSDNet x0.5 with derivatives of order 1."""
    return _create_gssdnet('gssdnet_o1_050', pretrained, dict(operators='order1', channel_multiplier=0.5), **kwargs)


@register_model
def gssdnet_vanilla_100(pretrained: bool = False, **kwargs) -> GSSDNet:
    """VanillaNet x1.0: GSSDNet with learned depthwise convolutions."""
    return _create_gssdnet('gssdnet_vanilla_100', pretrained, dict(operators='learned'), **kwargs)


@register_model
def gssdnet_vanilla_075(pretrained: bool = False, **kwargs) -> GSSDNet:
    """VanillaNet x0.75: GSSDNet with learned depthwise convolutions."""
    model_args = dict(operators='learned', channel_multiplier=0.75)
    return _create_gssdnet('gssdnet_vanilla_075', pretrained, model_args, **kwargs)


@register_model
def gssdnet_vanilla_050(pretrained: bool = False, **kwargs) -> GSSDNet:
    """VanillaNet x0.5: GSSDNet with learned depthwise convolutions."""
    model_args = dict(operators='learned', channel_multiplier=0.5)
    return _create_gssdnet('gssdnet_vanilla_050', pretrained, model_args, **kwargs)
