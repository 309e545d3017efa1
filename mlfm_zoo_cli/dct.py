"""Commands for networks on DCT coefficients: data statistics, and what gates open."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Iterator

from .arguments import AddCommand, add_model_kwargs, add_reading, best_device

__all__ = ['add_commands']


def add_commands(add: AddCommand) -> None:
    command = add(
        'dct-statistics', _statistics, 'measure mean and deviation of each DCT coefficient of images',
        'Measure what dct_statistics of a network takes, over the images of a folder as the network gets them. '
        'train.py takes what the file says with --model-kwargs dct_statistics="$(cat FILE)".')
    command.add_argument('data', help='folder of images, in folders of their classes or not')
    command.add_argument('--model', default='dct_resnet50_24s', metavar='NAME',
                         help='network whose image size and normalisation are taken (default: dct_resnet50_24s)')
    command.add_argument('--output', required=True, metavar='FILE', help='JSON file to write')
    add_reading(command)

    command = add(
        'dct-gate', _gate, 'count and draw how often the gate of a network opens each DCT channel',
        "The share of images for which each of the 192 channels is open, as JSON, and as a picture like the paper's "
        'figure 5.')
    command.add_argument('model', help='a name that timm.create_model takes, local-dir:FOLDER for a folder')
    command.add_argument('data', help='folder of images, in folders of their classes or not')
    command.add_argument('--output', required=True, metavar='FILE', help='picture to write, .png')
    add_model_kwargs(command, 'dct_gate=True')
    add_reading(command)


def _images(args: argparse.Namespace, config: Any) -> Iterator[Any]:
    """Batches of a folder's images, as a network gets them, on the device."""
    from mlfm_zoo.data.folders import open_images, read_batches, usable_device
    dataset, device = open_images(args.data), usable_device(best_device(args.device))
    done = 0
    for images, _ in read_batches(dataset, config, args.batch_size, args.workers, device):
        yield images.to(device)
        done += len(images)
        if sys.stderr.isatty():
            print(f'\r{done}/{len(dataset)} images', end='\n' if done == len(dataset) else '', file=sys.stderr)


def _output(args: argparse.Namespace, ending: str) -> Path:
    """The file to write, checked before a long run and not after it."""
    file = Path(args.output)
    if file.suffix != ending or not file.parent.is_dir():
        raise ValueError(f'{file} cannot be written: name a file that ends with {ending}, in an existing folder.')
    return file


def _statistics(args: argparse.Namespace) -> None:
    from mlfm_zoo._files import written_whole
    from mlfm_zoo.data.folders import data_config
    from mlfm_zoo.dct import measure_statistics
    from mlfm_zoo.workflow.build import build_network
    file = _output(args, '.json')
    config = data_config(build_network(args.model, dict(device='meta')), args.img_size)
    if config['input_size'][0] != 3:
        raise ValueError(f"{args.model} does not take RGB images, whose coefficients are measured: give one that does.")
    statistics = measure_statistics(_images(args, config), config['mean'], config['std'])
    # six digits, so that a command line holds them
    with written_whole(file) as unfinished:
        unfinished.write_text(json.dumps([[float(f'{v:.6g}') for v in values] for values in statistics]))
    print(f'{file}: a network takes it as --model-kwargs dct_statistics="$(cat {file})"')


def _gate(args: argparse.Namespace) -> None:
    from mlfm_zoo._extras import require_matplotlib
    from mlfm_zoo._files import written_whole
    from mlfm_zoo.data.folders import data_config, usable_device
    from mlfm_zoo.dct import draw_open, gate_of, share_open
    from mlfm_zoo.workflow.build import build_network
    require_matplotlib()  # before a long run, not after it
    picture = _output(args, '.png')
    model = build_network(args.model, dict(args.model_kwargs), pretrained=True)
    num_chs = gate_of(model).conv1.in_channels
    if num_chs != 192:
        raise ValueError(f'The gate of {args.model} has {num_chs} channels, expected all 192: the picture is of those.')
    model.to(usable_device(best_device(args.device)))
    share = share_open(model, _images(args, data_config(model, args.img_size)))
    draw_open(share, picture)
    with written_whole(picture.with_suffix('.json')) as unfinished:
        unfinished.write_text(json.dumps(share.tolist()))
    print(f'{share.sum():.1f} of {len(share)} channels are open on average; {picture.with_suffix(".json")} has each')
