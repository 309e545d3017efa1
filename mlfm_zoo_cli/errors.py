"""From an error to one sentence for a terminal."""

import re

from safetensors import SafetensorError

__all__ = ['FAILURES', 'sentence']

# What a command may fail with, for reasons outside this package. Any other error is a fault of the package.
FAILURES = (EOFError, MemoryError, OSError, RuntimeError, SafetensorError, ValueError)


def sentence(error: Exception) -> str:
    """The message of an error in one line; a system error also gets file and remedy."""
    from mlfm_zoo._terminal import printable
    text = str(error) or type(error).__name__
    if 'Original Traceback (most recent call last)' in text:  # a DataLoader's worker adds it to the message
        text = re.sub(r'^[\w.]+: (\[Errno \d+\] )?', '', text.strip().splitlines()[-1])
    elif isinstance(error, OSError) and error.strerror:
        text = (f'{error.filename or "A file"} cannot be read or written ({error.strerror}): check the path, who may '
                'use it, and the space on the disk.')
    return printable(' '.join(line.strip() for line in text.splitlines()))
