"""Run the command that arguments name; turn errors into a sentence and exit code."""

import argparse
import io
import os
import re
import sys
from typing import Any, Callable, List, Optional

from . import checkpoints, dct, export, frequency, models, segmentation, training
from .arguments import PACKAGE
from .errors import FAILURES, sentence

__all__ = ['main', 'make_parser']


def main(argv: Optional[List[str]] = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name, those of the process if None.

    Returns:
        Exit code: 0, 1 if the command failed, or 130 if it was interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    _open_streams()
    try:
        training.become_program(argv)
        args = make_parser().parse_args(argv)
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print('error: interrupted', file=sys.stderr)
        return 130
    except FAILURES as error:
        print(f'error: {sentence(error)}', file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line, with all its commands."""
    [version] = re.findall(r"^__version__ = '(.+)'$", (PACKAGE / '__init__.py').read_text(encoding='utf-8'), re.M)
    parser = argparse.ArgumentParser(prog='mlfm-zoo', description='Low-frequency memory networks for timm.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {version}')
    parser.add_argument('--print-completion', action=PrintCompletion, metavar='SHELL',
                        help='print the completion script of a shell, such as bash or zsh')
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

    for group in (checkpoints, training, models, export, frequency, dct, segmentation):
        group.add_commands(add)
    return parser


class PrintCompletion(argparse.Action):
    """Prints the completion script of a shell, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, shell: Any, option: Any = None):
        try:
            import shtab
            print(shtab.complete(make_parser(), shell))
        except ImportError:
            parser.error(f"{option} needs shtab, which is not installed: pip install 'mlfm-zoo[completion]'.")
        except NotImplementedError as error:
            parser.error(str(error))
        parser.exit()


def _open_streams() -> None:
    """Let commands print to closed streams, and print names that are not UTF-8."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            stream = open(os.devnull, 'w', encoding='utf-8')
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
