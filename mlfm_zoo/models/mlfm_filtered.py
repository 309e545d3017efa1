"""`mlfm_filtered`: any timm model, behind a filter of spatial frequencies.

Paper: Frequency and Scale Perspectives of Feature Extraction, https://arxiv.org/abs/2302.12477, whose Table 1 retrains
networks on filtered images.
"""

import copy
from functools import lru_cache
from typing import Any, Optional, Tuple, Type

import timm
import torch
import torch.nn as nn
from timm.models import register_model

from .._timm import FeatureGetterNet, config_of
from ..data.filters import FrequencyFilter
from ._create import without_saved

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

    The filter applies in training and validation, after normalization and augmentation. Weights keep the network's
    names, and a saved folder builds the network with its filter.

    Args:
        pretrained: Whether to load weights, as for the network itself.
        network: Name that `timm.create_model` takes.
        radius: Radius of the filter in cycles per image; a pair for 'bandpass' and 'bandstop'.
        kind: 'lowpass', 'highpass', 'bandpass' or 'bandstop'.
        form: 'ideal' or 'gaussian'.
        **kwargs: Arguments of the network.

    Returns:
        The network, of a subclass of its class with one more module, `filter`. `forward_features`,
        `forward_intermediates` and `features_only=True` apply it.

    Raises:
        ValueError: No network or no radius is given, or the filter's arguments are out of range.

    Examples:
        >>> model = timm.create_model('mlfm_filtered', network='resnet18', radius=65)
    """
    if not network or radius is None or network == 'mlfm_filtered':
        raise ValueError(
            'mlfm_filtered needs the name of a network to filter the images of, and a radius in cycles per image, such '
            'as network=resnet50 radius=65.')
    frequency_filter = FrequencyFilter(kind, radius, form)
    kwargs = without_saved(kwargs)
    for name in ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'):  # None overrides what the network has
        if kwargs.get(name, '') is None:
            del kwargs[name]
    model = timm.create_model(network, pretrained=pretrained, **kwargs)
    _put_before(frequency_filter, model)
    config_of(model)['architecture'] = 'mlfm_filtered'  # by which a saved folder is built
    return model


def _put_before(frequency_filter: FrequencyFilter, model: Any) -> None:
    """Make a timm model filter its images, in place."""
    if hasattr(model, 'forward_features'):
        model.__class__ = _filtered_class(model.__class__)
        model._modules = {'filter': frequency_filter, **model._modules}
    elif isinstance(model, FeatureGetterNet):
        _put_before(frequency_filter, model.model)
    elif isinstance(model, nn.ModuleDict):  # an extractor that calls its modules one after the other
        model._modules = {'filter': frequency_filter, **model._modules}
    else:  # timm's extractor by torch.fx
        model.graph_module = nn.Sequential(frequency_filter, model.graph_module)


class _Filtered(nn.Module):
    """The methods that a filtered network adds to its class."""

    filter: FrequencyFilter

    def forward_features(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the features of the filtered images, see the network's class."""
        return super().forward_features(self.filter(x), *args, **kwargs)  # type: ignore[misc]

    def forward_intermediates(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute intermediate features of the filtered images, see the network's class."""
        return super().forward_intermediates(self.filter(x), *args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Tuple[Any, ...]:
        """Copy and pickle as the network's class: this subclass is local to the process."""
        return (_make_empty, (_network_class(self),), *super().__reduce_ex__(2)[2:])

    def __prepare_scriptable__(self) -> nn.Module:
        """Give TorchScript, which has no `super`, the filter and network in a sequence."""
        network: Any = copy.copy(self)
        network.__class__ = _network_class(self)
        network._modules = {name: module for name, module in self._modules.items() if name != 'filter'}
        return nn.Sequential(self.filter, network)


@lru_cache(maxsize=None)
def _filtered_class(network_cls: Any) -> Type[nn.Module]:
    return type(f'Filtered{network_cls.__name__}', (_Filtered, network_cls), {})


def _network_class(model: _Filtered) -> Type[nn.Module]:
    """The class that `_filtered_class` was made of."""
    return type(model).__mro__[2]


def _make_empty(network_cls: Any) -> nn.Module:
    filtered_cls = _filtered_class(network_cls)
    return filtered_cls.__new__(filtered_cls)
