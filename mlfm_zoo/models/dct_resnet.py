"""ResNets that read the DCT coefficients of the image.

Paper: Learning in the Frequency Domain (CVPR 2020), https://arxiv.org/abs/2002.12416. Stem and pooling are removed, and
layer1 reads the coefficients. layer2 has stride 1, as in the released code, or 2 with `layer2_stride=2`, as in the
paper's figure.
"""

from typing import Any, Dict, Optional, Sequence, Union

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import Bottleneck, ResNet, register_model

from ..dct.network import to_dct
from ..hub.configs import default_cfgs_from_manifest
from ._dct import create_dct_network

__all__ = ['DCTResNet']


class DCTResNet(ResNet):
    """ResNet on DCT coefficients.

    Args:
        *args: As `timm.models.ResNet`.
        dct_channels: As `channels` of `mlfm_zoo.dct.to_dct`.
        dct_input: As `mlfm_zoo.dct.to_dct`.
        dct_gate: As `gate` of `mlfm_zoo.dct.to_dct`.
        dct_statistics: As `statistics` of `mlfm_zoo.dct.to_dct`.
        dct_mean: Mean that images are normalised with.
        dct_std: Standard deviation that images are normalised with.
        layer2_stride: As `mlfm_zoo.dct.to_dct`.
        in_chans: Channels of the image, 3 or 1.
        **kwargs: As `timm.models.ResNet`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
            self,
            *args: Any,
            dct_channels: Union[str, int, Sequence[int]] = '24s',
            dct_input: str = 'rgb',
            dct_gate: bool = False,
            dct_statistics: Optional[Sequence[Sequence[float]]] = None,
            dct_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
            dct_std: Sequence[float] = IMAGENET_DEFAULT_STD,
            layer2_stride: int = 1,
            in_chans: int = 3,
            **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        to_dct(self, dct_channels, dct_input, layer2_stride, dct_gate, dct_statistics, in_chans, dct_mean, dct_std)


def _create_dct_resnet(variant: str, pretrained: bool = False, **kwargs) -> DCTResNet:
    return create_dct_network(DCTResNet, variant, pretrained, **kwargs)


def _cfg(**kwargs) -> Dict[str, Any]:
    return {
        'num_classes': 1000, 'input_size': (3, 448, 448), 'pool_size': (14, 14),
        'crop_pct': 0.875, 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'layer1.0.conv1', 'classifier': 'fc', 'license': 'apache-2.0',
        'paper_ids': 'arXiv:2002.12416',
        **kwargs
    }


default_cfgs = default_cfgs_from_manifest({
    'dct_resnet50_24s': _cfg(),
    'dct_resnet50_24t': _cfg(),
    'dct_resnet50_24d': _cfg(),
    'dct_resnet50_48s': _cfg(),
    'dct_resnet50_48t': _cfg(),
    'dct_resnet50_64s': _cfg(),
    'dct_resnet50_64t': _cfg(),
    'dct_resnet50_192': _cfg(),
    'dct_resnet50_192_gate': _cfg(),
})

RESNET50 = dict(block=Bottleneck, layers=(3, 4, 6, 3))


@register_model
def dct_resnet50_24s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_24s', pretrained, **dict(dict(RESNET50, dct_channels='24s'), **kwargs))


@register_model
def dct_resnet50_24t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_24t', pretrained, **dict(dict(RESNET50, dct_channels='24t'), **kwargs))


@register_model
def dct_resnet50_24d(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 24 coefficients, the learned selection."""
    return _create_dct_resnet('dct_resnet50_24d', pretrained, **dict(dict(RESNET50, dct_channels='24d'), **kwargs))


@register_model
def dct_resnet50_48s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 48 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_48s', pretrained, **dict(dict(RESNET50, dct_channels='48s'), **kwargs))


@register_model
def dct_resnet50_48t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 48 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_48t', pretrained, **dict(dict(RESNET50, dct_channels='48t'), **kwargs))


@register_model
def dct_resnet50_64s(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 64 coefficients, in squares."""
    return _create_dct_resnet('dct_resnet50_64s', pretrained, **dict(dict(RESNET50, dct_channels='64s'), **kwargs))


@register_model
def dct_resnet50_64t(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on 64 coefficients, in triangles."""
    return _create_dct_resnet('dct_resnet50_64t', pretrained, **dict(dict(RESNET50, dct_channels='64t'), **kwargs))


@register_model
def dct_resnet50_192(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on all 192 coefficients."""
    return _create_dct_resnet('dct_resnet50_192', pretrained, **dict(dict(RESNET50, dct_channels='192'), **kwargs))


@register_model
def dct_resnet50_192_gate(pretrained: bool = False, **kwargs) -> DCTResNet:
    """ResNet-50 on those of the 192 coefficients that its gate lets pass."""
    model_args = dict(RESNET50, dct_channels='192', dct_gate=True)
    return _create_dct_resnet('dct_resnet50_192_gate', pretrained, **dict(model_args, **kwargs))
