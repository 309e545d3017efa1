"""Starts the command line, which is the package `mlfm_zoo_cli`."""

import sys

from mlfm_zoo_cli import main

if __name__ == '__main__':
    sys.exit(main())
