"""Run a script with this package's networks registered, also in child processes.

The process becomes the script's interpreter, so `sys.argv`, `sys.path`, `__main__`, signals, exit code and tracebacks
are those of Python itself. `hook/sitecustomize.py` registers the networks: Python imports it at startup, since its
folder is in PYTHONPATH, and it imports `mlfm_zoo` after `timm` in processes that import timm.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import List, NoReturn

__all__ = ['KEEP_MEMORY', 'become_python', 'run']

HOOK = Path(__file__).with_name('hook')

# glibc reads these when a process starts: large blocks get no memory maps, and freed memory is not returned.
KEEP_MEMORY = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(1 << 40)}


def run(command: List[str], keep_memory: bool = False) -> NoReturn:
    """Become `python COMMAND`; importing timm there registers this package's networks.

    Args:
        command: A script with its arguments, or '-m', a module and its arguments.
        keep_memory: Whether the processes keep freed memory for reuse. It needs glibc. Settings in the environment take
            precedence.

    Raises:
        ValueError: `keep_memory` is true and the C library is not glibc.
    """
    if keep_memory:
        if platform.libc_ver()[0] != 'glibc':
            raise ValueError('--keep-memory sets the allocator of glibc, which this Python does not use: leave it out, '
                             'and preload jemalloc or tcmalloc for the same effect.')
        os.environ.update(KEEP_MEMORY | os.environ)
    paths = [str(HOOK), *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
    os.environ['PYTHONPATH'] = os.pathsep.join(dict.fromkeys(paths))
    become_python(command)


def become_python(command: List[str]) -> NoReturn:
    """Replace this process by another command, with the same interpreter and options."""
    argv = [sys.executable, *_interpreter_options(), *command]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == 'nt':  # which cannot replace a process: wait for a child instead
        sys.exit(subprocess.call(argv))
    os.execv(sys.executable, argv)


def _interpreter_options() -> List[str]:
    """The options of this interpreter, such as -u, before `-m mlfm_zoo` or the script."""
    given = sys.orig_argv[1:len(sys.orig_argv) - len(sys.argv) + 1]  # without the program's own arguments
    return given[:-2] if given[-2:-1] in (['-m'], ['-c']) else given[:-1]
