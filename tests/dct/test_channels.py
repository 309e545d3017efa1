"""The subsets of coefficients."""

import pytest

from mlfm_zoo.dct import SUBSETS, select_channels


def test_subsets():
    for name, channels in SUBSETS.items():
        assert len(channels) == len(set(channels)) == int(name.rstrip('std')) and select_channels(name) == channels
        luma, blue, red = ([c % 64 for c in channels if c // 64 == p] for p in range(3))
        assert blue == red and len(luma) >= len(blue)
    assert select_channels('24s')[:16] == tuple(8 * row + column for row in range(4) for column in range(4))
    assert select_channels('64s')[:8] == (0, 1, 2, 3, 4, 5, 6, 8) and 53 in select_channels('64s')
    assert select_channels(64) == select_channels('64s') and select_channels(192) == tuple(range(192))
    triangle = {c for c in select_channels('48t') if c < 64}
    inside, outside = ([sum(divmod(c, 8)) for c in part] for part in (triangle, set(range(64)) - triangle))
    assert max(inside) <= min(outside) + 1
    for text in ('3s', '40t', '100s', '191t'):
        assert len(select_channels(text)) == int(text[:-1])


@pytest.mark.parametrize('bad', ['', '24', '24x', '2s', '193s', '1000s', [], [0, 0], [192], [-1], [0.5]])
def test_refused(bad):
    with pytest.raises(ValueError, match='expected different whole numbers|is not a subset'):
        select_channels(bad)
