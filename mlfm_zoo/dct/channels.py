"""Subsets of the 192 coefficients of an 8 x 8 block of Y, Cb and Cr.

Channel 64 p + 8 u + v is coefficient (u, v), u vertical, of plane p: Y, Cb, Cr. Squares and the learned subset are
those of the paper's released code. Triangles were not released; here they hold as many coefficients per plane as the
square of the same count, along anti-diagonals. The paper has the square of 12 without listing it; 8 + 2 + 2 is this
project's reading.
"""

import re
from typing import Sequence, Tuple, Union

__all__ = ['NUM_CHANNELS', 'PLANE', 'SUBSETS', 'select_channels']

NUM_CHANNELS = 192
PLANE = 64

# Coefficients of a plane in the order in which squares and triangles grow.
ORDERS = {
    's': sorted(range(PLANE), key=lambda i: (max(divmod(i, 8)), sum(divmod(i, 8)), i)),
    't': sorted(range(PLANE), key=lambda i: (sum(divmod(i, 8)), i)),
}


def _planes(luma: Sequence[int], chroma: Sequence[int]) -> Tuple[int, ...]:
    return (*luma, *(PLANE + i for i in chroma), *(2 * PLANE + i for i in chroma))


def _rows(*widths: int) -> Sequence[int]:
    """Coefficients of rows, each from its first column on."""
    return [8 * row + column for row, width in enumerate(widths) for column in range(width)]


def _lowest(count: int, pattern: str) -> Tuple[int, ...]:
    """The first coefficients of each plane in an order, about two thirds of them of Y."""
    num_chroma = max(1, count // 6, -(-(count - PLANE) // 2))
    return _planes(sorted(ORDERS[pattern][:count - 2 * num_chroma]), sorted(ORDERS[pattern][:num_chroma]))


# By name: the count, and s for a square, t for a triangle, d for the learned subset.
SUBSETS = {
    **{f'{count}s': _lowest(count, 's') for count in (6, 12, 24, 32)},
    '48s': _planes(_rows(6, 6, 6, 6, 4, 4), _rows(3, 3, 2)),
    '64s': _planes(_rows(7, 7, 6, 6, 6, 6, 6), _rows(3, 3, 2, 2)),
    **{f'{count}t': _lowest(count, 't') for count in (6, 12, 24, 32, 48, 64)},
    '24d': _planes([0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 24, 32], [0, 1, 3, 8, 24]),
    '192': tuple(range(NUM_CHANNELS)),
}


def select_channels(channels: Union[str, int, Sequence[int]]) -> Tuple[int, ...]:
    """List the coefficients of a subset.

    Args:
        channels: A name of `SUBSETS`; a count and a pattern, such as '40s' or '40t', with two thirds of them from Y; a
            count alone, for a square; or the channels themselves, each from 0 to 191.

    Returns:
        The channels in the order in which a network reads them.

    Raises:
        ValueError: There is no such subset.

    Examples:
        >>> select_channels('6s')
        (0, 1, 8, 9, 64, 128)
    """
    if isinstance(channels, int):
        channels = '192' if channels == NUM_CHANNELS else f'{channels}s'
    if not isinstance(channels, str):
        chosen = tuple(channels)
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(NUM_CHANNELS)):
            raise ValueError(f'The channels are {chosen}, expected different whole numbers from 0 to 191.')
        return chosen
    if channels in SUBSETS:
        return SUBSETS[channels]
    match = re.fullmatch(r'(\d{1,3})([st])', channels)
    if match is None or not 3 <= int(match[1]) <= NUM_CHANNELS:
        raise ValueError(
            f'{channels!r} is not a subset of the 192 coefficients: give one of {", ".join(SUBSETS)}, a count from 3 '
            'to 192 with s or t, such as 40t, or a list of channels.')
    return _lowest(int(match[1]), match[2])
