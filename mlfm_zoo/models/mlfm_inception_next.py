"""InceptionNeXt with low-frequency memory.

Paper: Multiscale Low-Frequency Memory Network for Improved Feature Extraction in Convolutional Neural Networks
(AAAI 2024), https://arxiv.org/abs/2403.08157. The authors' InceptionNeXt with memory is not released. The sites are
this project's choice: after the stem and after every stage. The trunk is timm's.
"""

from timm.models import MetaNeXt, register_model

from ..hub.configs import default_cfgs_from_manifest
from ..memory import memory_family
from ._create import base_cfg, create_mlfm_model
from .mlfm_convnext import ConvNeXtMemory

__all__ = ['MLFMMetaNeXt']


@memory_family(MetaNeXt)
class MLFMMetaNeXt(ConvNeXtMemory, MetaNeXt):
    """InceptionNeXt's MetaNeXt with a memory unit after the stem and every stage.

    Args:
        *args: As `timm.models.MetaNeXt`.
        **kwargs: As `timm.models.MetaNeXt`, and the options of the memory, see `MemoryOptions`.

    Raises:
        ValueError: A memory option is out of range.

    Examples:
        >>> model = MLFMMetaNeXt(depths=(1, 1, 1, 1), dims=(16, 24, 32, 40), num_classes=10)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """


default_cfgs = default_cfgs_from_manifest({
    'mlfm_inception_next_tiny': base_cfg(first_conv='stem.0', classifier='head.fc2'),
})


@register_model
def mlfm_inception_next_tiny(pretrained: bool = False, **kwargs) -> MetaNeXt:
    """InceptionNeXt-T with memory."""
    model_args = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return create_mlfm_model(
        MLFMMetaNeXt, MetaNeXt, 'mlfm_inception_next_tiny', pretrained, model_args, feature_cfg=feature_cfg, **kwargs)
