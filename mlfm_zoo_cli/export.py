"""The command that writes a network as a file for an inference engine."""

import argparse
from pathlib import Path
from typing import Any, Dict

from .arguments import AddCommand, add_model_kwargs, positive

__all__ = ['add_commands']


def add_commands(add: AddCommand) -> None:
    command = add(
        'export', _export, 'write a network as a file for ONNX Runtime, OpenVINO, TorchScript or AOTInductor',
        "Write a pretrained network, of this package or timm's, as a file for an inference engine. The file is written "
        'only if it answers as the network does, on random images and on photographs if a folder of them is given.')
    command.add_argument('model', help='a name that timm.create_model takes, local-dir:FOLDER for a folder')
    command.add_argument('--format', required=True, choices=('onnx', 'openvino', 'torchscript', 'aoti'),
                         help='format; aoti is a package of AOTInductor, machine code for this kind of CPU')
    command.add_argument('--output', required=True, metavar='FILE',
                         help='file to write: .onnx, .xml (with a .bin beside it), .pt or .pt2')
    weights = command.add_mutually_exclusive_group()
    weights.add_argument('--checkpoint', metavar='FILE',
                         help="weights, such as train.py's model_best.pth.tar, instead of the pretrained ones")
    weights.add_argument('--no-pretrained', dest='pretrained', action='store_false',
                         help='random weights, to measure time with')
    command.add_argument('--num-classes', type=positive, metavar='N',
                         help='number of classes (default: that of the weights)')
    command.add_argument('--img-size', type=positive, metavar='N', help="image size in pixels, instead of the model's")
    batch = command.add_mutually_exclusive_group()
    batch.add_argument('--batch-size', type=positive, default=1, metavar='N', help='images per call (default: 1)')
    batch.add_argument('--dynamic-batch', dest='dynamic', action='store_const', const='batch', default='none',
                       help='any number of images per call')
    batch.add_argument('--dynamic', action='store_const', const='all', help='any number of images, of any size')
    command.add_argument('--fuse', action='store_true', help='fold norms into convolutions first')
    command.add_argument('--int8', metavar='FOLDER',
                         help='quantize to int8, calibrated on photographs of this folder (onnx, openvino)')
    command.add_argument('--images', metavar='FOLDER',
                         help='photographs to compare answers on (default: others of the --int8 folder)')
    command.add_argument('--evaluate', metavar='DATA',
                         help='folder of classes; print the accuracy of the network and of the file on it')
    command.add_argument('--imagenet100', action='store_true', help='number the classes of DATA as ImageNet100 does')
    add_model_kwargs(command)


def _export(args: argparse.Namespace) -> None:
    from mlfm_zoo._terminal import printable
    from mlfm_zoo.data.folders import data_config, open_folder
    from mlfm_zoo.data.imagenet100 import SYNSETS
    from mlfm_zoo.workflow import export
    from mlfm_zoo.workflow.evaluate import evaluate
    file, class_names = Path(args.output), SYNSETS if args.imagenet100 else None
    export.require_format(args.format, file, args.int8 is not None)
    model = _network(args)
    if args.evaluate:
        open_folder(args.evaluate, model, class_names)  # before a long run, not after it
    photos = calibration = None
    if args.int8:
        photos = export.read_photos(args.int8, model, export.CALIBRATED + export.CHECKED, args.img_size)
        if len(photos) < 2:
            raise ValueError(f'{args.int8} holds one image, expected one to calibrate on and one to check, or more.')
        checked = min(export.CHECKED, max(1, len(photos) // 9))
        calibration, photos = photos[checked:], photos[:checked]
    if args.images:
        photos = export.read_photos(args.images, model, export.CHECKED, args.img_size)
    check = export.export_network(
        model, file, args.format, args.img_size, args.batch_size, args.dynamic, args.fuse, calibration, photos)

    channels, height, width = export.input_size(model, args.img_size)
    batch = args.batch_size if args.dynamic == 'none' else 'N'
    sides = 'H, W' if args.dynamic == 'all' else f'{height}, {width}'
    config = data_config(model)
    files = [file, file.with_suffix('.bin')] if args.format == 'openvino' else [file]
    size = sum(f.stat().st_size for f in files) / 2 ** 20
    print(f'{printable(file)}: {args.model} on images ({batch}, {channels}, {sides}), {size:.1f} MiB')
    print(f'prepare images with {config["interpolation"]} interpolation, crop {config["crop_pct"]}, '
          f'mean {config["mean"]}, std {config["std"]}')
    found = f'logits differ by at most {check.difference:.1e} of the largest'
    if args.int8:
        found = f'logits differ by {check.error:.1%} of their norm; the first answer is the same on {check.same}'
    given = f'photographs ({check.photos})' if check.photos else 'no photographs, which --images FOLDER gives'
    print(f'checked on random images ({check.randoms}) and {given}: {found}')
    if args.evaluate:
        exported = export.ExportedNetwork(file, model, args.batch_size if args.dynamic == 'none' else None)
        for name, network in (('network', model), ('file', exported)):
            result = evaluate(network, args.evaluate, class_names, args.img_size)
            for answers, correct in (('top-1', result.top1), ('top-5', result.top5)):
                print(f'{answers} of the {name}: {correct} of {result.total} ({100 * correct / result.total:.2f} %)')


def _network(args: argparse.Namespace) -> Any:
    """Build the network, with the weights that were asked for."""
    import timm

    from mlfm_zoo.workflow.build import build_network
    model_args: Dict[str, Any] = dict(args.model_kwargs)
    if args.num_classes:
        model_args['num_classes'] = args.num_classes
    if not args.checkpoint:
        return build_network(args.model, model_args, args.pretrained)
    from mlfm_zoo.convert import read_checkpoint
    from mlfm_zoo.models._network import refuse_misfit, weight_faults
    from mlfm_zoo.workflow.collect import num_classes_of
    weights = read_checkpoint(args.checkpoint)
    if timm.is_model(args.model):
        model_args.setdefault('num_classes', num_classes_of(args.model, weights, model_args))
    model = build_network(args.model, model_args)
    refuse_misfit(model, weights, weight_faults(model.state_dict(), weights))
    model.load_state_dict(weights)
    return model
