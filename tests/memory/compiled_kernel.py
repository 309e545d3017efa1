"""The Triton kernel compiled for GPUs, on a machine without one; run by test_kernel.py in a process of its own."""

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlfm_zoo.memory import kernel

if __name__ == '__main__':
    names = kernel._fuse_memory_kernel.arg_names
    for (capability, dtype), flags in itertools.product(
            ((75, 'fp16'), (80, 'fp32'), (90, 'bf16')), itertools.product((False, True), repeat=4)):
        constants = dict(zip(('SUPPLEMENT', 'CAT', 'FORGET', 'LAST'), flags), CELLS=16, CHANNELS=64)
        signature = {n: 'constexpr' if n in constants else 'i32' for n in names}
        signature |= {f'{n}_ptr': f'*{dtype}' for n in ('x', 'a', 'b', 'y', 'memory')}
        signature |= {f'{n}_ptr': '*fp32' for n in ('scale', 'shift')}
        source = ASTSource(
            fn=kernel._fuse_memory_kernel, signature=signature,
            constexprs={(names.index(n),): value for n, value in constants.items()})
        compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32))
        assert compiled.asm['cubin'], (capability, dtype, flags)
