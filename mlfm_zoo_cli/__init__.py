"""The command `mlfm-zoo`; `python -m mlfm_zoo` is the same.

A command that fails prints one sentence and exits with 1. Each module adds the arguments of its commands and runs them.
The package lies beside `mlfm_zoo`, whose import loads torch and timm: functions import from it when their command runs,
so that help is printed at once.
"""

from .main import main

__all__ = ['main']
