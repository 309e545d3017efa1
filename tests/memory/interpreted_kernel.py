"""The Triton kernel on a CPU, in Triton's interpreter; run by test_kernel.py in a process with TRITON_INTERPRET=1."""

import itertools
import os
import sys
import warnings

import timm
import torch
import torch.nn.functional as F

from mlfm_zoo.memory import FusedMemoryUnit, kernel, low_band
from helpers.networks import SMALL, lived_in


def plain(x, a, b, scale, shift, cat, forget, ceil_mode, last):
    low = F.relu(a) if b is None else F.relu(a) + F.relu(b)
    fused = x + low
    memory = torch.cat([x, low], dim=1) if cat else fused
    if forget:
        memory = low_band(memory, ceil_mode)
    return scale[:, None, None] * fused + shift[:, None, None], x.new_empty(0) if last else memory


def inputs(batch, chs, height, width, supplement, dtype=torch.float32, grad=False):
    def random(*shape):
        x = torch.randn(*shape).to(dtype)
        x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
        return x.requires_grad_(grad)
    x, a, b = (random(batch, chs, height, width) for _ in range(3))
    return x, a, b if supplement else None, random(chs).float().detach().requires_grad_(grad), random(chs).float()


def close(actual, expected, tolerance):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if expected.numel():
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max(), (actual - expected).abs().max()


def check_numbers():
    shapes = [(2, 5, 6, 8), (1, 1, 1, 1), (3, 17, 7, 5), (1, 130, 3, 2), (2, 8, 1, 33), (0, 4, 6, 6)]
    flags = list(itertools.product((False, True), repeat=4))
    for shape, (cat, forget, ceil_mode, supplement) in itertools.product(shapes, flags):
        if not ceil_mode and min(shape[2:]) < 2:
            continue
        given = inputs(*shape, supplement)
        for last in (False, True):
            for actual, expected in zip(
                    kernel.fuse_memory(*given, cat, forget, ceil_mode, last),
                    plain(*given, cat, forget, ceil_mode, last)):
                close(actual, expected, 1e-6)
    for dtype, tolerance in ((torch.bfloat16, 2 ** -7), (torch.float16, 2 ** -10)):  # a few roundings of the dtype
        given = inputs(2, 24, 9, 11, True, dtype)
        exact = plain(*(t.float() for t in given), False, True, True, False)
        for actual, expected in zip(kernel.fuse_memory(*given, False, True, True, False), exact):
            assert actual.dtype == dtype
            close(actual.float(), expected, tolerance)


def check_gradients():
    for cat, forget, ceil_mode, supplement, last in itertools.product((False, True), repeat=5):
        given = inputs(2, 3, 5, 6, supplement, grad=True)
        tensors = [t for t in given if t is not None and t.requires_grad]
        gradients = []
        weights = None
        for function in (kernel.fuse_memory, plain):
            outputs = [t for t in function(*given, cat, forget, ceil_mode, last) if t.numel()]
            weights = weights or [torch.randn_like(t) for t in outputs]
            loss = sum((t * w).sum() for t, w in zip(outputs, weights))
            gradients.append(torch.autograd.grad(loss, tensors))
        for actual, expected in zip(*gradients):
            torch.testing.assert_close(actual, expected)


def check_operator():
    for cat, forget, supplement, last in itertools.product((False, True), repeat=4):
        given = inputs(2, 4, 5, 6, supplement, grad=True)
        torch.library.opcheck(kernel.fuse_memory, (*given, cat, forget, True, last))

    def function(*given):
        y, memory = kernel.fuse_memory(*given, False, True, True, False)
        return (2 * y).relu(), memory + 1
    given = inputs(2, 4, 5, 6, True)
    for actual, expected in zip(torch.compile(function, backend='aot_eager', fullgraph=True)(*given), function(*given)):
        close(actual, expected, 1e-6)


def check_networks():
    """Whole networks with the kernel, which is taken where it is asked for or faster, as it is not here."""
    used = []
    forward = FusedMemoryUnit._forward_kernel

    def watched(*args, **kwargs):
        used.append(True)
        return forward(*args, **kwargs)
    FusedMemoryUnit._forward_kernel = watched
    for name in ('test_mlfm_resnet', 'mlfm_mobilenetv2_010', 'mlfm_convnext_tiny_k3_par1_4'):
        torch.manual_seed(0)
        model = lived_in(timm.create_model(name, **SMALL[name])).to(memory_format=torch.channels_last)
        image = torch.randn(1, 3, 33, 65).to(memory_format=torch.channels_last)
        with torch.no_grad():
            expected = model(image)
            model.fuse()
            for choice, units in (('0', 0), ('1', len(model.memory.units()))):
                os.environ['MLFM_KERNEL'] = choice
                used.clear()
                close(model(image), expected, 1e-5)
                assert len(used) == units, (name, choice, len(used))
            with torch.autocast('cpu', dtype=torch.bfloat16):
                fast = model(image)
                os.environ['MLFM_KERNEL'] = '0'
                close(fast, model(image), 0.1)
    del os.environ['MLFM_KERNEL']
    model = lived_in(timm.create_model('test_mlfm_resnet')).to(memory_format=torch.channels_last).fuse()
    image = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = model(image)  # times both, and finds the interpreter slower
        assert set(kernel._fastest.values()) == {0}
        used.clear()
        assert torch.equal(model(image), expected)
        assert not used


def check_failure():
    """A kernel that cannot run, without a C compiler, say, is left out with a warning, and not silently."""
    def broken(x):
        raise RuntimeError('Failed to find C compiler.\nMore.')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(2):
            assert kernel.fastest('broken', [torch.clone, broken], torch.ones(3)) == 0
    [warning] = caught
    assert 'does not run here (RuntimeError: Failed to find C compiler.), so' in str(warning.message)
    try:
        kernel.fastest('all broken', [broken, torch.clone], torch.ones(3))
    except RuntimeError as error:
        assert 'Failed to find' in str(error)
    else:
        raise AssertionError("torch's own way has to work")


if __name__ == '__main__':
    torch.manual_seed(0)
    globals()[f'check_{sys.argv[1]}']()
