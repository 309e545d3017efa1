"""MobileNetV2 that reads the DCT coefficients of the image.

Paper: Learning in the Frequency Domain (CVPR 2020), https://arxiv.org/abs/2002.12416. The first convolution is removed,
and the first depthwise one reads the coefficients. With all 192, it is a grouped one from 192 to 32 channels.
"""

from typing import Any, Dict

from timm.models import EfficientNet, register_model

from ..dct.network import DCTOptions
from ..hub.configs import default_cfgs_from_manifest
from ..memory.options import check_option
from ._create import base_cfg
from ._dct import create_dct_network
from .mlfm_efficientnet import mobilenetv2_args

__all__ = ['DCTEfficientNet']


class DCTEfficientNet(EfficientNet):
    """MobileNetV2 or EfficientNet on DCT coefficients.

    Args:
        *args: As `timm.models.EfficientNet`.
        output_stride: Image size over size of the deepest feature, 32, 64 or 128.
        **kwargs: As `timm.models.EfficientNet`, and the options of `mlfm_zoo.dct.DCTOptions`.

    Raises:
        ValueError: An argument is out of range.

    Examples:
        >>> model = timm.create_model('dct_mobilenetv2_100_6s', num_classes=10).eval()
        >>> model(torch.randn(1, 3, 128, 128)).shape
        torch.Size([1, 10])
    """

    def __init__(self, *args: Any, output_stride: int = 128, **kwargs: Any):
        check_option('output_stride', output_stride, (32, 64, 128))  # four times that of the trunk
        options = DCTOptions.take_from(kwargs)
        kwargs['output_stride'] = output_stride // 4
        super().__init__(*args, **kwargs)
        options.turn(self)


def _gen_dct_mobilenetv2(variant: str, pretrained: bool, dct_args: Dict[str, Any], **kwargs) -> Any:
    model_args = {**mobilenetv2_args(kwargs), **dct_args}
    feature_cfg = dict(out_indices=(0, 1, 2, 3, 4), flatten_sequential=True)
    return create_dct_network(DCTEfficientNet, variant, pretrained, model_args, feature_cfg=feature_cfg, **kwargs)


default_cfgs = default_cfgs_from_manifest(dict.fromkeys(
    ('dct_mobilenetv2_100_6s', 'dct_mobilenetv2_100_12s', 'dct_mobilenetv2_100_24s', 'dct_mobilenetv2_100_32s',
     'dct_mobilenetv2_100_192', 'dct_mobilenetv2_100_192_gate'),
    base_cfg(num_classes=1000, input_size=(3, 896, 896), interpolation='bilinear', first_conv='blocks.0.0.conv_dw',
             classifier='classifier', paper_ids='arXiv:2002.12416')))


@register_model
def dct_mobilenetv2_100_6s(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 on 6 coefficients, in squares."""
    return _gen_dct_mobilenetv2('dct_mobilenetv2_100_6s', pretrained, dict(dct_channels='6s'), **kwargs)


@register_model
def dct_mobilenetv2_100_12s(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 on 12 coefficients, in squares."""
    return _gen_dct_mobilenetv2('dct_mobilenetv2_100_12s', pretrained, dict(dct_channels='12s'), **kwargs)


@register_model
def dct_mobilenetv2_100_24s(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 on 24 coefficients, in squares."""
    return _gen_dct_mobilenetv2('dct_mobilenetv2_100_24s', pretrained, dict(dct_channels='24s'), **kwargs)


@register_model
def dct_mobilenetv2_100_32s(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 on 32 coefficients, in squares."""
    return _gen_dct_mobilenetv2('dct_mobilenetv2_100_32s', pretrained, dict(dct_channels='32s'), **kwargs)


@register_model
def dct_mobilenetv2_100_192(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 on all 192 coefficients."""
    return _gen_dct_mobilenetv2('dct_mobilenetv2_100_192', pretrained, dict(dct_channels='192'), **kwargs)


@register_model
def dct_mobilenetv2_100_192_gate(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2 on those of the 192 coefficients that its gate lets pass."""
    dct_args = dict(dct_channels='192', dct_gate=True)
    return _gen_dct_mobilenetv2('dct_mobilenetv2_100_192_gate', pretrained, dct_args, **kwargs)
