"""Commands that use a network: convert, evaluate, predict, app."""

import argparse
import csv
import dataclasses
import json
import sys
from typing import List

from .arguments import AddCommand, add_device, add_model_kwargs, add_reading, best_device, positive

__all__ = ['add_commands']


def add_commands(add: AddCommand) -> None:
    command = add(
        'convert', _convert, 'make a released checkpoint into a folder that timm loads',
        "Convert a checkpoint of the authors' code: MobileNetV2 of any width, with memory or without, ResNet10, 18 or "
        '34, GSSDNet of any width, or a network on DCT coefficients. Network and options are recognized from the file.')
    command.add_argument('checkpoint', help="file written by the authors' code")
    add_model_kwargs(command, 'thumbnail=True of a GSSDNet, which no file tells')
    command.add_argument('--output', required=True, metavar='FOLDER', help='folder to make; must not exist or be empty')

    command = add(
        'evaluate', _evaluate, 'measure top-1 and top-5 accuracy of a pretrained model on an image folder',
        "Accuracy of a pretrained model on an image folder, through timm's dataset, transform and loader.")
    command.add_argument('model', help='a name that timm.create_model takes, local-dir:FOLDER for a folder')
    command.add_argument('data', help='folder that holds a folder of images for each class')
    command.add_argument(
        '--imagenet100', action='store_true',
        help='number the classes as ImageNet100 does, also where the data has only some of them')
    add_reading(command)
    add_model_kwargs(command)

    command = add(
        'predict', _predict, 'say what a pretrained network sees on images',
        'Print the most probable classes of each image in words. Networks are those of timm and of this package; '
        "labels are those of the network's config or of the data set that its tag names, or else numbers. "
        'The EXIF orientation of photographs is ignored, as timm does.')
    command.add_argument('images', nargs='+', metavar='IMAGE', help='file of an image, or a folder of images')
    command.add_argument(
        '--model', metavar='NAME', help='a name that timm.create_model takes (default: the best trained network '
        'whose weights are on this machine)')
    command.add_argument('--topk', type=positive, default=5, metavar='N', help='classes for each image (default: 5)')
    command.add_argument(
        '--imagenet100', action='store_true', help='label the classes as ImageNet100, whatever the network says')
    command.add_argument(
        '--format', choices=('text', 'json', 'csv'), default='text',
        help='output format; text and csv escape unprintable characters in names')
    command.add_argument('--output', metavar='FILE', help='picture to draw, of the images with their classes')
    add_model_kwargs(command)
    add_device(command)

    command = add(
        'app', _app, 'open a page to play with, on this machine',
        'A page for the browser, on 127.0.0.1: the answers of a network on a photograph, with memory and without, and '
        'what the memory holds. Nothing is sent to other machines; weights that are not here are downloaded if you '
        'choose them.')
    command.add_argument(
        '--port', type=positive, metavar='N', help='port of the page (default: the first free one from 7860 on)')


def _convert(args: argparse.Namespace) -> None:
    from mlfm_zoo._terminal import printable
    from mlfm_zoo.workflow.convert import convert_checkpoint
    conversion = convert_checkpoint(args.checkpoint, args.output, dict(args.model_kwargs))
    options = ', '.join(f'{name}={value!r}' for name, value in conversion.model_args.items())
    output = printable(args.output)
    print(f'{conversion.architecture} ({options}) -> {output}')
    print(f"Load it with timm.create_model('local-dir:{output}', pretrained=True), after import mlfm_zoo.")


def _evaluate(args: argparse.Namespace) -> None:
    from mlfm_zoo.data.imagenet100 import SYNSETS
    from mlfm_zoo.workflow.build import build_network
    from mlfm_zoo.workflow.evaluate import evaluate
    model = build_network(args.model, dict(args.model_kwargs), pretrained=True)
    result = evaluate(
        model, args.data, class_names=SYNSETS if args.imagenet100 else None,
        img_size=args.img_size, batch_size=args.batch_size, num_workers=args.workers, device=best_device(args.device),
        progress=sys.stdout.isatty())
    for name, correct in (('top-1', result.top1), ('top-5', result.top5)):
        print(f'{name}: {correct} of {result.total} ({100 * correct / result.total:.2f} %)')


def _predict(args: argparse.Namespace) -> None:
    from mlfm_zoo._terminal import printable
    from mlfm_zoo.data.imagenet100 import label_descriptions
    from mlfm_zoo.workflow import predict
    from mlfm_zoo.workflow.build import build_network
    files = predict.find_images(args.images)
    name = args.model
    if name is None:
        best = predict.trained_checkpoints()[0]
        name, better = best.name, [f'{c.name} ({c.num_classes} classes)' for c in predict.better_checkpoints(best)]
        more = f' With --model and a download: {", ".join(better)}.' if better else ''
        print(f'{name} ({best.num_classes} classes) is the best network on this machine.{more}', file=sys.stderr)
    model = build_network(name, dict(args.model_kwargs), pretrained=True)
    predictions: List[predict.Prediction] = []
    faults: List[str] = []
    labels = list(label_descriptions().values()) if args.imagenet100 else None
    for _, found in predict.predict(model, files, args.topk, best_device(args.device), labels):
        if isinstance(found, str):
            faults.append(found)
            continue
        predictions.append(found)
        if args.format == 'text':
            print(printable(found.file))
            for answer in found.answers:
                print(f'  {100 * answer.probability:5.1f} %  {printable(answer.label)}')
    if args.format == 'json':
        rows = [dict(file=str(p.file), answers=[dataclasses.asdict(a) for a in p.answers]) for p in predictions]
        print(json.dumps(rows, indent=2))
    elif args.format == 'csv':
        table = csv.writer(sys.stdout)
        table.writerow(['file', 'rank', 'index', 'label', 'probability'])
        for p in predictions:
            for rank, answer in enumerate(p.answers, start=1):
                table.writerow([printable(p.file), rank, answer.index, printable(answer.label), answer.probability])
    if args.output and predictions:
        predict.draw_predictions(predictions, args.output)
    if faults:
        more = f' (and {len(faults) - 1} more such files)' if len(faults) > 1 else ''
        raise ValueError(f'{faults[0][:-1]}{more}.')


def _app(args: argparse.Namespace) -> None:
    from mlfm_zoo.app import launch
    page, address = launch(server_name='127.0.0.1', server_port=args.port, prevent_thread_lock=True)
    print(f'Open {address} in a browser. Ctrl-C stops the page.', flush=True)
    page.block_thread()
