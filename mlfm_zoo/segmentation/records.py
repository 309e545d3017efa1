"""Dataclasses with values from users and JSON files, which check their types when created."""

import dataclasses
import json
import math
import reprlib
from pathlib import Path
from typing import Any, Type, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ['CheckedRecord', 'read_json']

RecordT = TypeVar('RecordT', bound='CheckedRecord')


class CheckedRecord:
    """Base of dataclasses that check their values against their annotations.

    Raises:
        ValueError: A value is of another type.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, kind):
                expected = str(getattr(kind, '__name__', kind) if not get_args(kind) else kind).replace('typing.', '')
                raise ValueError(f'{name} is {reprlib.repr(value)}, expected {expected}: correct it.')

    @classmethod
    def from_json(cls: Type[RecordT], fields: Any, source: object = 'The record') -> RecordT:
        """Make a record from the contents of a JSON file, which has lists for tuples.

        A ValueError that begins with `source` is raised if a field is unknown, missing or of another type.
        """
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        unknown = [name for name in fields if name not in known] if isinstance(fields, dict) else [fields]
        if unknown:
            raise ValueError(
                f'{source} has {reprlib.repr(unknown[0])}, expected an object with some of {", ".join(known)}: '
                'correct it.')
        try:
            return cls(**{name: _as_tuple(value) for name, value in fields.items()})
        except (TypeError, ValueError) as error:  # a TypeError names a field that is missing
            raise ValueError(f'{source} cannot be used: {error}') from error


def read_json(file: Path) -> Any:
    """Read a JSON file, with or without a byte order mark; a ValueError if it is not JSON, or nested too deeply."""
    try:
        return json.loads(file.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} cannot be read as JSON ({error}): correct or remove it.') from error


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type. An int counts as a float; a bool does not count as a number."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Union:
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        kinds = args[:1] * len(value) if args[-1] is ... and isinstance(value, tuple) else args
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or kind)
