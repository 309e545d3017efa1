"""Build a segmentation network from a name and arguments."""

from typing import Any, Optional

from .fcn import FCN
from .network import SegmentationNetwork
from .smp import DECODERS, SMP
from .unet import UNet

__all__ = ['NAMES', 'create_model']

FCN_STRIDES = {'fcn32s': 32, 'fcn16s': 16, 'fcn8s': 8}
NAMES = (*FCN_STRIDES, *DECODERS)


def create_model(
        name: str,
        encoder: Optional[str] = 'mlfm_resnet34',
        num_classes: int = 21,
        in_chans: int = 3,
        pretrained: bool = False,
        **kwargs: Any,
) -> SegmentationNetwork:
    """Build a segmentation network.

    Args:
        name: 'fcn32s', 'fcn16s' or 'fcn8s'; 'unet', the classic one with `encoder=None`; or another decoder of
            segmentation_models.pytorch, see `NAMES`.
        encoder: Name of a timm backbone, with a tag if need be, or None for the classic U-Net.
        num_classes: Classes.
        in_chans: Channels of the image.
        pretrained: Whether the backbone starts from its pretrained weights; the decoder has none.
        **kwargs: Arguments of `FCN`, `UNet` or `SMP`, and of the backbone: `memory=False` for the baseline,
            `memory=True` to attach a memory at identity to a backbone of timm's own.

    Returns:
        The network.

    Raises:
        ValueError: The name or an option is out of range.

    Examples:
        >>> model = create_model('fcn8s', 'test_mlfm_resnet', num_classes=3).eval()
        >>> model(torch.randn(1, 3, 100, 70)).shape
        torch.Size([1, 3, 100, 70])
    """
    if name not in NAMES:
        raise ValueError(f'name is {name!r}, expected one of {", ".join(NAMES)}.')
    if encoder is None:
        if name != 'unet':
            raise ValueError(f"encoder is None, expected a timm backbone for {name}: only 'unet' has one of its own.")
        if pretrained:
            raise ValueError('The classic U-Net has no pretrained weights: leave pretrained out, or name an encoder.')
        return UNet(num_classes=num_classes, in_chans=in_chans, **kwargs)
    kwargs.update(encoder=encoder, num_classes=num_classes, in_chans=in_chans, pretrained=pretrained)
    if name in FCN_STRIDES:
        return FCN(fcn_stride=FCN_STRIDES[name], **kwargs)
    return SMP(decoder=name, **kwargs)
