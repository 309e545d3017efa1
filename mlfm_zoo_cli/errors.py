"""From an error to one sentence for a terminal."""

import errno
import re

from safetensors import SafetensorError

__all__ = ['FAILURES', 'sentence']

# What a command may fail with, for reasons outside this package. Any other error is a fault of the package.
FAILURES = (EOFError, MemoryError, OSError, RuntimeError, SafetensorError, ValueError)

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sentence(error: Exception) -> str:
    """The message of an error in one line; a system error also gets file and remedy."""
    from mlfm_zoo._terminal import printable
    text = str(error)
    reason, file = (error.strerror, error.filename) if isinstance(error, OSError) else (None, None)
    if isinstance(error, SafetensorError) and (found := re.search(r'I/O error: (.+) \(os error', text)):
        reason = found[1]
    if 'Original Traceback (most recent call last)' in text:  # a DataLoader's worker adds it to the message
        text = re.sub(r'^[\w.]+: (\[Errno \d+\] )?', '', text.strip().splitlines()[-1])
    elif isinstance(error, OSError) and error.errno in NO_SPACE:
        text = f'{file or "A file"} cannot be written ({reason}): free space on the disk, and run the command again.'
    elif reason and file is not None:
        text = f'{file} cannot be used ({reason}): check that the path is right and may be used.'
    elif reason:
        text = f'A file cannot be written or read ({reason}): check the disk, and run the command again.'
    elif isinstance(error, UnicodeEncodeError):
        part = error.object[max(error.start - 80, 0):error.end + 80]
        text = f'{part} cannot be written as {error.encoding}: rename it.'
    elif isinstance(error, MemoryError):
        text = f'The memory is not enough ({text or "MemoryError"}): take smaller images or batches.'
    return printable(' '.join(line.strip() for line in text.splitlines()))
