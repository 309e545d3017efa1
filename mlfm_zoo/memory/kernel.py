"""What a fused unit does after its convolutions, as one Triton kernel: one pass over the feature instead of seven.

With `a` and `b` the convolutions of the input gate and of the supplement gate, norms folded in, the kernel computes

    l  = ReLU(a) + ReLU(b)
    y  = scale * (x + l) + shift
    m' = LL(x + l), or LL(concat[x, l])

reading x, a and b once and writing y and m' once; the equations are those at the top of unit.py. A program takes a
row of 2x2 cells of a tensor in channels_last and a block of channels. At an odd border it reads the last row or column
twice, which is the periodised extension.

Whether a unit uses the kernel is measured where it runs, see `fastest`.
"""

import math
import os
import statistics
import time
import warnings
from typing import Callable, Dict, Hashable, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

__all__ = ['fastest', 'fuse_memory']

CHANNELS = 128  # channels that a program takes, at most
TILE = 1024  # its channels times its cells, at most


@triton.jit
def _fuse_memory_kernel(
        x_ptr, a_ptr, b_ptr, scale_ptr, shift_ptr, y_ptr, memory_ptr,
        height, width, chs, memory_height, memory_width, cell_rows, cell_blocks,
        SUPPLEMENT: tl.constexpr, CAT: tl.constexpr, FORGET: tl.constexpr, LAST: tl.constexpr,
        CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)  # offsets into a large batch do not fit 32 bits
    cell_block = program % cell_blocks
    cell_row = (program // cell_blocks) % cell_rows
    image = program // (cell_blocks * cell_rows)
    cell = (cell_block * CELLS + tl.arange(0, CELLS))[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = (2 * cell < width) & (channel < chs)
    scale = tl.load(scale_ptr + channel, mask=channel < chs, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + channel, mask=channel < chs, other=0.0).to(tl.float32)
    memory_chs = 2 * chs if CAT else chs
    sum_x = tl.zeros([CELLS, CHANNELS], dtype=tl.float32)
    sum_low = tl.zeros([CELLS, CHANNELS], dtype=tl.float32)
    for corner in tl.static_range(4):
        row = tl.minimum(2 * cell_row + corner // 2, height - 1)
        col = tl.minimum(2 * cell + corner % 2, width - 1)
        pixel = (image * height + row) * width + col
        offset = pixel * chs + channel
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        low = tl.maximum(tl.load(a_ptr + offset, mask=inside, other=0.0).to(tl.float32), 0.0)
        if SUPPLEMENT:
            low += tl.maximum(tl.load(b_ptr + offset, mask=inside, other=0.0).to(tl.float32), 0.0)
        tl.store(y_ptr + offset, ((x + low) * scale + shift).to(y_ptr.dtype.element_ty), mask=inside)
        if not LAST and not FORGET:
            memory_offset = pixel * memory_chs + channel
            if CAT:
                tl.store(memory_ptr + memory_offset, x.to(memory_ptr.dtype.element_ty), mask=inside)
                tl.store(memory_ptr + memory_offset + chs, low.to(memory_ptr.dtype.element_ty), mask=inside)
            else:
                tl.store(memory_ptr + memory_offset, (x + low).to(memory_ptr.dtype.element_ty), mask=inside)
        sum_x += x
        sum_low += low
    if not LAST and FORGET:
        if cell_row < memory_height:
            whole = inside & (cell < memory_width)
            memory_offset = ((image * memory_height + cell_row) * memory_width + cell) * memory_chs + channel
            if CAT:
                tl.store(memory_ptr + memory_offset, (0.5 * sum_x).to(memory_ptr.dtype.element_ty), mask=whole)
                tl.store(memory_ptr + memory_offset + chs, (0.5 * sum_low).to(memory_ptr.dtype.element_ty), mask=whole)
            else:
                low_band = 0.5 * (sum_x + sum_low)
                tl.store(memory_ptr + memory_offset, low_band.to(memory_ptr.dtype.element_ty), mask=whole)


def _outputs(
        x: torch.Tensor, a: torch.Tensor, cat: bool, forget: bool, ceil_mode: bool, last: bool,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Empty tensors for y and the next memory."""
    batch, chs, height, width = x.shape
    y = torch.empty_like(x, dtype=torch.result_type(x, a), memory_format=torch.channels_last)
    if last:
        return y, y.new_empty(0)
    if forget:
        height, width = (height + int(ceil_mode)) // 2, (width + int(ceil_mode)) // 2
    memory = torch.empty(
        (batch, 2 * chs if cat else chs, height, width), dtype=y.dtype, device=x.device,
        memory_format=torch.channels_last)
    return y, memory


@torch.library.custom_op('mlfm_zoo::fuse_memory', mutates_args=())
def fuse_memory(
        x: torch.Tensor,
        a: torch.Tensor,
        b: Optional[torch.Tensor],
        scale: torch.Tensor,
        shift: torch.Tensor,
        cat: bool,
        forget: bool,
        ceil_mode: bool,
        last: bool,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The kernel as an operator of torch, known to autograd and `torch.compile`.

    Args:
        x: Trunk feature (N, C, H, W), channels_last; float32, float16 or bfloat16. The kernel computes in float32.
        a: Output of the input gate's convolution (N, C, H, W), before the ReLU.
        b: Output of the supplement gate's convolution (N, C, H, W), or None.
        scale: Factor of the output norm (C,).
        shift: Summand of the output norm (C,).
        cat: Whether the update is 'cat'.
        forget: Whether the forget gate takes the memory down by one level.
        ceil_mode: How it halves odd sides.
        last: Whether no next memory is wanted.

    Returns:
        y (N, C, H, W), and the next memory, an empty tensor for the last unit; both channels_last.
    """
    x, a, b_or_a = (t.contiguous(memory_format=torch.channels_last) for t in (x, a, a if b is None else b))
    y, memory = _outputs(x, a, cat, forget, ceil_mode, last)
    batch, chs, height, width = x.shape
    channels = min(CHANNELS, triton.next_power_of_2(chs))
    cells = min(TILE // channels, triton.next_power_of_2(triton.cdiv(width, 2)))
    cell_rows, cell_blocks = triton.cdiv(height, 2), triton.cdiv(width, 2 * cells)
    grid = (batch * cell_rows * cell_blocks, triton.cdiv(chs, channels))
    memory_height, memory_width = (0, 0) if last else memory.shape[-2:]
    if batch:
        with torch.cuda.device_of(x):  # Triton starts kernels on the current GPU
            _fuse_memory_kernel[grid](
                x, a, b_or_a, scale, shift, y, memory,
                height, width, chs, memory_height, memory_width, cell_rows, cell_blocks,
                SUPPLEMENT=b is not None, CAT=cat, FORGET=forget, LAST=last, CELLS=cells, CHANNELS=channels)
    return y, memory


@fuse_memory.register_fake
def _(x, a, b, scale, shift, cat, forget, ceil_mode, last):
    return _outputs(x, a, cat, forget, ceil_mode, last)


def _setup_context(ctx, inputs, output):
    x, a, b, scale, shift, ctx.cat, ctx.forget, ctx.ceil_mode, ctx.last = inputs
    ctx.save_for_backward(x, a, b, scale)


def _backward(ctx, grad_y, grad_memory):
    x, a, b, scale = ctx.saved_tensors
    scale = scale[:, None, None]
    low = F.relu(a) if b is None else F.relu(a) + F.relu(b)
    grad_scale, grad_shift = (grad_y * (x + low)).sum((0, 2, 3)), grad_y.sum((0, 2, 3))
    grad_x = grad_low = grad_y * scale
    if not ctx.last:
        if ctx.forget:
            grad_memory = _spread(grad_memory, x.shape[-2], x.shape[-1])
        parts = grad_memory.chunk(2, dim=1) if ctx.cat else (grad_memory, grad_memory)
        grad_x, grad_low = grad_x + parts[0], grad_low + parts[1]
    grad_b = None if b is None else (grad_low * (b > 0)).to(b.dtype)
    return (grad_x.to(x.dtype), (grad_low * (a > 0)).to(a.dtype), grad_b, grad_scale.to(scale.dtype),
            grad_shift.to(scale.dtype), None, None, None, None)


def _spread(grad: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Gradient of a low band: every cell's goes to its pixels, and twice to one that stands there twice."""
    grad = 0.5 * grad.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    for dim, size in ((2, height), (3, width)):
        if grad.shape[dim] > size:
            extra = grad.narrow(dim, size, 1)
            grad = grad.narrow(dim, 0, size)
            grad = torch.cat([grad.narrow(dim, 0, size - 1), grad.narrow(dim, size - 1, 1) + extra], dim=dim)
        elif grad.shape[dim] < size:
            grad = torch.cat([grad, torch.zeros_like(grad.narrow(dim, 0, 1))], dim=dim)
    return grad


fuse_memory.register_autograd(_backward, setup_context=_setup_context)


_fastest: Dict[Hashable, int] = {}


def fastest(key: Hashable, ways: Sequence[Callable[[torch.Tensor], object]], x: torch.Tensor) -> int:
    """Find the fastest of some functions of x, timed at the first call with a key and remembered.

    MLFM_KERNEL=0 in the environment names the first without timing, MLFM_KERNEL=1 the last. While a CUDA graph is
    captured nothing can be timed: the first is named then, and not remembered. One of the others that does not run
    is left out, with a warning.

    Args:
        key: What the times depend on.
        ways: Functions of x that do the same; they may overwrite it, so they are timed on copies.
        x: Their input.

    Returns:
        Its index.
    """
    forced = os.environ.get('MLFM_KERNEL', '')
    if forced in ('0', '1'):
        return int(forced) * (len(ways) - 1)
    if key not in _fastest:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return 0

        def seconds(way: Callable[[torch.Tensor], object]) -> float:
            given = x.clone()
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            start = time.perf_counter()
            way(given)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            return time.perf_counter() - start
        times = []
        for i, way in enumerate(ways):
            try:
                seconds(way)  # compiles what has to be compiled
                times.append(statistics.median(seconds(way) for _ in range(5)))
            except Exception as error:  # of any kind: Triton needs a C compiler, for one
                if i == 0:
                    raise
                times.append(math.inf)
                what = f'{type(error).__name__}: {error}'.splitlines()[0]
                warnings.warn(
                    f'The Triton kernel of fused memory units does not run here ({what}), so '
                    "torch's own are used: set MLFM_KERNEL=0 in the environment to leave it out without a warning.",
                    stacklevel=2)
        _fastest[key] = times.index(min(times))
    return _fastest[key]
