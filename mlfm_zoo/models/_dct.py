"""Build the networks on DCT coefficients, and the input entries of their configs."""

from dataclasses import asdict
from typing import Any, Dict, Optional, Type, TypeVar

import timm
import torch
from timm.models import PretrainedCfg

from ..dct.channels import select_channels
from ..dct.network import coefficient_config, start_from_trunk
from ..hub.manifest import Checkpoint
from ._create import create_network
from ._weights import StateDict, refuse_other_weights

__all__ = ['create_dct_network']

NetworkT = TypeVar('NetworkT', bound=torch.nn.Module)

REMEDY = 'give weights of this network, made with the same dct_channels and dct_gate'


def create_dct_network(
        model_cls: Type[NetworkT], variant: str, pretrained: bool, model_args: Dict[str, Any], **kwargs: Any,
) -> NetworkT:
    """Build a network on DCT coefficients, as `create_network` does."""
    channels = kwargs.get('dct_channels', model_args.get('dct_channels'))
    overlay = dict(kwargs.get('pretrained_cfg_overlay') or {})
    config: Any = kwargs.get('pretrained_cfg')  # a folder's, or the caller's
    given = {**(asdict(config) if isinstance(config, PretrainedCfg) else config if isinstance(config, dict) else {}),
             **overlay}
    if kwargs.get('dct_input') == 'coefficients' and channels is not None:
        size = given.get('input_size') or timm.get_pretrained_cfg_value(variant, 'input_size') or (3, 448, 448)
        num_chs = len(select_channels(channels))
        if size[0] == num_chs:  # a folder's config gives the size in blocks already
            size = [8 * side for side in size]
        overlay.update(coefficient_config(num_chs, size[1:]))
        kwargs.pop('in_chans', None)
    else:
        for name in ('mean', 'std'):  # what images are normalized with, which the stem undoes
            if given.get(name):
                kwargs.setdefault(f'dct_{name}', tuple(given[name]))
    if pretrained:
        overlay['first_conv'] = None  # it reads coefficients, whose number does not depend on the image's channels
    if overlay:
        kwargs['pretrained_cfg_overlay'] = overlay
    return create_network(model_cls, variant, pretrained, _prepare_state_dict, model_args, **kwargs)


def _prepare_state_dict(state_dict: StateDict, model: torch.nn.Module, checkpoint: Optional[Checkpoint]) -> StateDict:
    """Turn trunk weights into an initialization; raise for weights that do not fit."""
    if checkpoint is not None and checkpoint.kind == 'initialisation':
        state_dict = start_from_trunk(state_dict, model)
    refuse_other_weights(model, state_dict, remedy=REMEDY)
    return state_dict
