"""FCN on any timm backbone, with score layers, skips and learned upsampling.

Paper: Fully Convolutional Networks for Semantic Segmentation (Long et al., CVPR 2015),
https://arxiv.org/abs/1411.4038. The paper builds on VGG16 and pads its input by 100 pixels; here images are padded to a
multiple of the stride, and the 7x7 convolution of the head 'fc' keeps the size of its map.

The authors of the low-frequency memory report that it carries over to FCN, but released no code for it. Here the
backbone has a memory, and the decoder has none.
"""

from typing import Any, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.models.segmentation.fcn import FCNHead

from .._timm import config_of
from ..memory.options import check_option
from .network import SegmentationNetwork, create_encoder

__all__ = ['FCN', 'LearntUpsample']

NUM_SCORES = {32: 1, 16: 2, 8: 3}  # of the paper's three networks, by their stride


class LearntUpsample(nn.Module):
    """Transposed convolution that starts as bilinear interpolation.

    The map is padded by repeating its edge, so that the output equals `F.interpolate` without aligned corners up to the
    border.

    Args:
        num_chs: Channels.
        factor: Factor by which the map is enlarged, even.
        depthwise: Whether each channel is enlarged separately; if not, each output reads all channels, as in the paper.

    Raises:
        ValueError: The factor is odd.

    Examples:
        >>> LearntUpsample(num_chs=3, factor=2)(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, num_chs: int, factor: int, depthwise: bool = False):
        super().__init__()
        if factor % 2:
            raise ValueError(f"The factor is {factor}, expected an even one: give upsample='bilinear'.")
        self.conv = nn.ConvTranspose2d(
            num_chs, num_chs, 2 * factor, stride=factor, padding=3 * factor // 2, bias=False,
            groups=num_chs if depthwise else 1)
        ramp = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
        with torch.no_grad():
            pairs = torch.ones(num_chs, 1) if depthwise else torch.eye(num_chs)
            self.conv.weight.copy_(pairs[:, :, None, None] * (ramp[:, None] * ramp))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1), mode='replicate'))


class FCN(SegmentationNetwork):
    """FCN-32s, FCN-16s and FCN-8s.

    Score layers read the backbone's last feature and, for strides 16 and 8, the one or two before it. Each score is
    enlarged to the size of the next finer one and added to it, and the sum is enlarged to the image's size. The score
    layers of skips start at zero, as in the paper. Features of equal size, as in a dilated backbone, are added as they
    are.

    Args:
        encoder: Name of a timm backbone, see `create_encoder`.
        num_classes: Classes.
        in_chans: Channels of the image.
        pretrained: Whether the backbone starts from its pretrained weights.
        fcn_stride: Stride of the finest score: 32, 16 or 8.
        head: Head on the last feature. 'conv': a 1x1 convolution. 'torchvision': the head of torchvision's FCN. 'fc':
            the paper's classifier made convolutional, 7x7 and 1x1 convolutions of 4,096 channels before the score.
        upsample: How scores are enlarged: 'full' or 'depthwise' by `LearntUpsample`, or 'bilinear', fixed.
        aux: Whether training mode also returns the logits of an auxiliary head.
        **encoder_kwargs: Arguments of the backbone, such as `memory` and `output_stride`.

    Raises:
        ValueError: An option is out of range.

    Examples:
        >>> model = FCN('test_mlfm_resnet', num_classes=3, upsample='bilinear')
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
            self,
            encoder: str = 'mlfm_resnet34',
            num_classes: int = 21,
            in_chans: int = 3,
            pretrained: bool = False,
            fcn_stride: int = 8,
            head: str = 'conv',
            upsample: str = 'full',
            aux: bool = False,
            **encoder_kwargs: Any,
    ):
        check_option('fcn_stride', fcn_stride, tuple(NUM_SCORES))
        check_option('head', head, ('conv', 'torchvision', 'fc'))
        check_option('upsample', upsample, ('full', 'depthwise', 'bilinear'))
        num_scores = NUM_SCORES[fcn_stride]
        indices = tuple(range(-max(num_scores, 1 + aux), 0))
        backbone: Any = create_encoder(
            encoder, in_chans=in_chans, pretrained=pretrained, out_indices=indices, **encoder_kwargs)
        reductions, channels = backbone.feature_info.reduction(), backbone.feature_info.channels()
        super().__init__(
            num_classes, in_chans, max(reductions), channels[-2] if aux else None, config_of(backbone))
        self.encoder = backbone
        self.channels_last = str(getattr(backbone, 'output_fmt', 'NCHW')).endswith('NHWC')
        self.score = _head(head, channels[-1], num_classes)
        self.skips = nn.ModuleList(nn.Conv2d(n, num_classes, 1) for n in channels[-2:-num_scores - 1:-1])
        for parameter in self.skips.parameters():
            nn.init.zeros_(parameter)
        steps = [*reductions[:-num_scores - 1:-1], 1]  # from the deepest score to the image
        self.upsamples = nn.ModuleList(
            _upsample(upsample, num_classes, r // finer) for r, finer in zip(steps, steps[1:]))

    def forward_logits(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        features: List[torch.Tensor] = self.encoder(x)
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        x = self.upsamples[0](self.score(features[-1]))
        for i, (skip, upsample) in enumerate(zip(self.skips, self.upsamples[1:])):
            x = upsample(x + skip(features[-2 - i]))
        return x, features[-2 if len(features) > 1 else -1]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)


def _head(kind: str, in_chs: int, num_classes: int, hidden_chs: int = 4096) -> nn.Module:
    if kind == 'torchvision':
        return FCNHead(in_chs, num_classes)
    if kind == 'conv':
        return nn.Conv2d(in_chs, num_classes, 1)
    return nn.Sequential(
        nn.Conv2d(in_chs, hidden_chs, 7, padding=3), nn.ReLU(), nn.Dropout(),
        nn.Conv2d(hidden_chs, hidden_chs, 1), nn.ReLU(), nn.Dropout(),
        nn.Conv2d(hidden_chs, num_classes, 1))


def _upsample(kind: str, num_chs: int, factor: int) -> nn.Module:
    if factor == 1:
        return nn.Identity()
    if kind == 'bilinear':
        return nn.Upsample(scale_factor=factor, mode='bilinear')
    return LearntUpsample(num_chs, factor, kind == 'depthwise')
