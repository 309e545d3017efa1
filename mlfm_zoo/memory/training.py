"""All that follows a unit's convolutions in training on a CPU, as one autograd function.

It computes what unit.py says, and takes less memory: it keeps the outputs of the convolutions, the feature and the
statistics of the norms, and computes norm, ReLU and sums again in the backward pass. Its large temporaries are next to
none but the tensors that it puts out, which counts where freed memory goes back to the system: getting a page anew
there costs more than all arithmetic on it.
"""

from typing import Any, List, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.nn.modules import module as all_modules

from .bands import low_band

__all__ = ['fuse_in_training', 'is_autocast', 'is_eager', 'trains_fused']

# The batch is taken in parts of this size, so that one pass finds in the cache what the one before has written.
PART_BYTES = 1 << 21

HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def is_eager(x: torch.Tensor) -> bool:
    """Whether x is a real tensor, computed with at once."""
    return isinstance(x, torch.Tensor) and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def is_autocast(x: torch.Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def trains_fused(unit: Any, x: torch.Tensor, memory: torch.Tensor, bands: List[torch.Tensor]) -> bool:
    """Whether `fuse_in_training` computes just what the unit's modules would: exact types, no hooks, no transforms."""
    if not unit.training or not is_eager(x) or x.device.type != 'cpu' or is_autocast(x) or _is_transformed():
        return False
    from .unit import Gate, LowFrequencyMemoryUnit  # which call this module
    gates = _gates(unit, memory, bands)
    if type(unit) is not LowFrequencyMemoryUnit or any(type(gate) is not Gate for gate, _ in gates):
        return False
    convs, sources = [gate.conv for gate, _ in gates], [source for _, source in gates]
    norms = [*(gate.norm for gate, _ in gates), unit.output_gate]
    return (
        x.dim() == 4 and x.dtype in (torch.float32, torch.float64) and x.numel() > x.shape[1]
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
        and all(source.dim() == 4 and source.shape[2:] == x.shape[2:] and len(source) == len(x) for source in sources)
        and all(_is_plain_conv(conv) and conv.out_channels == x.shape[1] for conv in convs)
        and all(_is_plain_norm(norm) and norm.num_features == x.shape[1] for norm in norms)
        and not any(getattr(m, name) for m in (*(g for g, _ in gates), *convs, *norms) for name in HOOKS)
        and not any(getattr(all_modules, f'_global{name}') for name in HOOKS)
        and all(_is_plain_tensor(t, x) for t in (x, *sources, *(p for m in (*convs, *norms) for p in m.parameters())))
    )


def _is_transformed(*tensors: Optional[torch.Tensor]) -> bool:
    """Whether a transform of torch.func is at work, or a tensor is one of autograd's batches (`is_grads_batched`)."""
    return torch._C._are_functorch_transforms_active() or any(
        t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)


def _gates(unit: Any, memory: torch.Tensor, bands: List[torch.Tensor]) -> List[Tuple[Any, torch.Tensor]]:
    """The gates of a unit, each with what it takes."""
    supplement = [] if unit.supplement_gate is None else [(unit.supplement_gate, bands[unit.level])]
    return [(unit.input_gate, memory), *supplement]


def _is_plain_conv(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and conv.bias is not None and conv.padding_mode == 'zeros' and conv.groups == 1


def _is_plain_norm(norm: nn.Module) -> bool:
    return (
        type(norm) is nn.BatchNorm2d and norm.training and norm.affine and norm.track_running_stats
        and norm.momentum is not None and norm.running_mean is not None and norm.num_batches_tracked is not None)


def _is_plain_tensor(tensor: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a tensor is of x's kind, and none of forward mode's."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter) and tensor.dtype == x.dtype and tensor.device == x.device
        and forward_ad.unpack_dual(tensor).tangent is None)


def fuse_in_training(
        unit: Any,
        x: torch.Tensor,
        memory: torch.Tensor,
        bands: List[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """As `LowFrequencyMemoryUnit.forward`, where `trains_fused` says that it applies."""
    gates = _gates(unit, memory, bands)
    features = [gate.conv(source).contiguous(memory_format=_layout(x)) for gate, source in gates]
    norms = [*(gate.norm for gate, _ in gates), unit.output_gate]
    for norm in norms:
        norm.num_batches_tracked.add_(1)
    y, written = _FusedUnit.apply(
        norms, (unit.update == 'cat', unit.forget > 0, unit.ceil_mode),
        x, *features, *(norm.weight for norm in norms), *(norm.bias for norm in norms))
    for _ in range(unit.forget - 1):
        written = low_band(written, unit.ceil_mode)
    return y, written


class _FusedUnit(torch.autograd.Function):
    """All of a unit but its convolutions, whose outputs it takes, and but its forget gate's levels after the first."""

    @staticmethod
    def forward(ctx, norms, options, x, *tensors):
        concatenates, forgets, ceil_mode = options
        features, weights, biases = _unpack(tensors)
        parts = _parts(x)
        count = x.numel() // x.shape[1]
        statistics = []
        for feature, norm in zip(features, norms):
            statistics.append(_statistics([_moments(feature[part]) for part in parts], norm, count))
        affine = [_affine(*s) for s in zip(statistics, weights, biases)]
        fused, written, moments = torch.empty_like(x), [], []
        for part in parts:
            low = torch.addcmul(affine[0][1], features[0][part], affine[0][0], out=fused[part]).relu_()
            for feature, (scale, shift) in zip(features[1:], affine[1:]):
                low.add_(torch.addcmul(shift, feature[part], scale).relu_())
            if concatenates:
                pair = (x[part], low)
                written.append(torch.cat([low_band(t, ceil_mode) for t in pair] if forgets else pair, dim=1))
            low.add_(x[part])
            if forgets and not concatenates:
                written.append(low_band(low, ceil_mode))
            moments.append(_moments(low))
        if not written:
            memory = fused
        else:
            memory = written[0] if len(parts) == 1 else torch.cat(written)
        statistics.append(_statistics(moments, norms[-1], count))
        scale, shift = _affine(statistics[-1], weights[-1], biases[-1])
        y = torch.addcmul(shift, fused, scale, out=torch.empty_like(x) if memory is fused else fused)
        ctx.save_for_backward(x, *tensors, *(s for pair in statistics for s in pair))
        ctx.eps, ctx.options = [norm.eps for norm in norms], options
        ctx.set_materialize_grads(False)
        return y, memory

    @staticmethod
    def backward(ctx, grad_y, grad_memory):
        saved = ctx.saved_tensors  # once: a checkpoint computes anew what it gives
        inputs, statistics = saved[:len(ctx.needs_input_grad) - 2], saved[len(ctx.needs_input_grad) - 2:]
        statistics = list(zip(statistics[::2], statistics[1::2]))
        x = inputs[0]
        features, weights, biases = _unpack(inputs[1:])
        if torch.is_grad_enabled() or _is_transformed(grad_y, grad_memory):  # for gradients of these, or many at once
            with torch.enable_grad():
                outputs = _equations(x, features, weights, biases, ctx.eps, *ctx.options)
            return None, None, *_gradients(outputs, inputs, (grad_y, grad_memory), ctx.needs_input_grad[2:])
        concatenates, forgets, ceil_mode = ctx.options
        parts = _parts(x)
        affine = [_affine(*s) for s in zip(statistics, weights, biases)]
        sums = [x.new_zeros(2, x.shape[1]) for _ in weights]  # gradients of the norms' weights and biases
        grad_y = torch.zeros_like(x) if grad_y is None else grad_y.contiguous(memory_format=_layout(x))
        grad_x = torch.empty_like(x)  # first x + l, then the gradient of x + l, then that of x
        grads = [torch.empty_like(x) for _ in features]  # first what gates put out, then the gradients of features
        for part in parts:
            fused = grad_x[part].copy_(x[part])
            for feature, (scale, shift), out in zip(features, affine, grads):
                fused.add_(torch.addcmul(shift, feature[part], scale, out=out[part]).relu_())
            _add_sums(sums[-1], grad_y[part], fused, weights[-1], statistics[-1])
        slopes = _slopes(sums[-1], weights[-1], statistics[-1], x)
        for part in parts:
            grad_low = grad = _write_slope(slopes, grad_y[part], grad_x[part], out=grad_x[part])
            if grad_memory is not None:
                of_x, of_low = grad_memory[part, :x.shape[1]], grad_memory[part, x.shape[1]:]
                if concatenates:
                    grad_low = grad + _forget_backward(of_low, grad, forgets, ceil_mode)
                grad.add_(_forget_backward(of_x, grad, forgets, ceil_mode))
            for i, feature in enumerate(features):
                out = grads[i][part]
                torch.ops.aten.threshold_backward.grad_input(grad_low, out, 0, grad_input=out)
                _add_sums(sums[i], out, feature[part], weights[i], statistics[i])
        for i, feature in enumerate(features):
            slopes = _slopes(sums[i], weights[i], statistics[i], x)
            for part in parts:
                _write_slope(slopes, grads[i][part], feature[part], out=grads[i][part])
        return (None, None, grad_x, *grads,
                *(of_weight for of_weight, _ in sums), *(of_bias for _, of_bias in sums))


def _layout(x: torch.Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _parts(x: torch.Tensor) -> List[slice]:
    step = max(1, PART_BYTES // x[0].nbytes)
    return [slice(i, i + step) for i in range(0, len(x), step)]


def _unpack(tensors):
    """Features of the gates, and weights and biases of the norms, one more of each."""
    count = (len(tensors) - 2) // 3
    return tensors[:count], tensors[count:2 * count + 1], tensors[2 * count + 1:]


def _moments(x: torch.Tensor) -> Tuple[int, torch.Tensor, torch.Tensor]:
    """How many values a channel has, their mean and their variance."""
    return x.numel() // x.shape[1], *torch.batch_norm_update_stats(x, None, None, 0.0)


def _statistics(moments, norm: Any, count: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / deviation of each channel over all parts; the norm's running ones follow."""
    mean = sum(n * m for n, m, _ in moments) / count
    var = sum(n * (v + (m - mean).square_()) for n, m, v in moments) / count
    norm.running_mean.mul_(1 - norm.momentum).add_(mean, alpha=norm.momentum)
    norm.running_var.mul_(1 - norm.momentum).add_(var, alpha=norm.momentum * count / (count - 1))
    return mean, (var + norm.eps).rsqrt()


def _affine(statistics, weight, bias):
    """What a norm multiplies by, and what it adds then."""
    mean, invstd = statistics
    scale = weight * invstd
    return scale[:, None, None], (bias - mean * scale)[:, None, None]


def _add_sums(sums, grad, x, weight, statistics):
    _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, *statistics, True, 0.0, [False, True, True])
    sums[0].add_(of_weight)
    sums[1].add_(of_bias)


def _slopes(sums, weight, statistics, x):
    """The gradient of a norm's input is linear in that of its output and in the input: both slopes, and the rest."""
    mean, invstd = statistics
    count = x.numel() // x.shape[1]
    scale = weight * invstd
    slope = -scale * invstd * sums[0] / count
    return [t[:, None, None] for t in (scale, slope, -scale * sums[1] / count - slope * mean)]


def _write_slope(slopes, grad, x, out):
    scale, slope, rest = slopes
    return torch.addcmul(torch.addcmul(rest, x, slope), grad, scale, out=out)


def _forget_backward(grad, x, forgets, ceil_mode):
    if not forgets:
        return grad
    return torch.ops.aten.avg_pool2d_backward(2 * grad, x, [2, 2], [2, 2], [0, 0], ceil_mode, True, None)


def _equations(x, features, weights, biases, eps, concatenates, forgets, ceil_mode):
    """What `_FusedUnit` computes, in operations that autograd knows."""
    def norm(x, i):
        return F.batch_norm(x, None, None, weights[i], biases[i], training=True, eps=eps[i])

    lows = [F.relu(norm(feature, i)) for i, feature in enumerate(features)]
    low = lows[0] if len(lows) == 1 else lows[0] + lows[1]
    fused = x + low
    memory = torch.cat([x, low], dim=1) if concatenates else fused
    return norm(fused, -1), low_band(memory, ceil_mode) if forgets else memory


def _gradients(outputs, inputs, grad_outputs, needed):
    """Gradients of those inputs that need one, None for the others, with a graph of their own where one is recorded."""
    pairs = [(o, g) for o, g in zip(outputs, grad_outputs) if g is not None and o.requires_grad]
    found = iter(torch.autograd.grad(
        [o for o, _ in pairs], [t for t, n in zip(inputs, needed) if n], [g for _, g in pairs],
        create_graph=torch.is_grad_enabled(), allow_unused=True))
    return tuple(next(found) if n else None for n in needed)
