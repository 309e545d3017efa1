"""Forms of arguments that several commands share."""

import argparse
import ast
from typing import Any, Callable, Tuple

__all__ = ['AddCommand', 'key_value', 'positive', 'whole']

# Adds a command: its name, the function that runs it, what it does in a few words and, optionally, in sentences.
AddCommand = Callable[..., argparse.ArgumentParser]


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def whole(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number, 0 or more')
    return int(text)


def key_value(text: str) -> Tuple[str, Any]:
    """NAME=VALUE, the value as a literal of Python or else as text."""
    key, equals, value = text.partition('=')
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form NAME=VALUE')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
