"""The memory of a network: its units, its options, and what is no image."""

import pytest
import torch

from mlfm_zoo import LowFrequencyMemoryUnit
from mlfm_zoo.memory import LowFrequencyMemory, MemoryOptions, MemorySite

SITES = [MemorySite('stem', 4, 2), MemorySite('layers.1', 6, 4), MemorySite('layers.2', 8, 4)]
PLACES = {'stem': None, 'layers': 3}


def test_memory_of_a_network():
    memory = LowFrequencyMemory(
        SITES, PLACES, in_chans=2, options=MemoryOptions(memory_update='cat', memory_supplement='all_but_last'))
    units = [m for m in memory.modules() if isinstance(m, LowFrequencyMemoryUnit)]
    assert units == [memory.stem, memory.layers[1], memory.layers[2]]
    assert [u.input_gate.conv.in_channels for u in units] == [2, 8, 12]
    assert [u.level for u in units] == [1, 2, 2]
    assert [u.forget for u in units] == [True, False, False]  # none where the next site has the same resolution
    assert [u.supplement_gate is not None for u in units] == [True, True, False]
    bands = memory.image_bands(torch.randn(1, 2, 9, 8))
    assert [tuple(band.shape) for band in bands] == [(1, 2, 9, 8), (1, 2, 5, 4), (1, 2, 3, 2)]
    x, written = memory.layers[0](torch.ones(1), torch.zeros(1), [])  # no unit there: passes through
    assert x == 1 and written == 0


def test_places_without_units():
    memory = LowFrequencyMemory(SITES, {**PLACES, 'end': None})
    x, written = memory.end(torch.ones(1), torch.zeros(1), [])
    assert x == 1 and written == 0
    memory.keep(['stem'])
    assert memory.units() == [memory.stem] and len(memory.layers) == 3
    assert (memory.num_levels, memory.reduction) == (1, 2)  # nothing deeper is read


@pytest.mark.parametrize('image, message', [
    (torch.zeros(1, 3, 3, 64), 'image of 3x64 pixels is smaller than .* at least 4x4'),
    (torch.zeros(3, 64, 64), r'has 3 dimensions, expected 4, a batch \(N, 3, H, W\)'),
    (torch.zeros(1, 4, 64, 64), 'has 4 channels, expected 3: .* in_chans=4'),
    (torch.zeros(1, 64, 64, 3), 'has 64 channels, expected 3'),
])
def test_what_is_no_image_batch(image, message):
    memory = LowFrequencyMemory(SITES, PLACES)
    with pytest.raises(ValueError, match=message) as error:
        memory.image_bands(image)
    assert '\n' not in str(error.value)
