"""Writing files whole or not at all, and reading pickles."""

import argparse
import contextlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Iterator, Union

__all__ = ['read_pickle', 'written_whole']


def read_pickle(path: Union[str, Path], mmap: bool = False) -> Any:
    """Read what `torch.save` wrote, with `weights_only=True`, after its checksums: `torch.load` ignores them.

    Args:
        path: The file.
        mmap: Map the tensors instead of reading them; their checksums are compared all the same.

    Returns:
        The object.

    Raises:
        ValueError: A part of the file differs from its checksum, or is packed or shared: torch never does either,
            and a small file could fill the memory.
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
    """Write a file in a temporary folder beside its place, then move it there.

    Args:
        file: The file to write; one that is there is replaced.

    Yields:
        The path to write to, of the same name, in a new hidden folder whose name cannot be guessed. It is removed if
        anything fails, and `file` stays as it was.
    """
    with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=file.parent) as folder:
        unfinished = Path(folder, file.name)
        yield unfinished
        os.replace(unfinished, file)
