"""A model name that builds any timm model with a filter of spatial frequencies before it.

Paper: Frequency and Scale Perspectives of Feature Extraction, https://arxiv.org/abs/2302.12477, whose Table 1 retrains
networks on filtered images.
"""

import re
from typing import Any, Dict, Optional, Set

import timm
import torch
import torch.nn as nn
from timm.models import register_model

from .._timm import config_of
from ..data.filters import FrequencyFilter

__all__ = ['FilteredNetwork', 'mlfm_filtered']


class FilteredNetwork(nn.Module):
    """A network that sees filtered images.

    State dicts have the network's own names, without a prefix. Other attributes are the network's too, such as
    `reset_classifier` or `layer4`.

    Args:
        frequency_filter: The filter.
        network: The network, or timm's feature extractor around one.
    """

    def __init__(self, frequency_filter: FrequencyFilter, network: Any):
        super().__init__()
        self.frequency_filter = frequency_filter
        self.network = network
        self.pretrained_cfg = dict(config_of(network), architecture='mlfm_filtered')
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, x: torch.Tensor) -> Any:
        """Answer images x (N, C, H, W) as the network does."""
        return self.network(self.frequency_filter(x))

    def forward_features(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the features of images x (N, C, H, W) as the network does."""
        return self.network.forward_features(self.frequency_filter(x), *args, **kwargs)

    def forward_intermediates(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute intermediate features of images x (N, C, H, W) as the network does."""
        return self.network.forward_intermediates(self.frequency_filter(x), *args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:  # type: ignore[override]
        """Return the network's state dict; the filter has no values."""
        return self.network.state_dict(*args, **kwargs)

    def no_weight_decay(self) -> Set[str]:
        """Return the names of the network's parameters without weight decay, as parameters of this module."""
        names = self.network.no_weight_decay() if hasattr(self.network, 'no_weight_decay') else ()
        return {f'network.{name}' for name in names}

    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Return the network's groups of parameters, see timm, as those of this module."""
        return _behind_prefix(self.network.group_matcher(coarse=coarse))

    def fuse(self, *args: Any, **kwargs: Any) -> 'FilteredNetwork':
        """Fuse the network, see `MemoryNetwork.fuse`."""
        return FilteredNetwork(self.frequency_filter, self.network.fuse(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('network'), name)


def _add_prefix(model: nn.Module, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
    """Put the names of a state dict where torch looks for them."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[f'{prefix}network.{name[len(prefix):]}'] = state_dict.pop(name)


def _behind_prefix(pattern: Any) -> Any:
    """Change regular expressions for names of parameters to those of a child named `network`."""
    if isinstance(pattern, dict):
        return {name: _behind_prefix(inner) for name, inner in pattern.items()}
    if isinstance(pattern, (list, tuple)):
        return type(pattern)(map(_behind_prefix, pattern))
    if isinstance(pattern, str):  # without its anchors, as several alternatives may have one
        return r'network\.(?:' + re.sub(r'(?<!\[)\^', '', pattern) + ')'
    return pattern


@register_model
def mlfm_filtered(
        pretrained: bool = False,
        network: str = '',
        radius: Optional[Any] = None,
        kind: str = 'lowpass',
        form: str = 'ideal',
        **kwargs,
) -> FilteredNetwork:
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
        The network behind the filter. It saves and loads as other timm models do.

    Raises:
        ValueError: No network or no radius is given, or the filter's arguments are out of range.

    Example:
        >>> model = timm.create_model('mlfm_filtered', network='resnet18', radius=65)
    """
    if not network or radius is None or network == 'mlfm_filtered':
        raise ValueError(
            'mlfm_filtered needs the name of a network to filter the images of, and a radius in cycles per image, such '
            'as network=resnet50 radius=65.')
    frequency_filter = FrequencyFilter(kind, radius, form)
    for name in ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'):  # None overrides what the network has
        if kwargs.get(name, '') is None:
            del kwargs[name]
    return FilteredNetwork(frequency_filter, timm.create_model(network, pretrained=pretrained, **kwargs))
