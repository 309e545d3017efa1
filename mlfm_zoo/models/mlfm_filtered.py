"""A model name that builds any timm model with a filter of spatial frequencies before it.

Paper: Frequency and Scale Perspectives of Feature Extraction, https://arxiv.org/abs/2302.12477, whose Table 1 retrains
networks on filtered images.
"""

from functools import partial
from typing import Any, Optional

import timm
import torch.nn as nn
from timm.models import register_model

from ..data.filters import FrequencyFilter

__all__ = ['mlfm_filtered']


@register_model
def mlfm_filtered(
        pretrained: bool = False,
        network: str = '',
        radius: Optional[Any] = None,
        kind: str = 'lowpass',
        form: str = 'ideal',
        **kwargs,
) -> nn.Module:
    """Build any timm model, with its images filtered before the forward pass.

    Training and validation see the same filter, after normalization and all augmentation. The weights are the network's
    own, under the same names.

    Args:
        pretrained: Whether to load weights, as for the network itself.
        network: Name that `timm.create_model` takes.
        radius: Radius of the filter in cycles per image; for the bands a pair.
        kind: 'lowpass', 'highpass', 'bandpass' or 'bandstop'.
        form: 'ideal' or 'gaussian'.
        **kwargs: Arguments of the network.

    Returns:
        The network, with the filter as a hook before its forward pass. Calling `forward_features` alone bypasses it.

    Raises:
        ValueError: No network or no radius is given, or the filter's arguments are out of range.

    Example:
        >>> model = timm.create_model('mlfm_filtered', network='resnet18', radius=65)
    """
    if not network or radius is None or network == 'mlfm_filtered':
        raise ValueError(
            'mlfm_filtered needs the name of a network to filter the images of, and a radius in cycles per image, such '
            'as network=resnet50 radius=65.')
    hook = partial(_filter_input, FrequencyFilter(kind, radius, form))
    for name in ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'):  # None overrides what the network has
        if kwargs.get(name, '') is None:
            del kwargs[name]
    model = timm.create_model(network, pretrained=pretrained, **kwargs)
    model.register_forward_pre_hook(hook)
    return model


def _filter_input(frequency_filter: FrequencyFilter, model: nn.Module, args: Any) -> Any:
    """The hook: the first argument of the forward pass is filtered."""
    return (frequency_filter(args[0]), *args[1:])
