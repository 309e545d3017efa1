"""The names that this project takes from timm's private modules, each with the reason."""

# Resolves `indices` of `forward_intermediates` as every timm model does. timm does not export it.
from timm.models._features import feature_take_indices

# What `features_only=True` makes of a model that has `forward_intermediates`. timm takes a class for `feature_cls`, but
# exports this one by the name 'getter' only, which leaves nothing to subclass.
from timm.models._features import FeatureGetterNet

# timm keeps the notation of the EfficientNet family ('ir_r2_k3_s2_e6_c24') and the rounding of its widths private, and
# a trunk of this family cannot be described without them.
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, resolve_bn_args, round_channels

__all__ = [
    'FeatureGetterNet', 'decode_arch_def', 'feature_take_indices', 'resolve_act_layer', 'resolve_bn_args',
    'round_channels',
]
