"""Command line: `python -m mlfm_zoo COMMAND`. A command that cannot go on says why in one sentence and exits with 1."""

import argparse
import ast
import dataclasses
import fnmatch
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import timm
import torch.nn as nn
from huggingface_hub import try_to_load_from_cache

from .collect import compare, read_run
from .convert import convert_checkpoint
from .cost import count_cost
from .data import imagenet100
from .evaluate import evaluate
from .hub.card import make_card
from .hub.loading import CheckpointError, fetch_checkpoint, find_checkpoint, verify_file
from .hub.manifest import PACKAGE, Checkpoint, load_manifest, paper_accuracies
from .hub.publishing import build_repository, describe, target_manifest, upload_repository, write_manifest_entry
from .launch import become_python, run
from .recipe import load_recipe, training_command


def _models() -> List[str]:
    return timm.list_models('mlfm_*') + ['test_mlfm_resnet']


def _where(checkpoint: Checkpoint) -> str:
    if not checkpoint.published:
        return 'not published'
    return 'in the package' if checkpoint.kind == 'embedded' else checkpoint.hub_repo


def _list(args: argparse.Namespace) -> None:
    pattern = args.filter or '*'
    checkpoints = load_manifest().values()
    rows: List[Dict[str, Any]] = []
    for model in _models():
        of_model = [c for c in checkpoints if c.model == model]
        if not any(fnmatch.fnmatch(name, pattern) for name in (model, *(c.name for c in of_model))):
            continue
        for c in of_model:
            if fnmatch.fnmatch(c.name, pattern) or fnmatch.fnmatch(model, pattern):
                rows.append(dict(name=c.name, kind=c.kind, published=c.published, where=_where(c)))
        if not of_model:
            rows.append(dict(name=model, kind=None, published=False, where='no weights'))
    if args.pretrained:
        rows = [row for row in rows if row['published']]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    width = max((len(row['name']) for row in rows), default=0)
    for row in rows:
        print(f'{row["name"]:{width}}  {row["kind"] or "-":10}  {row["where"]}')


def _info(args: argparse.Namespace) -> None:
    model, _, tag = args.model.partition('.')
    if model not in _models():
        raise ValueError(f'{model} is no network of this package: python -m mlfm_zoo list names them.')
    checkpoints = [c for c in load_manifest().values() if c.model == model and tag in ('', c.tag)]
    if tag and not checkpoints:
        find_checkpoint(model, tag)
    cost, paper = count_cost(model), paper_accuracies().get(model)
    if args.json:
        print(json.dumps(dict(
            model=model, **cost._asdict(), paper=paper and paper._asdict(),
            checkpoints=[dataclasses.asdict(c) for c in checkpoints]), indent=2))
        return
    print(f'{model}: {cost.params / 1e6:.2f} M parameters, {cost.madds / 1e9:.3f} G multiply-adds and '
          f'{cost.activations / 1e6:.2f} M activations at {" x ".join(map(str, cost.input_size[1:]))}')
    if paper is not None:
        print(f'ImageNet100 top-1 in the paper, not measured here: {paper.trunk:.2f} % without memory, '
              f'{paper.memory:.2f} % with it')
    for c in checkpoints:
        print(f'\n{c.name} ({c.kind}, {_where(c)})')
        for field in dataclasses.fields(c):
            value = getattr(c, field.name)
            if field.name not in ('model', 'tag', 'kind', 'published') and value not in (None, {}):
                print(f'  {field.name}: {value}')


def _cached(checkpoint: Checkpoint, cache_dir: Optional[str]) -> Optional[Path]:
    if checkpoint.kind == 'embedded':
        return PACKAGE / checkpoint.file
    path = try_to_load_from_cache(
        checkpoint.hub_repo, checkpoint.file, revision=checkpoint.commit, cache_dir=cache_dir)
    return Path(path) if isinstance(path, str) else None


def _verify(args: argparse.Namespace) -> None:
    counts = dict(good=0, bad=0, unknown=0)
    for c in load_manifest().values():
        if not c.published or args.model and args.model not in (c.model, c.name):
            continue
        path = _cached(c, args.cache_dir)
        if path is None:
            continue
        verdict, text = 'good', 'as the manifest says'
        try:
            verify_file(path, c)
            if c.sha256 is None:
                verdict, text = 'unknown', 'the manifest knows no SHA-256 of it'
        except CheckpointError as error:
            verdict, text = 'bad', str(error)
        counts[verdict] += 1
        print(f'{c.name}: {text}')
    print(f'{counts["good"]} good, {counts["bad"]} bad, {counts["unknown"]} without a known SHA-256')
    if counts['bad']:
        raise CheckpointError('Files differ from the manifest: load those weights once, which replaces them.')


def _download(args: argparse.Namespace) -> None:
    print(fetch_checkpoint(_find(args.model), args.cache_dir))


def _find(name: str) -> Checkpoint:
    """The published checkpoint of a name; without a tag, the one that timm would take."""
    model, _, tag = name.partition('.')
    if model not in _models():
        raise ValueError(f'{model} is no network of this package: python -m mlfm_zoo list names them.')
    return find_checkpoint(model, tag or timm.get_pretrained_cfg(model).tag or '')


def _card(args: argparse.Namespace) -> None:
    model, _, tag = args.model.partition('.')
    checkpoint = load_manifest().get((model, tag)) or _find(args.model)
    print(make_card(checkpoint), end='')


def _publish(args: argparse.Namespace) -> None:
    manifest = target_manifest(args.manifest)
    with tempfile.TemporaryDirectory(prefix='mlfm_zoo_publish_') as folder:
        repository = build_repository(
            args.model, args.weights, args.namespace, folder, model_args=dict(args.model_kwargs), origin=args.origin,
            license=args.license, data=args.data, top1=args.top1, progress=sys.stdout.isatty())
        print('\n'.join(describe(repository)))
        if args.dry_run:
            print((repository.folder / 'README.md').read_text(encoding='utf-8'))
            print('Nothing was uploaded: this was a dry run.')
            return
        checkpoint = upload_repository(repository)
    write_manifest_entry(checkpoint, manifest)
    print(f'{checkpoint.repo} at commit {checkpoint.commit}, written into {manifest}')


def _recipe(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.model)
    print(f'# {args.model} on ImageNet100: {recipe.settings["epochs"]} epochs, {recipe.global_batch_size} images an '
          f'update. {recipe.path} says where each setting comes from.')
    print("# train.py is timm's, in its repository; the folder of data is one that imagenet100 prepare made.")
    for gpus, nodes, where in (
        (1, 1, 'one GPU'),
        (args.gpus, 1, f'{args.gpus} GPUs of one machine'),
        (args.gpus, args.nodes, f'{args.nodes} machines of {args.gpus} GPUs, the same on each, HOST being one of them'),
    ):
        print(f'\n# {where}: baseline, then with memory')
        for memory in (False, True):
            try:
                print(training_command(args.model, args.data, memory, args.seed, gpus, nodes, args.script))
            except ValueError as error:
                print(f'# {error}')
                break


def _collect(args: argparse.Namespace) -> None:
    runs = [read_run(folder) for folder in args.runs]
    rows = compare(runs, args.num_images)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f'Top-1 accuracy in percent, with the 95 % interval for {args.num_images:,} images:')
        for row in rows:
            cells = [f'{row["model"]}, {row["epoch"]} epoch']
            for name in ('baseline', 'memory'):
                if (s := row[name]) is not None:
                    seeds = f', deviation {s["deviation"]:.2f} over {len(s["top1"])} runs' if s['deviation'] is not None else ''
                    cells.append(f'{name} {s["mean"]:.2f} +- {s["half_interval"]:.2f}{seeds}')
            if row['difference'] is not None:
                low, high = row['interval']
                cells.append(f'difference {row["difference"]:+.2f} ({low:+.2f} to {high:+.2f})')
            print('; '.join(cells))
    for run in runs:
        if not run.memory:
            continue
        options = [f'{name}={value}' for name, value in run.model_args.items()]
        command = [
            'publish', f'{run.model}.{args.tag}', '--weights', str(run.best.checkpoint),
            '--namespace', args.publish or 'ORG', '--top1', f'{run.best.top1:.2f}',
            '--data', args.data or str(Path(run.args.get('data_dir') or 'DATA') / 'val'), '--origin',
            f"trained with timm's train.py, seed {run.args.get('seed')}, epoch {run.best.number + 1} of "
            f'{run.last.number + 1}, the best on the validation images',
            *(['--manifest', args.manifest] if args.manifest else []),
            *(['--model-kwargs', *options] if options else [])]
        if args.publish is None and not args.json:
            print(f'To publish {run.folder}: python -m mlfm_zoo {shlex.join(command)}')
        elif args.publish is not None:
            if sum(r.memory for r in runs) > 1:
                raise ValueError('Several runs have memory, and one can be published: name its folder alone.')
            _publish(_parser().parse_args(command))


def _convert(args: argparse.Namespace) -> None:
    conversion = convert_checkpoint(args.checkpoint, args.output)
    options = ', '.join(f'{name}={value!r}' for name, value in conversion.model_args.items())
    print(f'{conversion.architecture} ({options}) -> {args.output}')
    print(f"Load it with timm.create_model('local-dir:{args.output}', pretrained=True), after import mlfm_zoo.")


def _create(name: str) -> nn.Module:
    """A pretrained model; what is wrong with a folder's files is said with the folder's name."""
    try:
        return timm.create_model(name, pretrained=True)
    except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        what = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise ValueError(f'{name} could not be loaded ({what}): give a whole folder with config.json and weights, or a '
                         'registered name.') from None


def _evaluate(args: argparse.Namespace) -> None:
    model = _create(args.model)
    class_names = imagenet100.SYNSETS if args.imagenet100 else None
    result = evaluate(
        model, args.data, class_names=class_names, img_size=args.img_size, batch_size=args.batch_size,
        num_workers=args.workers, device=args.device, progress=sys.stdout.isatty())
    for name, correct in (('top-1', result.top1), ('top-5', result.top5)):
        print(f'{name}: {correct} of {result.total} ({100 * correct / result.total:.2f} %)')


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def _key_value(text: str) -> Tuple[str, Any]:
    key, equals, value = text.partition('=')
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form NAME=VALUE')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m mlfm_zoo', description='Low-frequency memory networks for timm.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    def add(name, run, help, description=None):
        command = commands.add_parser(name, help=help, description=description or f'{help[0].upper()}{help[1:]}.')
        command.set_defaults(run=run)
        return command

    command = add('list', _list, 'list networks, their weights, and where the weights are')
    command.add_argument('filter', nargs='?', help="names to list, with wildcards, such as 'mlfm_resnet*'")
    command.add_argument('--pretrained', action='store_true', help='only weights that can be loaded today')
    command.add_argument('--json', action='store_true', help='print JSON')

    command = add('info', _info, 'show what is known of a network and its weights')
    command.add_argument('model', help='a network, or network.tag for one of its weights')
    command.add_argument('--json', action='store_true', help='print JSON')

    command = add('verify', _verify, 'compare weights in the cache with the manifest, by size and SHA-256')
    command.add_argument('model', nargs='?', help='a network or network.tag; all if left out')
    command.add_argument('--cache-dir', metavar='FOLDER', help="cache of the Hub client, instead of its own default")

    command = add('download', _download, 'download and verify weights, and print where they are')
    command.add_argument('model', help='a network, or network.tag')
    command.add_argument('--cache-dir', metavar='FOLDER', help="cache of the Hub client, instead of its own default")

    command = add('card', _card, 'print the model card of weights')
    command.add_argument('model', help='network.tag')

    command = add(
        'publish', _publish, 'publish weights on the Hub',
        'Build the whole repository of some weights, verify it, upload it in one commit, and write commit, size and '
        "SHA-256 into the manifest. The login is the Hub client's own: run `hf auth login` first.")
    command.add_argument('model', help='network.tag, such as mlfm_resnet50.in100')
    command.add_argument(
        '--weights', required=True, metavar='FILE', help="weights, such as train.py's model_best.pth.tar")
    command.add_argument('--namespace', required=True, metavar='ORG', help='organisation or user on the Hub')
    command.add_argument('--origin', metavar='TEXT', help='where the weights come from, in words, for a new entry')
    command.add_argument('--license', default='apache-2.0', metavar='NAME', help='licence of the weights')
    command.add_argument('--model-kwargs', nargs='*', default=[], type=_key_value, metavar='NAME=VALUE',
                         help='arguments of the network, such as memory_update=add')
    command.add_argument('--data', metavar='FOLDER', help='image folder to validate the weights on')
    command.add_argument('--top1', type=float, metavar='PERCENT', help='top-1 accuracy that the data has to reproduce')
    command.add_argument(
        '--manifest', metavar='FILE', help="manifest to write, instead of MLFM_ZOO_MANIFEST or the package's own")
    command.add_argument('--dry-run', action='store_true', help='build, verify and show the repository, and stop there')

    command = add(
        'recipe', _recipe, "print the commands that train a network on ImageNet100 with timm's train.py",
        "Print the commands that train a network, baseline and with memory, on ImageNet100 with timm's train.py: on one "
        'GPU, on all GPUs of a machine, and on several machines. An update sees the same number of images on each.')
    command.add_argument('model', help='a network')
    command.add_argument('--data', default='IMAGENET100', metavar='FOLDER', help='prepared folder (default: IMAGENET100)')
    command.add_argument('--script', default='train.py', metavar='FILE', help="path of timm's train.py")
    command.add_argument('--seed', type=int, default=42, metavar='N', help='seed of the run (default: 42)')
    command.add_argument('--gpus', type=_positive, default=4, metavar='N', help='GPUs of a machine (default: 4)')
    command.add_argument('--nodes', type=_positive, default=2, metavar='N', help='machines (default: 2)')

    command = add(
        'collect', _collect, "report finished runs of timm's train.py, baseline against memory",
        "Read output folders of timm's train.py, refuse unfinished and damaged ones, and report best and last epoch: "
        'baseline against memory, best with best and last with last. Prints how to publish what has memory.')
    command.add_argument('runs', nargs='+', metavar='RUN', help='output folder of a run')
    command.add_argument('--num-images', type=_positive, default=5000, metavar='N',
                         help='images of the validation set (default: 5000)')
    command.add_argument('--json', action='store_true', help='print JSON')
    command.add_argument('--tag', default='in100', help='tag to publish under (default: in100)')
    command.add_argument('--publish', metavar='ORG', help='publish the best epoch of the run with memory at once')
    command.add_argument('--data', metavar='FOLDER', help='validation images to publish with, instead of those of the run')
    command.add_argument('--manifest', metavar='FILE', help='manifest to write when publishing, as of `publish`')

    command = add(
        'run', None, 'run a Python script with these networks registered in timm',
        'Run a Python script as Python itself would, with these networks registered in timm, also in the Python '
        'processes that it starts: `run train.py ARGS`, `run -m MODULE ARGS`, `torchrun ... -m mlfm_zoo run train.py ARGS`.')
    command.add_argument('script', help='script, with its arguments after it')

    add('imagenet100', None, 'prepare ImageNet100 for training, and check it')

    command = add(
        'convert', _convert, "make a checkpoint of the authors' into a folder that timm loads",
        "Convert a checkpoint of the authors' code: MobileNetV2 of any width, with memory or without, or ResNet10, 18 "
        'or 34. Network and options are recognised from the file.')
    command.add_argument('checkpoint', help="file written by the authors' code")
    command.add_argument('--output', required=True, metavar='FOLDER', help='folder to make; must not exist or be empty')

    command = add(
        'evaluate', _evaluate, 'measure top-1 and top-5 accuracy of a pretrained model on an image folder',
        "Accuracy of a pretrained model on an image folder, through timm's dataset, transform and loader.")
    command.add_argument('model', help='a name that timm.create_model takes, local-dir:FOLDER for a folder')
    command.add_argument('data', help='folder that holds a folder of images for each class')
    command.add_argument(
        '--imagenet100', action='store_true',
        help='number the classes as ImageNet100 does, also where the data has only some of them')
    command.add_argument('--img-size', type=_positive, metavar='N', help="image size in pixels, instead of the model's")
    command.add_argument('--batch-size', type=_positive, default=32, metavar='N', help='images a batch (default: 32)')
    command.add_argument('--workers', type=int, default=2, metavar='N', help='processes reading images (default: 2)')
    command.add_argument('--device', default='cpu', help='device to run on (default: cpu)')
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name, those of the process if None.

    Returns:
        Exit code: 0, 1 if the command could not go on, or 130 if it was interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    # two commands become another program, whose options are none of this parser's
    if argv[:1] == ['run'] and argv[1:2] not in ([], ['-h'], ['--help']):
        run(argv[1:])
    if argv[:1] == ['imagenet100']:
        become_python([imagenet100.__file__, *argv[1:]])
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print('error: interrupted', file=sys.stderr)
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
