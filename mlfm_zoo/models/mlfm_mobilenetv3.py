"""MobileNetV3 and related networks with low-frequency memory, for `attach_memory`.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. It has no network of this class, so none is registered. The sites are
this project's choice, modeled on those of the authors' MobileNetV2.

timm's class covers MobileNetV3 (https://arxiv.org/abs/1905.02244), MobileNetV4, FBNetV3, LCNet and HardCoRe-NAS.
"""

from typing import Dict, List, Optional, Tuple

from timm.models import MobileNetV3

from ..memory import MemoryOptions, MemorySite, memory_family
from ._network import rounds_up
from .mlfm_efficientnet import EfficientNetMemory, stage_site

__all__ = ['MLFMMobileNetV3']


@memory_family(MobileNetV3)
class MLFMMobileNetV3(EfficientNetMemory, MobileNetV3):
    """MobileNetV3 with a memory unit after the stem and after every stage except two.

    There is none after a first stage at the stem's resolution, and none after a last stage at the resolution of the one
    before, which belongs to the head. MobileNetV2 has no units after its stages of 16 and 320 channels either.

    Args:
        *args: As `timm.models.MobileNetV3`.
        **kwargs: As `timm.models.MobileNetV3`, and the options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: A memory option is out of range, or a layer of the trunk does not halve its map.

    Examples:
        >>> model = mlfm_zoo.attach_memory(timm.create_model('mobilenetv3_small_050', num_classes=10))
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def memory_sites(self, options: MemoryOptions) -> Tuple[List[MemorySite], Dict[str, Optional[int]]]:
        sites = [MemorySite('stem', self.conv_stem.out_channels, 2, rounds_up(self.conv_stem))]
        for i in range(len(self.blocks)):
            site = stage_site(self, i)
            if i not in (0, self.feature_info[-1]['stage'] - 1) or site.reduction > sites[-1].reduction:
                sites.append(site)
        return sites, {'stem': None, 'blocks': len(self.blocks)}
