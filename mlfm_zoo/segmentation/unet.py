"""The classic U-Net, with a low-frequency memory along its encoder.

Paper: U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., MICCAI 2015),
https://arxiv.org/abs/1505.04597. Unlike theirs, convolutions are padded and followed by batch norm.

The authors of the low-frequency memory report that it carries over to U-Net, but released no code for it. The places of
the units are this project's choice. As in the authors' networks, the memory starts where the encoder first halves the
image, with m = A_1(I). At full resolution the low band would be the image itself, which the first convolution reads
anyway. A unit follows the two convolutions of each level from 1 to 4, with the bands A_1 to A_4 for its supplement
gate. Its output goes to the pooling and to the skip connection.

With `memory_decoder`, each decoder level except the last, which has no memory of its size, ends in a unit without a
supplement gate. It reads the same memory as the encoder's unit of that level: y = BN(x + ReLU(BN(Conv1x1(m)))).
"""

from typing import Any, List, Optional, Tuple

import torch
import torch.nn as nn
from timm.models import checkpoint

from ..memory import LowFrequencyMemory, LowFrequencyMemoryUnit, MemoryOptions, MemorySite
from .network import SegmentationNetwork

__all__ = ['UNet']

NUM_LEVELS = 5


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
    """

    def __init__(self, in_chs: int, out_chs: int):
        layers: List[nn.Module] = []
        for chs in (in_chs, out_chs):
            conv = nn.Conv2d(chs, out_chs, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity='relu')  # the paper's, sqrt(2 / values read)
            layers += [conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(SegmentationNetwork):
    """U-Net: five levels of double 3x3 convolutions down, and four up with skips.

    Args:
        num_classes: Classes.
        in_chans: Channels of the image.
        base_width: Channels of the first level, doubled at each further one.
        memory: Whether the encoder has a memory.
        memory_decoder: Whether the decoder reads the memory of its level too.
        drop_rate: Dropout at the end of the encoder.
        aux: Whether training mode also returns the logits of an auxiliary head.
        **memory_options: Options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: An option is out of range, or `memory_decoder` is set without `memory`.
        TypeError: An option is unknown.

    Examples:
        >>> model = UNet(num_classes=3, base_width=8, memory_decoder=True)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
            self,
            num_classes: int = 21,
            in_chans: int = 3,
            base_width: int = 64,
            memory: bool = True,
            memory_decoder: bool = False,
            drop_rate: float = 0.,
            aux: bool = False,
            **memory_options: Any,
    ):
        options = MemoryOptions(**memory_options)
        if memory_decoder and not memory:
            raise ValueError('memory_decoder is True without memory, expected both: leave it out, or set memory=True.')
        widths = [base_width << level for level in range(NUM_LEVELS)]
        super().__init__(num_classes, in_chans, 2 ** (NUM_LEVELS - 1), widths[-2] if aux else None)
        self.memory = _memory(widths, in_chans, options, memory_decoder) if memory else None
        self.encoder = nn.ModuleList(DoubleConv(n, m) for n, m in zip([in_chans, *widths], widths))
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(drop_rate)
        self.upsamples = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in widths[-2::-1])
        self.decoder = nn.ModuleList(DoubleConv(2 * n, n) for n in widths[-2::-1])
        self.head = nn.Conv2d(base_width, num_classes, 1)
        self.grad_checkpointing = False

    def forward_logits(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        bands: List[torch.Tensor] = [] if self.memory is None else self.memory.image_bands(x)
        m: Optional[torch.Tensor] = None if self.memory is None else bands[1]
        features, memories = [], []
        for level, block in enumerate(self.encoder):
            x = self._run(block, x if level == 0 else self.pool(x))
            memories.append(m)
            if self.memory is not None and level > 0:
                x, m = self.memory.encoder[level](x, m, bands)
            features.append(x)
        aux_feature = features[-2]
        x = self.drop(features.pop())
        for i, (upsample, block) in enumerate(zip(self.upsamples, self.decoder)):
            x = self._run(block, torch.cat([features.pop(), upsample(x)], dim=1))
            if self.memory is not None and i < len(self.memory.decoder):
                x, _ = self.memory.decoder[i](x, memories[-2 - i], bands)
        return self.head(x), aux_feature

    def _run(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x) if self.grad_checkpointing and self.training else block(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable
        if self.memory is not None:
            self.memory.set_grad_checkpointing(enable)


def _memory(widths: List[int], in_chans: int, options: MemoryOptions, decoder: bool) -> LowFrequencyMemory:
    sites = [MemorySite(f'encoder.{level}', widths[level], 1 << level) for level in range(1, len(widths))]
    memory = LowFrequencyMemory(sites, {'encoder': len(widths)}, in_chans, options)
    readers = []
    for level in range(len(widths) - 2, 0, -1) if decoder else ():
        memory_chs = memory.encoder[level].input_gate.conv.in_channels
        readers.append(
            LowFrequencyMemoryUnit(widths[level], memory_chs, level=level, supplement=False, forget=0, last=True))
    memory.add_module('decoder', nn.ModuleList(readers))
    return memory
