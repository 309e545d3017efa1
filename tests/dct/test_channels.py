"""The subsets of coefficients."""

import pytest

from mlfm_zoo.dct import SUBSETS, select_channels


def test_subsets():
    for name, channels in SUBSETS.items():
        count = int(name.rstrip('std'))
        assert len(channels) == len(set(channels)) == count and select_channels(name) == channels
        planes = [[c % 64 for c in channels if c // 64 == p] for p in range(3)]
        assert planes[1] == planes[2] and [len(p) for p in planes] == [len(planes[0]), *[len(planes[1])] * 2]
    assert select_channels('24s')[:16] == tuple(8 * row + column for row in range(4) for column in range(4))
    assert select_channels('64s')[:8] == (0, 1, 2, 3, 4, 5, 6, 8) and 53 in select_channels('64s')
    assert select_channels(64) == select_channels('64s') and select_channels(192) == tuple(range(192))
    triangle = [c for c in select_channels('48t') if c < 64]
    assert max(c // 8 + c % 8 for c in triangle) - 1 <= min(
        c // 8 + c % 8 for c in set(range(64)) - set(triangle)) <= max(c // 8 + c % 8 for c in triangle) + 1
    for text in ('3s', '40t', '100s', '191t'):
        assert len(select_channels(text)) == int(text[:-1])
    for bad in ('', '24', '24x', '2s', '193s', [], [0, 0], [192], [-1], [0.5], True, '1000s'):
        with pytest.raises(ValueError) as error:
            select_channels(bad)
        assert '\n' not in str(error.value)
