"""Writing files whole or not at all, and reading pickles."""

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any, Iterator, Union

__all__ = ['locked', 'read_pickle', 'written_whole']


def read_pickle(path: Union[str, Path], mmap: bool = False) -> Any:
    """Read what `torch.save` wrote, with `weights_only=True`, after its checksums: `torch.load` ignores them.

    Args:
        path: The file.
        mmap: Map the tensors instead of reading them; their checksums are compared all the same.

    Returns:
        The object.

    Raises:
        ValueError: A part of the file differs from its checksum, or is packed: torch never packs, and a small file
            could fill the memory.
        pickle.UnpicklingError: The file holds more than tensors and plain values.
    """
    import torch
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            damaged = packed[0] if packed else archive.testzip()
        if damaged is not None:
            raise ValueError(f'{path} is damaged in {damaged}: get the file again.')
    return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)


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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, those that ask too.

    Args:
        folder: The folder, made if it is missing. The file `.lock` stays in it; the lock ends with this process.

    Yields:
        Nothing, while the folder is locked. Windows has no such lock: nothing is excluded there.

    Raises:
        RuntimeError: Another process uses the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'a') as file:
        if os.name == 'posix':
            import fcntl
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(
                    f'{folder} is in use by another run: wait for it, or name another folder.') from error
        yield
