"""The memory unit against its equations, written out here a second time, with PyWavelets as the forget gate."""

import pytest
import pywt
import torch
import torch.nn.functional as F

from mlfm_zoo import LowFrequencyMemoryUnit, image_bands


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


@pytest.mark.parametrize('update', ['add', 'cat'])
def test_gradients_against_finite_differences(update):
    torch.manual_seed(0)
    unit = LowFrequencyMemoryUnit(3, 2, in_chans=2, level=1, update=update).double().train()
    bands = image_bands(torch.randn(2, 2, 5, 6).double(), 1)
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weights = [p for n, p in unit.named_parameters() if not n.endswith('conv.bias')]  # a norm cancels conv biases
    torch.autograd.gradcheck(lambda x, memory, *_: unit(x, memory, bands), (x, memory, *weights))
