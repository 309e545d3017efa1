"""Workarounds for timm: the private names imported here and a save fix."""

import json
from pathlib import Path
from typing import Any, Dict

import torch.nn as nn
from timm.models import save_for_hf

# The notation of the EfficientNet family ('ir_r2_k3_s2_e6_c24') and the rounding of its widths. A trunk of this family
# cannot be described without them, and timm keeps them private.
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, resolve_bn_args, round_channels

# `feature_take_indices` resolves the `indices` of `forward_intermediates` as every timm model does.
# `FeatureGetterNet` is the extractor of `features_only=True`, which timm exports only by the name 'getter', so that it
# cannot be subclassed.
from timm.models._features import FeatureGetterNet, feature_take_indices

# Records an argument that changed after a network was built, so that a saved folder builds the network as it is. timm
# exports only its counterpart for image sizes.
from timm.models._input import update_model_args

# A stem of several layers with a memory unit between them.
from timm.models.byobnet import Stem as ByobStem

# A block that enlarges maps of odd sides, which a memory cannot follow.
from timm.models.mobilevit import MobileVitV2Block

__all__ = [
    'ByobStem', 'FeatureGetterNet', 'MobileVitV2Block', 'config_of', 'decode_arch_def', 'feature_take_indices',
    'model_name', 'resolve_act_layer', 'resolve_bn_args', 'round_channels', 'save_model', 'update_model_args',
]


def config_of(model: nn.Module) -> Dict[str, Any]:
    """The pretrained config of a model itself, typed as a dict; an empty one if timm did not make the model."""
    return getattr(model, 'pretrained_cfg', {})


def model_name(model: nn.Module) -> str:
    """Return the name under which timm built a model, or else its class's name."""
    return config_of(model).get('architecture') or type(model).__name__


def save_model(model: nn.Module, folder: Path, model_config: Any = None, model_args: Any = None) -> None:
    """Save a model as `timm.models.save_for_hf` does, readable by every user and by transformers.

    timm writes the number of classes at the top of config.json and among `model_args`. transformers 5 passes both on
    and fails, so it stays at the top only, where timm reads it as well.
    """
    save_for_hf(model, str(folder), model_config=model_config, model_args=model_args, safe_serialization=True)
    file = folder / 'config.json'
    config = json.loads(file.read_text(encoding='utf-8'))
    config.get('model_args', {}).pop('num_classes', None)
    file.write_text(json.dumps(config, indent=2), encoding='utf-8')
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its files private
