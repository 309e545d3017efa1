"""Arguments that several commands share, and the types of their values."""

import argparse
import ast
from pathlib import Path
from typing import Any, Callable, Optional, Tuple

__all__ = [
    'PACKAGE', 'AddCommand', 'add_device', 'add_model_kwargs', 'add_reading', 'add_workers', 'best_device', 'key_value',
    'positive', 'whole',
]

# Files of mlfm_zoo that are read or run without importing it, which takes seconds.
PACKAGE = Path(__file__).parents[1] / 'mlfm_zoo'

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


def add_model_kwargs(command: argparse.ArgumentParser, example: str = 'memory=False') -> None:
    """Add `--model-kwargs`, a list of pairs."""
    command.add_argument('--model-kwargs', nargs='*', default=[], type=key_value, metavar='NAME=VALUE',
                         help=f'arguments of the network, such as {example}')


def add_device(command: argparse.ArgumentParser) -> None:
    """Add `--device`, which `best_device` completes."""
    command.add_argument('--device', help='device to run on (default: cuda if available, else cpu)')


def add_reading(command: argparse.ArgumentParser) -> None:
    """Add the size of images, how many are read at a time, and the device."""
    command.add_argument('--img-size', type=positive, metavar='N', help="image size in pixels, instead of the model's")
    command.add_argument('--batch-size', type=positive, default=32, metavar='N', help='images per batch (default: 32)')
    add_workers(command)
    add_device(command)


def add_workers(command: argparse.ArgumentParser) -> None:
    """Add `--workers`."""
    command.add_argument('--workers', type=whole, default=2, metavar='N', help='processes reading images (default: 2)')


def best_device(device: Optional[str] = None) -> str:
    """The device that was asked for, or else a GPU where there is one."""
    import torch
    return device or ('cuda' if torch.cuda.is_available() else 'cpu')
