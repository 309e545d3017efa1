"""The command that analyses models by spatial frequency."""

import argparse
import sys
from typing import Any, Dict, Tuple

from .arguments import AddCommand, add_reading, best_device, key_value, whole

__all__ = ['add_commands']


def add_commands(add: AddCommand) -> None:
    command = add(
        'frequency', _frequency, 'analyse models by the spatial frequencies that they use',
        'Measure accuracy on images whose high or low spatial frequencies are taken away: of all images, of each class '
        'and of each sample. The same command resumes an interrupted analysis.')
    command.add_argument(
        'models', nargs='+', metavar='MODEL', type=_model,
        help='a name that timm.create_model takes, with arguments if need be: mlfm_mobilenetv2_010,memory=False')
    command.add_argument('data', metavar='DATA', help='folder that holds a folder of images for each class')
    command.add_argument('--output', required=True, metavar='FOLDER', help='folder for tables and pictures')
    command.add_argument('--imagenet100', action='store_true',
                         help='folders are named after synsets of ImageNet100, of which some may be missing')
    command.add_argument('--radii', nargs='*', type=float, metavar='R',
                         help='radii in cycles per image; 0 and the full radius are added (default: 14 of them)')
    command.add_argument('--filters', nargs='+', default=['lowpass', 'highpass'], choices=('lowpass', 'highpass'),
                         help='kinds of filters (default: both)')
    command.add_argument(
        '--form', default='ideal', choices=('ideal', 'gaussian'), help='form of filters (default: ideal)')
    command.add_argument('--pixels', action='store_true', help='filter pixels instead of the normalised tensors')
    command.add_argument('--samples', nargs='*', default=[], metavar='FILE',
                         help='images to draw, by their names relative to DATA')
    command.add_argument('--scales', nargs='+', type=float, default=[1, 1.5, 2], metavar='S',
                         help='how much the samples are enlarged, and cropped to their middle (default: 1 1.5 2)')
    command.add_argument('--fourier', type=float, metavar='NORM',
                         help='draw the error rate with one Fourier basis vector of this L2 norm added, too')
    command.add_argument('--fourier-extent', type=whole, default=8, metavar='N',
                         help='highest frequency of that map (default: 8)')
    command.add_argument('--no-pictures', dest='pictures', action='store_false', help='tables alone')
    add_reading(command)


def _model(text: str) -> Tuple[str, Dict[str, Any]]:
    name, *arguments = text.split(',')
    return name, dict(key_value(argument) for argument in arguments)


def _frequency(args: argparse.Namespace) -> None:
    from mlfm_zoo import frequency
    from mlfm_zoo._extras import require_matplotlib
    from mlfm_zoo._terminal import printable
    from mlfm_zoo.data.imagenet100 import SYNSETS
    from mlfm_zoo.workflow.build import build_network
    if args.pictures:
        require_matplotlib()  # before a long run, not after it
    models = {','.join([name, *(f'{k}={v}' for k, v in arguments.items())]): build_network(name, arguments, True)
              for name, arguments in args.models}
    progress = sys.stderr.isatty()
    probe = frequency.Probe(
        models, args.data, class_names=SYNSETS if args.imagenet100 else None, img_size=args.img_size,
        batch_size=args.batch_size, num_workers=args.workers, device=best_device(args.device))
    unknown = [file for file in args.samples if file not in probe.files]
    if unknown:
        raise ValueError(
            f'{unknown[0]} is no image in {args.data}: give names relative to that folder, such as {probe.files[0]}.')
    frequency.analyse(
        probe, args.output, radii=args.radii, filters=args.filters, form=args.form, pixels=args.pixels,
        progress=progress)
    rows, curves = frequency.overall_level(args.output), frequency.class_level(args.output)
    if args.pictures:
        frequency.draw_levels(args.output, rows, curves)
        if args.samples:
            frequency.draw_samples(probe, args.output, args.samples, args.scales)
    if args.fourier is not None:
        errors = frequency.fourier_errors(probe, args.output, args.fourier, args.fourier_extent, progress)
        if args.pictures:
            frequency.draw_fourier(args.output, errors, args.fourier)
    skipped, output = len(probe.files) - rows[0].n, printable(args.output)
    for name in probe.models:
        print(printable(name))
        for kind in ('lowpass', 'highpass'):
            points = sorted((r.radius, r.top1) for r in rows if (r.model, r.filter) == (name, kind))
            if points:
                print(f'  top-1 %, {kind}: ' + ', '.join(f'{top1:.1f} at {radius:g}' for radius, top1 in points))
    if skipped:
        print(
            f'{skipped} of {len(probe.files)} images cannot be decoded: {output}/skipped.csv lists them.',
            file=sys.stderr)
    print(f'{rows[0].n} images; tables{" and pictures" if args.pictures else ""} in {output}')
