"""The command `mlfm-zoo`; `python -m mlfm_zoo` is the same. A command that fails prints one sentence and exits with 1.

Each module adds the arguments of its commands and runs them. What needs torch is imported in the functions that use it,
so that a command loads nothing that only others need.
"""

from .main import main

__all__ = ['main']
