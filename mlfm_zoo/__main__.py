"""Starts the command line, which is in `mlfm_zoo.cli`."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
