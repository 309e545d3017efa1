"""Models that see filtered images only, by a name that timm's scripts take: for training on filtered images."""

from typing import Any, Optional

import timm
import torch.nn as nn
from timm.models import register_model

from .filters import FrequencyFilter

__all__ = ['filtered']


class FilterInput:
    """What a model does first: its normalised images are filtered.

    Args:
        frequency_filter: The filter.
    """

    def __init__(self, frequency_filter: FrequencyFilter):
        self.filter = frequency_filter

    def __call__(self, model: nn.Module, args: Any) -> Any:
        return (self.filter(args[0]), *args[1:])


@register_model
def filtered(
        pretrained: bool = False,
        network: str = '',
        radius: Optional[Any] = None,
        kind: str = 'lowpass',
        form: str = 'ideal',
        **kwargs,
) -> nn.Module:
    """Build any timm model, before whose forward pass images are filtered.

    It is for retraining on filtered images (the paper's Table 1): training and validation see the same filter, after
    normalisation and all augmentation. Its weights are the network's own, under the same names.

    Args:
        pretrained: Whether to load weights, as for the network itself.
        network: Name that `timm.create_model` takes.
        radius: Radius of the filter in cycles per image; for the bands a pair.
        kind: 'lowpass', 'highpass', 'bandpass' or 'bandstop'.
        form: 'ideal' or 'gaussian'.
        **kwargs: Arguments of the network.

    Returns:
        The network, with the filter as a hook before its forward pass. `forward_features` called alone goes past it.

    Raises:
        ValueError: No network or no radius is given, or the filter's arguments are out of range.
    """
    if not network or network == 'filtered':
        raise ValueError('There is no network to filter the images of: give its name, as network=resnet50.')
    if radius is None:
        raise ValueError('There is no radius to filter images with: give one in cycles per image, as radius=65.')
    hook = FilterInput(FrequencyFilter(kind, radius, form))
    for name in ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'):
        if kwargs.get(name, '') is None:
            del kwargs[name]
    model = timm.create_model(network, pretrained=pretrained, **kwargs)
    model.register_forward_pre_hook(hook)
    return model
