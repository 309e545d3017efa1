"""Subsets of the 192 coefficients of an 8 x 8 block of Y, Cb and Cr.

Channel 64 p + 8 u + v is coefficient (u, v), u vertical, of plane p: Y, Cb, Cr. Squares and the learned subset are
those of the paper's released code. Triangles were not released: they hold as many coefficients of each plane as the
square of that count, along anti-diagonals. The square of 12 is in the paper without its list: 8 + 2 + 2 is this
project's reading.
"""

import re
from typing import Dict, List, Sequence, Tuple, Union

__all__ = ['NUM_CHANNELS', 'SUBSETS', 'select_channels']

NUM_CHANNELS = 192
PLANE = 64


def _squares() -> Dict[int, Tuple[List[int], List[int]]]:
    """Coefficients of Y, and of Cb and of Cr, by count; rows from a first column on, by (row, columns)."""
    def rows(*widths: int) -> List[int]:
        return [8 * row + column for row, width in enumerate(widths) for column in range(width)]
    return {
        6: (rows(2, 2), rows(1)),
        12: (rows(3, 3, 2), rows(2)),
        24: (rows(4, 4, 4, 4), rows(2, 2)),
        32: (rows(5, 5, 5, 4, 3), rows(3, 2)),
        48: (rows(6, 6, 6, 6, 4, 4), rows(3, 3, 2)),
        64: (rows(7, 7, 6, 6, 6, 6, 6), rows(3, 3, 2, 2)),
    }


def _triangle(count: int) -> List[int]:
    """The first coefficients along anti-diagonals, each from its upper right to its lower left."""
    order = sorted(range(PLANE), key=lambda i: (i // 8 + i % 8, i // 8))
    return sorted(order[:count])


def _subsets() -> Dict[str, Tuple[int, ...]]:
    subsets = {}
    for count, (luma, chroma) in _squares().items():
        for suffix, y, c in (('s', luma, chroma), ('t', _triangle(len(luma)), _triangle(len(chroma)))):
            subsets[f'{count}{suffix}'] = _planes(y, c)
    subsets['24d'] = _planes([0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 24, 32], [0, 1, 3, 8, 24])
    subsets['192'] = tuple(range(NUM_CHANNELS))
    return subsets


def _planes(luma: Sequence[int], chroma: Sequence[int]) -> Tuple[int, ...]:
    return (*luma, *(PLANE + i for i in chroma), *(2 * PLANE + i for i in chroma))


# By name: the count, and s for a square, t for a triangle, d for the learned subset.
SUBSETS = _subsets()


def select_channels(channels: Union[str, int, Sequence[int]]) -> Tuple[int, ...]:
    """Say which coefficients a subset holds.

    Args:
        channels: A name of `SUBSETS`; a count and a pattern, such as '40s' or '40t', of which two thirds are of Y; a
            count alone, of the square; or the channels themselves, each from 0 to 191.

    Returns:
        The channels in the order in which a network reads them.

    Raises:
        ValueError: There is no such subset.
    """
    if isinstance(channels, int):
        channels = '192' if channels == NUM_CHANNELS else f'{channels}s'
    if isinstance(channels, str):
        if channels in SUBSETS:
            return SUBSETS[channels]
        match = re.fullmatch(r'(\d{1,3})([st])', channels)
        if match is None or not 3 <= int(match[1]) <= NUM_CHANNELS:
            raise ValueError(
                f'{channels!r} is no subset of the 192 coefficients: give one of {", ".join(SUBSETS)}, a count from 3 '
                'to 192 with s or t, such as 40t, or a list of channels.')
        count = int(match[1])
        chroma = max(1, count // 6, -(-(count - PLANE) // 2))
        luma = count - 2 * chroma
        if match[2] == 't':
            return _planes(_triangle(luma), _triangle(chroma))
        return _planes(_square(luma), _square(chroma))
    chosen = tuple(channels)
    if not chosen or len(set(chosen)) < len(chosen) or not all(
            type(c) is int and 0 <= c < NUM_CHANNELS for c in chosen):
        raise ValueError(
            f'The channels are {list(chosen)[:8]}{" ..." if len(chosen) > 8 else ""}, expected different whole numbers '
            'from 0 to 191.')
    return chosen


def _square(count: int) -> List[int]:
    """The first coefficients of growing squares."""
    order = sorted(range(PLANE), key=lambda i: (max(i // 8, i % 8), i // 8 + i % 8, i // 8))
    return sorted(order[:count])
