"""The command that opens a page to play with."""

import argparse

from .arguments import AddCommand, positive

__all__ = ['add_commands']


def add_commands(add: AddCommand) -> None:
    command = add(
        'app', _app, 'open a page to play with, on this machine',
        'A page for the browser, on 127.0.0.1: the answers of a network on a photograph, with memory and without, and '
        'what the memory holds. Nothing is sent to other machines; weights that are not here are downloaded if you '
        'choose them.')
    command.add_argument(
        '--port', type=positive, metavar='N', help='port of the page (default: the first free one from 7860 on)')


def _app(args: argparse.Namespace) -> None:
    from mlfm_zoo.app import launch
    page, address = launch(server_name='127.0.0.1', server_port=args.port, prevent_thread_lock=True)
    print(f'Open {address} in a browser. Ctrl-C stops the page.', flush=True)
    page.block_thread()
