"""Command line: `python -m mlfm_zoo COMMAND`. A command that cannot go on says why in one sentence and exits with 1."""

from .main import main

__all__ = ['main']
