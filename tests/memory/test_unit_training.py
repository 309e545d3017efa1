"""The unit as one function in training, against its modules under autograd: outputs, gradients, statistics."""

import copy

import pytest
import timm
import torch
import torch.nn as nn

from mlfm_zoo.memory import LowFrequencyMemoryUnit, training
from mlfm_zoo.memory.training import trains_fused
from mlfm_zoo.memory.unit import Gate

updates = pytest.mark.parametrize('update', ['add', 'cat'])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(training, 'PART_BYTES', 8000)  # a batch of 5 then has parts of 1 or 2 images, the last shorter


def make(batch=5, size=(9, 7), channels_last=False, in_chans=3, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    unit = LowFrequencyMemoryUnit(8, 5, in_chans=in_chans, level=0, dtype=dtype, **kwargs)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = [torch.randn(batch, chs, *size, dtype=dtype) for chs in (8, 5, in_chans)]
    if channels_last:
        unit = unit.to(memory_format=torch.channels_last)
        inputs = [t.to(memory_format=torch.channels_last) for t in inputs]
    return unit, inputs


def modules_only(unit):
    """A copy that goes through its modules: a hook on one, which does nothing, is enough."""
    unit = copy.deepcopy(unit)
    unit.output_gate.register_forward_hook(lambda module, args, output: None)
    return unit


def results(unit, inputs, steps=2):
    """Outputs, gradients and buffers after some steps."""
    for _ in range(steps):
        x, memory, band = (t.clone().requires_grad_() for t in inputs)
        unit.zero_grad()
        outputs = unit(x, memory, [band])
        torch.manual_seed(1)
        sum((output * torch.randn(output.shape, dtype=output.dtype)).sum() for output in outputs).backward()
    bands = [] if unit.supplement_gate is None else [band.grad]
    return [*outputs, x.grad, memory.grad, *bands, *(p.grad for p in unit.parameters()), *unit.buffers()]


def compare(unit, inputs, expect=True, **tolerance):
    assert trains_fused(unit, inputs[0], inputs[1], inputs[2:]) == expect
    others = modules_only(unit)
    for actual, expected in zip(results(unit, inputs), results(others, inputs), strict=True):
        torch.testing.assert_close(actual, expected, **(tolerance or dict(rtol=1e-10, atol=1e-10)))


@updates
@pytest.mark.parametrize('supplement', [True, False])
@pytest.mark.parametrize('forget', [0, 1, 2])
@pytest.mark.parametrize('channels_last', [True, False])
def test_same_as_modules(update, supplement, forget, channels_last):
    unit, inputs = make(update=update, supplement=supplement, forget=forget, channels_last=channels_last)
    compare(unit, inputs)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert unit(*inputs[:2], inputs[2:])[0].is_contiguous(memory_format=layout)


@updates
@pytest.mark.parametrize('kwargs', [
    dict(batch=1), dict(size=(8, 8), last=True), dict(ceil_mode=False), dict(in_chans=1), dict(in_chans=4)])
def test_same_at_edges(update, kwargs):
    compare(*make(update=update, **kwargs))


def test_single_precision():
    compare(*make(batch=16, size=(24, 24), dtype=torch.float32), rtol=1e-3, atol=1e-3)


@updates
@pytest.mark.parametrize('forget', [0, 1])
def test_finite_differences(update, forget):
    unit, inputs = make(batch=2, size=(3, 4), update=update, forget=forget)
    inputs = [t.requires_grad_() for t in inputs]
    weights = [p for n, p in unit.named_parameters() if not n.endswith('conv.bias')]  # a norm cancels conv biases
    assert trains_fused(unit, *inputs[:2], inputs[2:])
    assert torch.autograd.gradcheck(lambda x, memory, band, *_: unit(x, memory, [band]), (*inputs, *weights))


@updates
def test_gradients_of_gradients(update):
    unit, inputs = make(update=update)
    found = []
    for one in (unit, modules_only(unit)):
        x, memory, band = (t.clone().requires_grad_() for t in inputs)
        y, written = one(x, memory, [band])
        parameters = [x, memory, band, *one.parameters()]
        first = torch.autograd.grad(y.square().sum() + written.pow(3).sum(), parameters, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), parameters)])
    largest = max(t.abs().max() for t in found[1])  # those of conv biases are the rounding of zero, on that scale
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual / largest, expected / largest, rtol=1e-9, atol=1e-12)


@updates
def test_one_output_alone(update):
    for index in (0, 1):
        unit, inputs = make(update=update)
        found = []
        for one in (unit, modules_only(unit)):
            x = inputs[0].clone().requires_grad_()
            one(x, inputs[1], inputs[2:])[index].sin().sum().backward()
            found.append([x.grad, one.input_gate.conv.weight.grad, one.supplement_gate.norm.weight.grad])
        for actual, expected in zip(*found):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@updates
def test_frozen(update):
    unit, inputs = make(update=update)
    unit.supplement_gate.requires_grad_(False)
    unit.input_gate.norm.requires_grad_(False)
    compare_frozen = [results_of(one, inputs) for one in (unit, modules_only(unit))]
    for actual, expected in zip(*compare_frozen, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert unit.supplement_gate.conv.weight.grad is None


def results_of(unit, inputs):
    y, written = unit(inputs[0], inputs[1], inputs[2:])
    (y.sin().sum() + written.sin().sum()).backward()
    return [y, written, *(p.grad for p in unit.parameters() if p.requires_grad)]


def test_gradients_of_gradients_of_frozen():
    """A memory that no parameter with a gradient has a part in takes part in no graph."""
    for update in ('add', 'cat'):
        unit, (x, memory, band) = make(update=update)
        unit.requires_grad_(False)
        unit.output_gate.requires_grad_(True)
        found = []
        for one in (unit, modules_only(unit)):
            y, written = one(x, memory, [band])
            parameters = [*one.output_gate.parameters()]
            first = torch.autograd.grad(y.pow(3).sum() + written.sum(), parameters, create_graph=True)
            found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), parameters)])
        for actual, expected in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_batched_gradients():
    """Of a Jacobian all rows at once."""
    unit, (x, memory, band) = make(batch=2, size=(3, 2))
    found = [torch.autograd.functional.jacobian(lambda x, one=one: one(x, memory, [band]), x, vectorize=True)
             for one in (unit, modules_only(unit))]
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


class OtherGate(Gate):
    def forward(self, x):
        return torch.tanh(self.norm(self.conv(x)))


class OtherUnit(LowFrequencyMemoryUnit):
    def _forget(self, x):
        return nn.functional.max_pool2d(x, 2, ceil_mode=True)


def freeze_norm(unit):
    unit.output_gate.eval()


def other_norm(unit):
    unit.input_gate.norm = nn.SyncBatchNorm(8, dtype=torch.float64)


def cumulative(unit):
    unit.supplement_gate.norm.momentum = None


def no_statistics(unit):
    unit.output_gate = nn.BatchNorm2d(8, track_running_stats=False, dtype=torch.float64)


def no_affine(unit):
    unit.output_gate = nn.BatchNorm2d(8, affine=False, dtype=torch.float64)


def hooked(unit):
    unit.input_gate.register_full_backward_hook(lambda module, of_input, of_output: None)


def parametrized(unit):
    nn.utils.parametrizations.weight_norm(unit.input_gate.conv)


def low_precision(unit):
    unit.bfloat16()


def other_gate(unit):
    unit.input_gate = nn.Conv2d(5, 8, 1, dtype=torch.float64)


def gate_of_another_class(unit):
    unit.supplement_gate.__class__ = OtherGate


def of_another_class(unit):
    unit.__class__ = OtherUnit


@pytest.mark.parametrize('change', [
    freeze_norm, other_norm, cumulative, no_statistics, no_affine, hooked, parametrized, low_precision,
    other_gate, gate_of_another_class, of_another_class])
def test_left_to_the_modules(change):
    unit, (x, memory, band) = make()
    assert trains_fused(unit, x, memory, [band])
    change(unit)
    inputs = [t.to(next(unit.parameters()).dtype) for t in (x, memory, band)]
    assert not trains_fused(unit, *inputs[:2], inputs[2:])
    if change is not other_norm:  # which wants a GPU in training
        unit(*inputs[:2], inputs[2:])[0].sum().backward()


def test_transforms():
    unit, (x, memory, band) = make()
    expected = torch.autograd.functional.jvp(lambda x: unit(x, memory, [band])[0], x, torch.ones_like(x))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert not trains_fused(unit, dual, memory, [band])
        y = unit(dual, memory, [band])[0]
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, expected)

    def loss(parameters):
        buffers = {k: v.clone() for k, v in unit.named_buffers()}
        y, written = torch.func.functional_call(unit, {**parameters, **buffers}, (x, memory, [band]))
        return y.sin().sum() + written.sin().sum()
    parameters = dict(unit.named_parameters())
    found = torch.func.grad(loss)({k: v.detach() for k, v in parameters.items()})
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-10)

    with torch.no_grad():  # a transform of what comes after the unit alone
        y = unit(x, memory, [band])[0]
        weights = torch.randn(3, 8, 1, 1, dtype=torch.float64)
        found = torch.func.vmap(lambda weight: (unit(x, memory, [band])[0] * weight).sum())(weights)
    torch.testing.assert_close(found, torch.stack([(y * weight).sum() for weight in weights]))


def test_autocast_and_no_gradients():
    unit, (x, memory, band) = make(dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert not trains_fused(unit, x, memory, [band])
        unit(x, memory, [band])[0].sum().backward()
    with torch.no_grad():
        others = modules_only(unit)
        for actual, expected in zip(unit(x, memory, [band]), others(x, memory, [band])):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert not trains_fused(unit.eval(), x, memory, [band])


def test_too_little_for_statistics():
    unit, _ = make()
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        unit(*(torch.randn(1, chs, 1, 1, dtype=torch.float64) for chs in (8, 5)), [torch.randn(1, 3, 1, 1).double()])


@pytest.mark.parametrize('saving', [False, True])
def test_network(saving):
    """A whole network: gradients, running statistics, gradient checkpointing, and fewer large tensors kept."""
    found, kept = [], []
    for hook in (False, True):
        torch.manual_seed(0)
        model = timm.create_model('mlfm_resnet10', num_classes=10).double().train()
        model.set_grad_checkpointing(saving)
        if hook:
            for unit in model.memory.units():
                unit.output_gate.register_forward_hook(lambda module, args, output: None)
        image = torch.randn(4, 3, 64, 64, dtype=torch.float64)
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(image).square().sum()
        loss.backward()
        kept.append(sum(storages.values()))
        found.append([loss, *(p.grad for p in model.parameters()), *(b.double() for b in model.buffers())])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    if not saving:
        assert kept[0] < 0.9 * kept[1]
