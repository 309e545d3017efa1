"""Files of an analysis: tables, and the records from which a run resumes."""

import contextlib
import csv
import json
from pathlib import Path
from typing import IO, Any, Dict, Iterator, Sequence

from .._files import locked, written_whole
from .._terminal import printable

__all__ = ['damaged', 'open_table', 'read_record', 'read_table', 'resumable', 'write_record', 'write_table']


def damaged(file: Path) -> ValueError:
    """Make the error for a file of an analysis that no run can have written."""
    return ValueError(f'{printable(file)} is damaged: name another folder, or remove the analysis in this one.')


@contextlib.contextmanager
def resumable(folder: Path, name: str, settings: Dict[str, Any]) -> Iterator[None]:
    """Lock an analysis's folder, and check that its settings are the same as before.

    Args:
        folder: The folder, made if it is missing.
        name: Name of the record of settings in it.
        settings: What must be the same when a run resumes.

    Yields:
        Nothing, while the folder is this process's.

    Raises:
        RuntimeError: Another process works in the folder.
        ValueError: The folder holds an analysis with other settings.
    """
    settings = json.loads(json.dumps(settings))
    with locked(folder):
        file = folder / name
        before = read_record(file) if file.exists() else settings
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise ValueError(
                f'{folder} holds an analysis with other settings ({", ".join(changed)}): name another folder, or '
                'remove it.')
        if not file.exists():
            write_record(file, settings)
        yield


def read_record(file: Path) -> Dict[str, Any]:
    """Read a JSON record of an earlier run; a ValueError if the file is damaged."""
    try:
        return dict(json.loads(file.read_text(encoding='utf-8')))
    except (RecursionError, TypeError, ValueError) as error:
        raise damaged(file) from error


def write_record(file: Path, record: Dict[str, Any]) -> None:
    """Write a record as JSON, as a whole or not at all."""
    with written_whole(file) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')


def open_table(file: Path, mode: str) -> IO[str]:
    """Open a CSV file; image names that are not UTF-8 keep their bytes."""
    return open(file, mode, newline='', encoding='utf-8', errors='surrogateescape')


@contextlib.contextmanager
def read_table(file: Path) -> Iterator[Iterator[Dict[str, str]]]:
    """Read the rows of a CSV file by the names of their columns.

    A row that the `with` block cannot use, because it lacks a column or a number, makes the file damaged, a ValueError.
    """
    try:
        with open_table(file, 'r') as f:
            yield csv.DictReader(f)
    except (csv.Error, LookupError, TypeError, ValueError) as error:
        raise damaged(file) from error


def write_table(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file, its columns and rows, as a whole or not at all."""
    with written_whole(file) as unfinished, open_table(unfinished, 'w') as f:
        csv.writer(f).writerows([columns, *rows])
