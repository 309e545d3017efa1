"""Commands for networks on DCT coefficients: statistics of data, and what a gate opens."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Iterator

import timm
import torch
from timm.data import create_loader, resolve_model_data_config

from .._matplotlib import require_matplotlib
from ..dct import draw_open, measure_statistics, share_open
from ..workflow.evaluate import image_mode, open_images
from .arguments import AddCommand, key_value, positive, whole
from .models import create

__all__ = ['add_commands']


def add_commands(add: AddCommand) -> None:
    command = add(
        'dct-statistics', _statistics, 'measure mean and deviation of each DCT coefficient of images',
        'Measure what dct_statistics of a network takes, over the images of a folder as the network gets them. '
        'train.py takes the file with --model-kwargs dct_statistics=FILE.')
    command.add_argument('data', help='folder of images, in folders of their classes or not')
    command.add_argument('--model', default='dct_resnet50_24s', metavar='NAME',
                         help='network whose image size and normalisation are taken (default: dct_resnet50_24s)')
    command.add_argument('--output', required=True, metavar='FILE', help='JSON file to write')
    _add_reading(command)

    command = add(
        'dct-gate', _gate, 'count and draw how often the gate of a network opens each DCT channel',
        "The share of images for which each of the 192 channels is open, as JSON, and as a picture like the paper's "
        'figure 5.')
    command.add_argument('model', help='a name that timm.create_model takes, local-dir:FOLDER for a folder')
    command.add_argument('data', help='folder of images, in folders of their classes or not')
    command.add_argument('--output', required=True, metavar='FILE', help='picture to write, .png')
    command.add_argument('--model-kwargs', nargs='*', default=[], type=key_value, metavar='NAME=VALUE',
                         help='arguments of the network')
    _add_reading(command)


def _add_reading(command: argparse.ArgumentParser) -> None:
    command.add_argument('--img-size', type=positive, metavar='N', help="image size in pixels, instead of the model's")
    command.add_argument('--batch-size', type=positive, default=32, metavar='N', help='images a batch (default: 32)')
    command.add_argument('--workers', type=whole, default=2, metavar='N', help='processes reading images (default: 2)')


def _images(args: argparse.Namespace, config: Any) -> Iterator[torch.Tensor]:
    """Batches of a folder's images, as a network gets them."""
    dataset = open_images(args.data)
    dataset.input_img_mode = image_mode(config)
    loader = create_loader(
        dataset, input_size=config['input_size'], batch_size=args.batch_size, interpolation=config['interpolation'],
        mean=config['mean'], std=config['std'], crop_pct=config['crop_pct'], num_workers=args.workers,
        persistent_workers=False, use_prefetcher=False)
    done = 0
    for images, _ in loader:
        yield images
        done += len(images)
        if sys.stderr.isatty():
            print(f'\r{done}/{len(dataset)} images', end='\n' if done == len(dataset) else '', file=sys.stderr)


def _data_config(args: argparse.Namespace, model: torch.nn.Module) -> Any:
    return resolve_model_data_config(model, args=dict(img_size=args.img_size) if args.img_size else None)


def _write(text: str, file: Path) -> None:
    unfinished = file.with_name(f'.{file.name}')
    unfinished.write_text(text, encoding='utf-8')
    os.replace(unfinished, file)


def _statistics(args: argparse.Namespace) -> None:
    if not timm.is_model(args.model):
        raise ValueError(f'timm knows no model named {args.model}: give a registered name.')
    config = _data_config(args, timm.create_model(args.model, device='meta'))
    if config['input_size'][0] != 3:
        raise ValueError(f"{args.model} does not take RGB images, whose coefficients are measured: give one that does.")
    statistics = measure_statistics(_images(args, config), config['mean'], config['std'])
    _write(json.dumps(statistics._asdict()), Path(args.output))
    print(f'{args.output}: take it with dct_statistics={args.output}')


def _gate(args: argparse.Namespace) -> None:
    require_matplotlib()  # before a long run, not after it
    model = create(args.model, dict(args.model_kwargs))
    share = share_open(model, _images(args, _data_config(args, model)))
    picture = Path(args.output)
    draw_open(share, picture)
    _write(json.dumps(share.tolist()), picture.with_suffix('.json'))
    print(f'{share.sum():.1f} of {len(share)} channels are open on average; {picture.with_suffix(".json")} has each')
