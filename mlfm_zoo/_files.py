"""Writing files whole or not at all."""

import contextlib
import os
from pathlib import Path
from typing import Iterator

__all__ = ['written_whole']


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Let a file be written beside its place, and move it there when it is whole.

    Args:
        file: The file to write.

    Yields:
        The path to write to, with the same ending; what was written there is removed if anything fails.
    """
    unfinished = file.with_name(f'.unfinished-{os.getpid()}-{file.name}')
    try:
        yield unfinished
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
