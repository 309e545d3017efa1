"""The arguments of `forward_intermediates` that all families share."""

from typing import List, Optional, Tuple, Union

from .._timm import feature_take_indices

__all__ = ['take_features']


def take_features(
        num_features: int,
        indices: Optional[Union[int, List[int]]],
        output_fmt: str,
) -> Tuple[List[int], int]:
    """Resolve which features `forward_intermediates` returns.

    Args:
        num_features: Number of the network's features.
        indices: Features to return: a list, the number of last ones, or None for all.
        output_fmt: Layout of the features, 'NCHW'.

    Returns:
        Indices of the features, and the largest of them.

    Raises:
        ValueError: `output_fmt` is another layout.
    """
    if output_fmt != 'NCHW':
        raise ValueError(f"output_fmt is '{output_fmt}', expected 'NCHW', the only layout of these features.")
    return feature_take_indices(num_features, indices)
