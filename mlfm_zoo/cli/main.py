"""From the arguments of a process to a command, and from what went wrong to one sentence and an exit code."""

import argparse
import os
import sys
from typing import Callable, List, Optional

from ..data import imagenet100
from ..workflow.launch import become_python, run
from . import checkpoints, dct, frequency, models, segmentation, training

__all__ = ['main']

LONGEST = 900  # characters of an error


def main(argv: Optional[List[str]] = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name, those of the process if None.

    Returns:
        Exit code: 0, 1 if the command could not go on, or 130 if it was interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    # two commands become another program, whose options are none of this parser's
    if argv[:1] == ['run']:
        keep_memory = argv[1:2] == ['--keep-memory']
        command = argv[1 + keep_memory:]
        if command[:1] not in ([], ['-h'], ['--help']):
            run(command, keep_memory)
    if argv[:1] == ['imagenet100']:
        become_python([imagenet100.__file__, *argv[1:]])
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print('error: interrupted', file=sys.stderr)
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        print(f'error: {_sentence(error)}', file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m mlfm_zoo', description='Low-frequency memory networks for timm.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    def add(
            name: str,
            run: Optional[Callable[[argparse.Namespace], None]],
            help: str,
            description: Optional[str] = None,
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=description or f'{help[0].upper()}{help[1:]}.')
        command.set_defaults(run=run)
        return command

    for group in (checkpoints, training, models, frequency, dct, segmentation):
        group.add_commands(add)
    return parser


def _sentence(error: Exception) -> str:
    """What an error says; of one that the system reports, with the file's name, and what to do."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f'{error.filename} cannot be used ({error.strerror}): check that the path is right and may be used.'
    text = str(error)  # which may repeat what a damaged file says, of any length
    return text if len(text) <= LONGEST else f'{text[:LONGEST // 2]} ... {text[-LONGEST // 4:]}'
