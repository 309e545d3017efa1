"""A program that only starts `mlfm-zoo run`: unlike the command, it does not load torch first, which takes seconds."""

import runpy
import sys
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / 'mlfm_zoo_cli' / 'launch' / '__init__.py'

if __name__ == '__main__':
    keep_memory = sys.argv[1] == '--keep-memory'
    runpy.run_path(str(LAUNCH))['run'](sys.argv[1 + keep_memory:], keep_memory)
