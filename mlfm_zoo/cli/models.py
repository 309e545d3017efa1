"""Commands that use a network: convert, evaluate, predict."""

import argparse
import csv
import dataclasses
import json
import sys
from typing import Any, Dict, List

import timm
import torch.nn as nn

from ..data import imagenet100
from ..hub.manifest import load_manifest
from ..workflow.convert import convert_checkpoint
from ..workflow.evaluate import evaluate
from ..workflow.predict import Prediction, best_checkpoint, draw_predictions, find_images, predict
from .arguments import AddCommand, key_value, positive, whole

__all__ = ['add_commands', 'create']


def add_commands(add: AddCommand) -> None:
    command = add(
        'convert', _convert, 'make a released checkpoint into a folder that timm loads',
        "Convert a checkpoint of the authors' code: MobileNetV2 of any width, with memory or without, ResNet10, 18 or "
        '34, or GSSDNet of any width. Network and options are recognised from the file.')
    command.add_argument('checkpoint', help="file written by the authors' code")
    command.add_argument('--model-kwargs', nargs='*', default=[], type=key_value, metavar='NAME=VALUE',
                         help='arguments of the network that no file tells, such as thumbnail=True of a GSSDNet')
    command.add_argument('--output', required=True, metavar='FOLDER', help='folder to make; must not exist or be empty')

    command = add(
        'evaluate', _evaluate, 'measure top-1 and top-5 accuracy of a pretrained model on an image folder',
        "Accuracy of a pretrained model on an image folder, through timm's dataset, transform and loader.")
    command.add_argument('model', help='a name that timm.create_model takes, local-dir:FOLDER for a folder')
    command.add_argument('data', help='folder that holds a folder of images for each class')
    command.add_argument(
        '--imagenet100', action='store_true',
        help='number the classes as ImageNet100 does, also where the data has only some of them')
    command.add_argument('--img-size', type=positive, metavar='N', help="image size in pixels, instead of the model's")
    command.add_argument('--batch-size', type=positive, default=32, metavar='N', help='images a batch (default: 32)')
    command.add_argument('--workers', type=whole, default=2, metavar='N', help='processes reading images (default: 2)')
    command.add_argument('--model-kwargs', nargs='*', default=[], type=key_value, metavar='NAME=VALUE',
                         help='arguments of the network, such as memory=False')
    command.add_argument('--device', default='cpu', help='device to run on (default: cpu)')

    command = add(
        'predict', _predict, 'say what a pretrained network sees on images',
        'Print the most probable classes of each image in words. Networks are those of timm and of this package; '
        "labels are those of the network's config, of ImageNet100 or of ImageNet-1k.")
    command.add_argument('images', nargs='+', metavar='IMAGE', help='file of an image, or a folder of images')
    command.add_argument(
        '--model', metavar='NAME', help='a name that timm.create_model takes (default: the best network of this '
        'package that has ImageNet100 weights)')
    command.add_argument('--topk', type=positive, default=5, metavar='N', help='classes for each image (default: 5)')
    command.add_argument('--format', choices=('text', 'json', 'csv'), default='text', help='form of what is printed')
    command.add_argument('--output', metavar='FILE', help='picture to draw, of the images with their classes')
    command.add_argument('--model-kwargs', nargs='*', default=[], type=key_value, metavar='NAME=VALUE',
                         help='arguments of the network, such as memory=False')
    command.add_argument('--device', default='cpu', help='device to run on (default: cpu)')


def _convert(args: argparse.Namespace) -> None:
    conversion = convert_checkpoint(args.checkpoint, args.output, dict(args.model_kwargs))
    options = ', '.join(f'{name}={value!r}' for name, value in conversion.model_args.items())
    print(f'{conversion.architecture} ({options}) -> {args.output}')
    print(f"Load it with timm.create_model('local-dir:{args.output}', pretrained=True), after import mlfm_zoo.")


def create(name: str, model_args: Dict[str, Any]) -> nn.Module:
    """A pretrained model; what is wrong with a folder's files is said with the folder's name."""
    if ':' not in name and not timm.is_model(name):
        raise ValueError(f'timm knows no model named {name}: give a registered name, or local-dir:FOLDER for a folder.')
    if any(c.name == name and c.kind == 'initialisation' for c in load_manifest().values()):
        raise ValueError(
            f'{name} is an initialisation, which has yet to be trained on DCT coefficients and answers nothing before: '
            'train it, and give the weights that come out.')
    try:
        return timm.create_model(name, pretrained=True, **model_args)
    except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        what = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise ValueError(f'{name} could not be loaded ({what}): give a whole folder with config.json and weights, or a '
                         'registered name.') from None


def _evaluate(args: argparse.Namespace) -> None:
    model = create(args.model, dict(args.model_kwargs))
    class_names = imagenet100.SYNSETS if args.imagenet100 else None
    result = evaluate(
        model, args.data, class_names=class_names, img_size=args.img_size, batch_size=args.batch_size,
        num_workers=args.workers, device=args.device, progress=sys.stdout.isatty())
    for name, correct in (('top-1', result.top1), ('top-5', result.top5)):
        print(f'{name}: {correct} of {result.total} ({100 * correct / result.total:.2f} %)')


def _predict(args: argparse.Namespace) -> None:
    files = find_images(args.images)
    model = create(args.model or best_checkpoint().name, dict(args.model_kwargs))
    predictions: List[Prediction] = []
    faults: List[str] = []
    for _, found in predict(model, files, args.topk, args.device):
        if isinstance(found, str):
            faults.append(found)
            continue
        predictions.append(found)
        if args.format == 'text':
            print(found.file)
            for answer in found.answers:
                print(f'  {100 * answer.probability:5.1f} %  {answer.label}')
    if args.format == 'json':
        rows = [dict(file=str(p.file), answers=[dataclasses.asdict(a) for a in p.answers]) for p in predictions]
        print(json.dumps(rows, indent=2))
    elif args.format == 'csv':
        table = csv.writer(sys.stdout)
        table.writerow(['file', 'rank', 'index', 'label', 'probability'])
        for p in predictions:
            for rank, answer in enumerate(p.answers, start=1):
                table.writerow([p.file, rank, *dataclasses.astuple(answer)])
    if args.output and predictions:
        draw_predictions(predictions, args.output)
    if faults:
        more = f' (and {len(faults) - 1} more such files)' if len(faults) > 1 else ''
        raise ValueError(f'{faults[0][:-1]}{more}.')
