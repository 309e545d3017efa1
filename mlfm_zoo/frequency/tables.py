"""Files of an analysis: tables, and the records from which a run resumes."""

import contextlib
import csv
import json
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, Mapping, Sequence

from .._files import locked, written_whole

__all__ = ['damage', 'open_table', 'read_record', 'read_table', 'resumable', 'write_record', 'write_table']


@contextlib.contextmanager
def resumable(folder: Path, name: str, settings: Dict[str, Any]) -> Iterator[None]:
    """Lock the folder of an analysis; raise ValueError if the settings recorded in it differ."""
    settings = json.loads(json.dumps(settings))
    with locked(folder):
        file = folder / name
        before = read_record(file) if file.exists() else settings
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise ValueError(
                f'{folder} holds an analysis with other settings ({", ".join(changed)}): name another folder, or '
                'remove it.')
        write_record(file, settings)
        yield


@contextlib.contextmanager
def damage(file: Path) -> Iterator[None]:
    """Turn the errors of a damaged file into one sentence."""
    try:
        yield
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f'{file} is damaged ({type(error).__name__}: {str(error)[:100]}): remove {file.parent}, or name another '
            'folder.') from error


def read_record(file: Path) -> Dict[str, Any]:
    with damage(file):
        return dict(json.loads(file.read_text(encoding='utf-8')))


def write_record(file: Path, record: Dict[str, Any]) -> None:
    with written_whole(file) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')


def open_table(file: Path, mode: str) -> IO[str]:
    """Open a CSV file; image names that are not UTF-8 keep their bytes."""
    return open(file, mode, newline='', encoding='utf-8', errors='surrogateescape')


def read_table(file: Path, columns: Mapping[str, Callable[[str], Any]]) -> Iterator[Dict[str, Any]]:
    """Read these columns of a CSV file, each converted by its function; raise ValueError if that fails."""
    with open_table(file, 'r') as f, damage(file):
        reader = csv.DictReader(f)
        if missing := set(columns).difference(reader.fieldnames or ()):
            raise ValueError(f'it lacks the column {min(missing)}')
        for row in reader:
            if None in row.values():
                raise ValueError(f'line {reader.line_num} is too short')
            yield {name: convert(row[name]) for name, convert in columns.items()}


def write_table(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file, its columns and rows, as a whole or not at all."""
    with written_whole(file) as unfinished, open_table(unfinished, 'w') as f:
        csv.writer(f).writerows([columns, *rows])
