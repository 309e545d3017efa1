"""Commands of segmentation: segment train, evaluate and predict."""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any, Dict

from .._files import written_whole
from .arguments import AddCommand, key_value, positive, whole

__all__ = ['add_commands']


def add_commands(add: AddCommand) -> None:
    command = add(
        'segment', None, 'train, evaluate and use segmentation networks',
        'Train, evaluate and use segmentation networks on folders of images and masks.')
    commands = command.add_subparsers(metavar='COMMAND', required=True)

    train = commands.add_parser(
        'train', help='train a network', description='Train a network. Given again, the command goes on with a run '
        'that was interrupted; by torchrun it runs on several devices.')
    train.set_defaults(run=_train)
    train.add_argument('data', metavar='DATA', help='folder of images and masks, laid out as CamVid, VOC or ADE20K')
    train.add_argument('--output', required=True, metavar='FOLDER', help='folder of the run')
    _add_settings(train)

    evaluate = commands.add_parser(
        'evaluate', help='measure a trained network', description='Measure a network that training wrote: mean IoU, '
        'pixel accuracy, boundary F-score, IoU of each class and, with --json, the confusion matrix.')
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument('network', metavar='RUN', help='best or last in the folder of a run')
    evaluate.add_argument('data', metavar='DATA', help='folder of images and masks')
    evaluate.add_argument('--split', default='val', help='split to measure on (default: val)')
    evaluate.add_argument('--pictures', metavar='FOLDER', help='draw image, truth, prediction and error of images')
    evaluate.add_argument('--num-pictures', type=positive, default=8, metavar='N', help='how many (default: 8)')
    evaluate.add_argument('--json', metavar='FILE', help='write the scores as JSON, the confusion matrix among them')

    predict = commands.add_parser(
        'predict', help='write masks of images', description='Write for each image a mask with the values of the data '
        'set that the network was trained on, and a picture.')
    predict.set_defaults(run=_predict)
    predict.add_argument('network', metavar='RUN', help='best or last in the folder of a run')
    predict.add_argument('images', nargs='+', metavar='IMAGE', help='image')
    predict.add_argument('--output', required=True, metavar='FOLDER', help='folder to write to')

    for parser in (evaluate, predict):
        parser.add_argument(
            '--window', nargs=2, type=positive, metavar=('H', 'W'), help='slide a window of this size over images')
        parser.add_argument('--overlap', type=float, default=0.5, metavar='X', help='overlap of windows (default: 0.5)')
        parser.add_argument('--flip', action='store_true', help='average with the mirrored image')
    for parser in (train, evaluate, predict):
        parser.add_argument('--device', help='device to run on (default: cuda if there is one, else cpu)')
    for parser in (train, evaluate):
        parser.add_argument(
            '--workers', type=whole, default=2, metavar='N', help='processes reading images (default: 2)')


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each setting of training, named and explained as it is there."""
    from ..segmentation.settings import AMP, TrainSettings
    helps = dict(re.findall(r'^ {8}(\w+): (.+?)\.$', TrainSettings.__doc__ or '', re.MULTILINE))
    numbers = {'epochs': positive, 'batch_size': positive, 'in_chans': positive, 'val_every': positive}
    for field in dataclasses.fields(TrainSettings):
        if field.name in ('data', 'model_kwargs'):
            continue
        kwargs: Dict[str, Any] = dict(default=field.default, help=helps.get(field.name, ''))
        if field.default is False:
            kwargs.update(action='store_true')
        elif field.name in ('img_size', 'crop_size'):
            kwargs.update(type=positive, nargs=2, metavar=('H', 'W'))
        elif field.name == 'scale':
            kwargs.update(type=float, nargs=2, metavar=('MIN', 'MAX'))
        elif field.name == 'encoder':
            kwargs.update(type=lambda text: None if text.lower() == 'none' else text)
        elif field.name == 'amp':
            kwargs.update(choices=list(AMP))
        else:
            kwargs.update(type=numbers.get(field.name, type(field.default)), metavar='X')
        if field.default not in (False, None):
            kwargs['help'] += ' (default: %(default)s)'
        parser.add_argument(f'--{field.name.replace("_", "-")}', **kwargs)
    parser.add_argument('--model-kwargs', nargs='*', type=key_value, default=[], metavar='NAME=VALUE',
                        help='arguments of the network, such as memory=False')


def _device(args: argparse.Namespace) -> str:
    import torch
    return args.device or ('cuda' if torch.cuda.is_available() else 'cpu')


def _train(args: argparse.Namespace) -> None:
    from ..segmentation.settings import TrainSettings
    from ..segmentation.training import train
    names = {field.name for field in dataclasses.fields(TrainSettings)}
    given: Dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}
    given.update(model_kwargs=dict(args.model_kwargs))
    settings = TrainSettings(**given)
    best = train(settings, args.output, _device(args), args.workers, sys.stderr.isatty())
    print(f'best epoch {best["epoch"]}: mIoU {best["miou"]:.2f} %, {args.output}/best')


def _evaluate(args: argparse.Namespace) -> None:
    import torch

    from ..segmentation.data import SegmentationDataset, eval_transform, read_image, read_labels
    from ..segmentation.evaluation import evaluate, predict_labels, predict_probabilities
    from ..segmentation.metrics import as_row
    from ..segmentation.pictures import draw_prediction
    from ..segmentation.training import load_run
    model, labels, settings = load_run(args.network, _device(args))
    transform = eval_transform(settings.in_chans, settings.img_size)
    dataset = SegmentationDataset(args.data, args.split, labels, settings.in_chans, transform)
    options = dict(window=args.window, overlap=args.overlap, flip=args.flip)
    scores = evaluate(
        model, dataset, len(labels.names), num_workers=args.workers, progress=sys.stderr.isatty(), **options)
    for name, value in as_row(scores, labels.names).items():
        print(f'{name.replace("_", " ", 1)}: {value:.2f} %')
    if args.json:
        with written_whole(Path(args.json)) as unfinished:
            unfinished.write_text(json.dumps(_without_nan(scores._asdict())), encoding='utf-8')
    for i in range(min(args.num_pictures, len(dataset)) if args.pictures else 0):
        sample, (image, _) = dataset.samples[i], dataset[i]
        pixels, truth = read_image(sample.image, settings.in_chans), read_labels(sample.mask, labels)
        probabilities = predict_probabilities(model, image[None].to(next(model.parameters()).device), **options)
        probabilities = torch.nn.functional.interpolate(probabilities, size=truth.shape, mode='bilinear')
        draw_prediction(
            Path(args.pictures) / f'{sample.image.stem}.png', pixels, predict_labels(probabilities)[0].cpu(), labels,
            truth)


def _predict(args: argparse.Namespace) -> None:
    import torch
    from torchvision import tv_tensors

    from ..segmentation.data import eval_transform, read_image
    from ..segmentation.evaluation import predict_labels, predict_probabilities
    from ..segmentation.pictures import draw_prediction, mask_of
    from ..segmentation.training import load_run
    output = Path(args.output)
    masks: Dict[Path, Path] = {}
    for file in map(Path, args.images):
        mask = output / f'{file.stem}.png'
        if mask in masks or mask.exists() and any(mask.samefile(f) for f in args.images if Path(f).exists()):
            raise ValueError(
                f'The mask of {file} would be written to {mask}, where {masks.get(mask, "an image")} has its place: '
                'name another folder, or give images of other names.')
        masks[mask] = file
    device = _device(args)
    model, labels, settings = load_run(args.network, device)
    transform = eval_transform(settings.in_chans, settings.img_size)
    output.mkdir(parents=True, exist_ok=True)
    for mask, file in masks.items():
        pixels = read_image(file, settings.in_chans)
        image = transform(tv_tensors.Image(pixels)).as_subclass(torch.Tensor)[None].to(device)
        probabilities = predict_probabilities(model, image, args.window, args.overlap, args.flip)
        probabilities = torch.nn.functional.interpolate(probabilities, size=pixels.shape[-2:], mode='bilinear')
        predicted = predict_labels(probabilities)[0].cpu()
        with written_whole(mask) as unfinished:
            mask_of(predicted, labels).save(unfinished)
        draw_prediction(mask.with_suffix('.picture.png'), pixels, predicted, labels)
        print(mask)


def _without_nan(scores: Any) -> Any:
    """Scores as JSON can say them: null for classes that are not there."""
    if isinstance(scores, dict):
        return {name: _without_nan(value) for name, value in scores.items()}
    if isinstance(scores, list):
        return [_without_nan(value) for value in scores]
    return None if scores != scores else scores
