"""The Triton kernel of fused units, where there is no GPU: in Triton's interpreter, and compiled for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.user import IMPORTS

TESTS = Path(__file__).parent

pytest.importorskip('triton', reason='Triton is not installed: torch brings it along on Linux only.')


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], cwd=TESTS,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(IMPORTS), **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize('check', ['numbers', 'gradients', 'operator', 'networks', 'failure'])
def test_interpreted(check):
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    run('interpreted_kernel.py', check, TRITON_INTERPRET='1')


@pytest.mark.slow
def test_compiles_for_gpus(tmp_path):
    run('compiled_kernel.py', TRITON_CACHE_DIR=str(tmp_path))
