"""Commands of segmentation: segment train, evaluate and predict."""

import argparse
import dataclasses
import json
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

from .arguments import PACKAGE, AddCommand, add_device, add_model_kwargs, add_workers, best_device, positive

__all__ = ['add_commands']


def add_commands(add: AddCommand) -> None:
    command = add(
        'segment', None, 'train, evaluate and use segmentation networks',
        'Train, evaluate and use segmentation networks on folders of images and masks.')
    commands = command.add_subparsers(metavar='COMMAND', required=True)

    train = commands.add_parser(
        'train', help='train a network', description='Train a network. The same command resumes an interrupted run; '
        'torchrun -m mlfm_zoo segment train runs it on several devices.')
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
        add_device(parser)
    for parser in (train, evaluate):
        add_workers(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each setting of training, named and explained as it is there."""
    TrainSettings = runpy.run_path(str(PACKAGE / 'segmentation' / 'settings.py'))['TrainSettings']
    helps = dict(re.findall(r'^ {8}(\w+): (.+?)\.$', TrainSettings.__doc__ or '', re.MULTILINE))
    special: Dict[str, Dict[str, Any]] = dict(
        img_size=dict(type=positive, nargs=2, metavar=('H', 'W')),
        crop_size=dict(type=positive, nargs=2, metavar=('H', 'W')),
        scale=dict(type=float, nargs=2, metavar=('MIN', 'MAX')),
        encoder=dict(type=lambda text: None if text.lower() == 'none' else text),
    )
    for field in dataclasses.fields(TrainSettings):
        if field.name in ('data', 'model_kwargs'):
            continue
        kwargs: Dict[str, Any] = dict(default=field.default, help=helps.get(field.name, ''))
        if field.default is False:
            kwargs.update(action='store_true')
        else:
            kwargs.update(special.get(field.name, dict(type=type(field.default), metavar='X')))
        if field.default not in (False, None):
            kwargs['help'] += ' (default: %(default)s)'
        parser.add_argument(f'--{field.name.replace("_", "-")}', **kwargs)
    add_model_kwargs(parser)


def _train(args: argparse.Namespace) -> None:
    from mlfm_zoo.segmentation import TrainSettings, train
    names = {field.name for field in dataclasses.fields(TrainSettings)}
    given: Dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}
    settings = TrainSettings(**{**given, 'model_kwargs': dict(args.model_kwargs)})
    best = train(settings, args.output, best_device(args.device), args.workers, sys.stderr.isatty())
    print(f'best epoch {best["epoch"]}: mIoU {best["miou"]:.2f} %, {args.output}/best')


def _evaluate(args: argparse.Namespace) -> None:
    from mlfm_zoo._files import written_whole
    from mlfm_zoo._terminal import printable
    from mlfm_zoo.segmentation import data, evaluate, load_run, metrics, pictures
    model, labels, settings = load_run(args.network, best_device(args.device))
    transform = data.eval_transform(model.mean, model.std, settings.img_size)
    dataset = data.SegmentationDataset(args.data, args.split, labels, transform, settings.in_chans)
    samples = dataset.samples[:args.num_pictures] if args.pictures else []
    images = [sample.image for sample in samples]
    files = _outputs(images, Path(args.pictures or ''), ['.png'], [file for s in samples for file in s])
    scores = evaluate(
        model, dataset, len(labels.names), args.window, args.overlap, args.flip, num_workers=args.workers,
        progress=sys.stderr.isatty())
    for name, value in metrics.as_row(scores, labels.names).items():
        print(f'{printable(name.replace("_", " ", 1))}: {value:.2f} %')
    if args.json:
        # JSON has no NaN, which stands for classes that do not occur: it has null
        plain = json.loads(json.dumps(scores._asdict()), parse_constant=lambda _: None)
        with written_whole(Path(args.json)) as unfinished:
            unfinished.write_text(json.dumps(plain), encoding='utf-8')
    for i, (file,) in enumerate(files):
        pixels, truth = data.read_image(samples[i].image, settings.in_chans), data.read_labels(samples[i].mask, labels)
        predicted = _predict_labels(model, dataset[i][0], truth.shape, args)
        pictures.draw_prediction(file, pixels, predicted, labels, truth)


def _predict(args: argparse.Namespace) -> None:
    import torch
    from torchvision import tv_tensors

    from mlfm_zoo._files import written_whole
    from mlfm_zoo._terminal import printable
    from mlfm_zoo.segmentation import data, load_run, pictures
    images, output = [Path(image) for image in args.images], Path(args.output)
    outputs = _outputs(images, output, ['.png', '.picture.png'], images)
    model, labels, settings = load_run(args.network, best_device(args.device))
    transform = data.eval_transform(model.mean, model.std, settings.img_size)
    output.mkdir(parents=True, exist_ok=True)
    for file, (mask, picture) in zip(images, outputs):
        pixels = data.read_image(file, settings.in_chans)
        image = transform(tv_tensors.Image(pixels)).as_subclass(torch.Tensor)
        predicted = _predict_labels(model, image, pixels.shape[-2:], args)
        with written_whole(mask) as unfinished:
            pictures.mask_of(predicted, labels).save(unfinished, format='PNG')
        pictures.draw_prediction(picture, pixels, predicted, labels)
        print(printable(mask))


def _outputs(images: Sequence[Path], folder: Path, endings: Sequence[str], inputs: Sequence[Path]) -> List[List[Path]]:
    """Name the files to write for each image, none over another or over an input."""
    outputs = [[folder / f'{image.stem}{ending}' for ending in endings] for image in images]
    taken = {os.path.realpath(file) for file in inputs}
    for image, files in zip(images, outputs):
        for file in files:
            if os.path.realpath(file) in taken:
                raise ValueError(
                    f'What is predicted for {image} would be written to {file}, the place of an image or of '
                    "another's result: name another folder, or give images of other names.")
            taken.add(os.path.realpath(file))
    return outputs


def _predict_labels(model: Any, image: Any, size: Sequence[int], args: argparse.Namespace) -> Any:
    """Predict the class of each pixel of an image, enlarged to its size in the file."""
    import torch

    from mlfm_zoo.segmentation import predict_labels, predict_probabilities
    image = image[None].to(next(model.parameters()).device)
    probabilities = predict_probabilities(model, image, args.window, args.overlap, args.flip)
    probabilities = torch.nn.functional.interpolate(probabilities, size=size, mode='bilinear')
    return predict_labels(probabilities)[0].cpu()
