"""segmentation_models.pytorch's networks on timm backbones, for any image size."""

import inspect
from typing import Any, List, Tuple

import torch

from .._extras import require_extra
from .._timm import config_of
from ..memory.options import check_option
from .network import SegmentationNetwork, create_encoder

__all__ = ['DECODERS', 'SMP']

# The library's networks that consist of an encoder, a decoder of its features and a head.
DECODERS = (
    'unet', 'unetplusplus', 'manet', 'linknet', 'fpn', 'pspnet', 'pan', 'deeplabv3', 'deeplabv3plus', 'upernet',
    'segformer')


class SMP(SegmentationNetwork):
    """A network of segmentation_models.pytorch.

    Args:
        decoder: Name of the network, one of `DECODERS`.
        encoder: Name of a timm backbone, which the library calls 'tu-NAME'.
        num_classes: Classes.
        in_chans: Channels of the image.
        pretrained: Whether the backbone starts from its pretrained weights.
        aux: Whether training mode also returns the logits of an auxiliary head.
        **kwargs: Arguments of the library's network, such as `encoder_depth`, and of the backbone, such as `memory`.

    Raises:
        ValueError: An option is out of range.
        RuntimeError: The library is not installed.

    Examples:
        >>> model = SMP('fpn', 'test_mlfm_resnet', num_classes=3)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
            self,
            decoder: str = 'unet',
            encoder: str = 'mlfm_resnet34',
            num_classes: int = 21,
            in_chans: int = 3,
            pretrained: bool = False,
            aux: bool = False,
            **kwargs: Any,
    ):
        check_option('decoder', decoder, DECODERS)
        library = require_extra('segmentation_models_pytorch', 'segmentation', f'The decoder {decoder}')
        attached = 'mlfm_' not in encoder and kwargs.pop('memory', False)
        options = {k: kwargs.pop(k) for k in list(kwargs) if k.startswith('memory_')} if attached else {}
        network = library.create_model(
            decoder, f'tu-{encoder}', True if pretrained else None, in_chans, num_classes, **kwargs)
        stride = network.encoder.output_stride * (8 if decoder == 'pan' else 1)  # PAN halves its map three times more
        super().__init__(
            num_classes, in_chans, stride, network.encoder.out_channels[-2] if aux else None,
            config_of(network.encoder.model))
        if attached:
            # the library's feature extractor would bypass a memory, so it is replaced by a backbone with memory
            known = inspect.signature(type(network).__init__).parameters
            trunk_kwargs = {k: v for k, v in kwargs.items() if k not in known}
            if max(network.encoder.model.feature_info.reduction()) < 2 ** kwargs.get('encoder_depth', 5):
                trunk_kwargs['output_stride'] = network.encoder.output_stride
            network.encoder.model = create_encoder(
                encoder, memory=True, in_chans=in_chans, pretrained=pretrained,
                out_indices=network.encoder.model.feature_info.out_indices, **trunk_kwargs, **options)
        self.network = network

    def forward_logits(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        features: List[torch.Tensor] = self.network.encoder(x)
        return self.network.segmentation_head(self.network.decoder(features)), features[-2]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.network.encoder.model.set_grad_checkpointing(enable)
