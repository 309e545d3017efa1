"""Writing files whole or not at all, and reading pickles."""

import argparse
import contextlib
import functools
import os
import secrets
import sys
import zipfile
from pathlib import Path
from typing import Any, Iterator, Union

from filelock import FileLock, Timeout

if sys.platform != 'win32':
    import fcntl

__all__ = ['UNFINISHED', 'locked', 'one_at_a_time', 'read_pickle', 'written_whole']

# Prefix of files that are being written, or whose writer was killed.
UNFINISHED = '.unfinished-'


def read_pickle(path: Union[str, Path], mmap: bool = False) -> Any:
    """Read a file of `torch.save` with `weights_only=True`, after comparing checksums.

    Args:
        path: The file.
        mmap: Map the tensors instead of reading them. Checksums, which `torch.load` ignores, are compared anyway.

    Returns:
        The object.

    Raises:
        ValueError: A part of the file differs from its checksum, or is compressed or shared. torch writes no such
            files, and a small one could fill the memory.
        pickle.UnpicklingError: The file holds more than tensors, plain values and `argparse.Namespace`.
    """
    import torch
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            overlapping = sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size
            damaged = packed[0] if packed else 'its list of parts' if overlapping else archive.testzip()
        if damaged is not None:
            raise ValueError(f'{path} is damaged in {damaged}: get the file again.')
    with torch.serialization.safe_globals([argparse.Namespace]):  # timm's train.py puts its arguments in
        return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Write a file under another name beside its place, then move it there.

    Args:
        file: The file to write; one that is there is replaced.

    Yields:
        The path to write to: an empty hidden file of a random name, without an ending, so that no reader of images
        takes it for one if this process is killed. If anything fails it is removed, and `file` stays as it was.

    Raises:
        OSError: The folder of `file` is missing or cannot be written.
    """
    unfinished = file.with_name(f'{UNFINISHED}{secrets.token_hex(8)}')
    try:
        held = open(unfinished, 'xb')
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    try:
        with held:
            if sys.platform == 'win32':
                held.close()  # an open file cannot be moved there
            else:
                fcntl.flock(held, fcntl.LOCK_EX)
                _clear_leftovers(file.parent.resolve())
            yield unfinished
            os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


@functools.lru_cache(maxsize=None)
def _clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left. Done once per process: folders may be large."""
    for leftover in folder.glob(f'{UNFINISHED}*'):
        with contextlib.suppress(OSError), open(leftover, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where a living process holds it
            leftover.unlink()


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let processes write into a folder one after the other, without a lock file.

    Args:
        folder: The folder, which must exist.

    Yields:
        Nothing, while no other process is inside. On Windows and some network disks, folders cannot be locked and
        processes do not wait.
    """
    if sys.platform == 'win32':
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that call this function.

    Args:
        folder: The folder, made if it is missing. Its file `.lock` is the lock, which ends with this process at latest.

    Yields:
        Nothing, while the folder is locked.

    Raises:
        RuntimeError: Another process uses the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / '.lock')
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(f'{folder} is in use by another run: wait for it, or name another folder.') from error
    try:
        yield
    finally:
        lock.release()
