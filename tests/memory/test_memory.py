"""The memory unit against its equations, written out here a second time, and the low band against PyWavelets."""

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F

from mlfm_zoo import LowFrequencyMemoryUnit, image_bands, low_band
from mlfm_zoo.memory import LowFrequencyMemory, MemoryOptions, MemorySite

SIZES = [(1, 1), (2, 2), (7, 7), (8, 8), (5, 12), (33, 47), (64, 64), (225, 193), (256, 128)]


@pytest.mark.parametrize('height, width', SIZES)
def test_low_band_is_the_haar_ll_band(height, width):
    x = np.random.default_rng(0).standard_normal((2, 3, height, width))
    expected = pywt.dwt2(x, 'haar', mode='periodization')[0]
    np.testing.assert_allclose(low_band(torch.from_numpy(x)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize('level', range(1, 6))
@pytest.mark.parametrize('height, width', [(33, 47), (64, 64), (225, 193), (256, 128)])
def test_image_bands_are_the_haar_decomposition(height, width, level):
    image = np.random.default_rng(0).standard_normal((2, 3, height, width))
    bands = image_bands(torch.from_numpy(image), level)
    expected = image
    for _ in range(level):  # wavedec2 would warn that a 5-level transform of a small image is all border
        expected = pywt.dwt2(expected, 'haar', mode='periodization')[0]
    assert len(bands) == level + 1
    np.testing.assert_allclose(bands[level].numpy(), expected, atol=1e-11)


def equations(unit, x, memory, band, forget):
    """The unit's equations in the functional API, with PyWavelets as the forget gate."""
    def norm(x, bn):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)

    gate = unit.input_gate
    low = norm(F.conv2d(memory, gate.conv.weight, gate.conv.bias), gate.norm).relu()
    if unit.supplement_gate is not None:
        gate = unit.supplement_gate
        low = low + norm(F.conv2d(band, gate.conv.weight, gate.conv.bias, padding=1), gate.norm).relu()
    y = norm(x + low, unit.output_gate)
    memory = x + low if unit.update == 'add' else torch.cat([x, low], dim=1)
    if forget:
        memory = torch.from_numpy(pywt.dwt2(memory.detach().numpy(), 'haar', mode='periodization')[0])
    return y, memory


@pytest.mark.parametrize('in_chans', [1, 3, 4])
@pytest.mark.parametrize('forget', [True, False])
@pytest.mark.parametrize('supplement', [True, False])
@pytest.mark.parametrize('update', ['add', 'cat'])
def test_unit_is_its_equations(update, supplement, forget, in_chans):
    torch.manual_seed(0)
    unit = LowFrequencyMemoryUnit(
        8, 5, in_chans=in_chans, level=2, update=update, supplement=supplement, forget=forget).double().eval()
    for parameter in [*unit.parameters(), *unit.buffers()]:
        if parameter.is_floating_point():
            parameter.data = torch.rand_like(parameter) + 0.1
    bands = image_bands(torch.randn(2, in_chans, 28, 36).double(), 2)
    x, memory = torch.randn(2, 8, 7, 9).double(), torch.randn(2, 5, 7, 9).double()
    with torch.no_grad():
        actual = unit(x, memory, bands)
    for a, e in zip(actual, equations(unit, x, memory, bands[2], forget)):
        torch.testing.assert_close(a, e)
    assert actual[1].shape[1] == (8 if update == 'add' else 16)


def test_rounding_down_drops_the_odd_border():
    x = torch.randn(1, 2, 9, 12)
    torch.testing.assert_close(low_band(x, ceil_mode=False), low_band(x[:, :, :8]))
    bands = image_bands(x, 2, [True, False])
    assert [tuple(b.shape[2:]) for b in bands] == [(9, 12), (5, 6), (2, 3)]


@pytest.mark.parametrize('update', ['add', 'cat'])
def test_gradients_against_finite_differences(update):
    torch.manual_seed(0)
    unit = LowFrequencyMemoryUnit(3, 2, in_chans=2, level=1, update=update).double().train()
    bands = image_bands(torch.randn(2, 2, 5, 6).double(), 1)
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weights = [p for n, p in unit.named_parameters() if not n.endswith('conv.bias')]  # a norm cancels conv biases
    torch.autograd.gradcheck(lambda x, memory, *_: unit(x, memory, bands), (x, memory, *weights))


SITES = [MemorySite('stem', 4, 2), MemorySite('layers.1', 6, 4), MemorySite('layers.2', 8, 4)]


def test_memory_of_a_network():
    memory = LowFrequencyMemory(
        SITES, {'layers': 3}, in_chans=2, options=MemoryOptions(memory_update='cat', memory_supplement='all_but_last'))
    units = [m for m in memory.modules() if isinstance(m, LowFrequencyMemoryUnit)]
    assert units == [memory.stem, memory.layers[1], memory.layers[2]]
    assert [u.input_gate.conv.in_channels for u in units] == [2, 8, 12]
    assert [u.level for u in units] == [1, 2, 2]
    assert [u.forget for u in units] == [True, False, False]  # none where the next site has the same resolution
    assert [u.supplement_gate is not None for u in units] == [True, True, False]
    assert [tuple(b.shape) for b in memory(torch.randn(1, 2, 9, 8))] == [(1, 2, 9, 8), (1, 2, 5, 4), (1, 2, 3, 2)]
    x, written = memory.layers[0](torch.ones(1), torch.zeros(1), [])  # no unit there: passes through
    assert x == 1 and written == 0


@pytest.mark.parametrize('option, value', [('update', 'mul'), ('supplement', 'some'), ('update', None)])
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf'memory_{option} is {value!r}, expected') as error:
        MemoryOptions(**{f'memory_{option}': value})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('image, message', [
    (torch.zeros(1, 3, 3, 64), 'image of 3x64 pixels is smaller than .* at least 4x4'),
    (torch.zeros(3, 64, 64), r'has 3 dimensions, expected 4, a batch \(N, 3, H, W\)'),
    (torch.zeros(64), 'has 1 dimensions, expected 4'),
    (torch.zeros(1, 4, 64, 64), 'has 4 channels, expected 3: .* in_chans=4'),
    (torch.zeros(1, 64, 64, 3), 'has 64 channels, expected 3'),
    (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 'made of whole numbers, expected floating-point'),
])
def test_what_is_no_image_batch(image, message):
    memory = LowFrequencyMemory(SITES, lengths={'layers': 3})
    with pytest.raises(ValueError, match=message) as error:
        memory(image)
    assert '\n' not in str(error.value)
