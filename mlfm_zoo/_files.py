"""Writing files whole or not at all."""

import contextlib
import os
from pathlib import Path
from typing import Iterator

__all__ = ['written_whole']


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside its place, then move it there.

    Args:
        file: The file to write; one that is there is replaced.

    Yields:
        The path to write to, with the same ending. It is removed if anything fails, and `file` stays as it was.
    """
    unfinished = file.with_name(f'.unfinished-{os.getpid()}-{file.name}')
    try:
        yield unfinished
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
