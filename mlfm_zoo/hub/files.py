"""Verification of weight files on this machine."""

import hashlib
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

__all__ = ['CheckpointError', 'Weights', 'compare_file', 'file_digest', 'git_blob_id']


class CheckpointError(RuntimeError):
    """A checkpoint is unavailable, or its file is not the one that the manifest names."""


class Weights(NamedTuple):
    """A verified file of weights.

    Attributes:
        path: Where it is.
        model_args: Arguments of the network that the file's shapes decide, such as `memory_update`.
    """
    path: Path
    model_args: Dict[str, Any] = {}


def compare_file(
        path: Path,
        name: str,
        size: Optional[int] = None,
        sha256: Optional[str] = None,
        blob: Optional[str] = None,
) -> None:
    """Compare a file with its known size and digests; None is not compared.

    Args:
        path: The file.
        name: Name of the file in errors.
        size: Its size in bytes.
        sha256: Its SHA-256 in hexadecimal, or the first digits of it.
        blob: Its git blob id, see `git_blob_id`.

    Raises:
        CheckpointError: The file is missing, or differs.
    """
    try:
        actual = path.stat().st_size
        if size is not None and actual != size:
            raise CheckpointError(f'The file of {name} has {actual:,} bytes, expected {size:,}.')
        if sha256 is not None and not (digest := file_digest(path)).startswith(sha256):
            raise CheckpointError(f'The file of {name} has SHA-256 {digest}, expected {sha256}.')
        if blob is not None and (digest := git_blob_id(path)) != blob:
            raise CheckpointError(f'The file of {name} has the git blob id {digest}, expected {blob}.')
    except OSError as error:
        raise CheckpointError(
            f'The file of {name} at {path} cannot be read ({error.strerror}): install or download it again.') from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return _digest(path, hashlib.sha256())


def git_blob_id(path: Path) -> str:
    """The id that git gives a file's content: SHA-1 over a header and the content."""
    return _digest(path, hashlib.sha1(b'blob %d\0' % path.stat().st_size, usedforsecurity=False))


def _digest(path: Path, digest: Any) -> str:
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
