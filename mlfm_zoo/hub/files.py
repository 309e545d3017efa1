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
    """Raise CheckpointError unless a file has its known size and digests.

    `name` stands for the file in errors, `sha256` may be the first digits, and None is not compared.
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
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_blob_id(path: Path) -> str:
    """The id that git gives a file's content: SHA-1 over a header and the content."""
    content = path.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(content) + content, usedforsecurity=False).hexdigest()
