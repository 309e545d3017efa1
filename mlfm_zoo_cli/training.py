"""Commands about training, in order of use: imagenet100, recipe, run, collect."""

import argparse
import json
import shlex
from typing import List

from .arguments import PACKAGE, AddCommand, positive
from .checkpoints import publish
from .launch import become_python
from .launch import run as run_script

__all__ = ['add_commands', 'become_program']


def add_commands(add: AddCommand) -> None:
    command = add(
        'recipe', _recipe, "print the commands that train a network with timm's train.py",
        "Print the commands that train a network, baseline and with memory where it has one, with timm's train.py: on "
        'one GPU, on all GPUs of a machine, and on several machines. An update sees the same number of images on each.')
    command.add_argument('model', help='a network')
    command.add_argument(
        '--dataset', metavar='NAME',
        help='the data: imagenet100 for networks with memory, imagenet (default), cifar100 or mnist for GSSDNet')
    command.add_argument('--data', metavar='FOLDER', help='folder of the data (default: their name in capitals)')
    command.add_argument('--script', default='train.py', metavar='FILE', help="path of timm's train.py")
    command.add_argument('--seed', type=int, default=42, metavar='N', help='seed of the run (default: 42)')
    command.add_argument('--gpus', type=positive, default=4, metavar='N', help='GPUs of a machine (default: 4)')
    command.add_argument('--nodes', type=positive, default=2, metavar='N', help='machines (default: 2)')

    command = add(
        'collect', _collect, "report finished runs of timm's train.py, baseline against memory",
        "Read output folders of timm's train.py, refuse unfinished and damaged ones, and report best and last epoch: "
        'baseline against memory, best with best and last with last. Prints how to publish what has memory.')
    command.add_argument('runs', nargs='+', metavar='RUN', help='output folder of a run')
    command.add_argument('--num-images', type=positive, default=5000, metavar='N',
                         help='images of the validation set (default: 5000)')
    command.add_argument('--json', action='store_true', help='print JSON')
    command.add_argument(
        '--tag', help="tag to publish under (default: the data set of the run's --dataset, in100 without one)")
    command.add_argument('--publish', metavar='ORG', help='publish the best epoch of the run with memory at once')
    command.add_argument(
        '--data', metavar='FOLDER', help='validation images to publish with, instead of those of the run')
    command.add_argument('--manifest', metavar='FILE', help='manifest to write when publishing, as of `publish`')

    command = add(
        'run', None, 'run a Python script with these networks registered in timm',
        'Run a Python script as Python itself would, with these networks registered in timm, also in the Python '
        'processes that it starts: `run train.py ARGS`, `run -m MODULE ARGS`, '
        '`torchrun ... -m mlfm_zoo run train.py ARGS`.')
    command.add_argument(
        '--keep-memory', action='store_true',
        help='keep freed memory for its next use, before the script: faster training on CPUs (glibc)')
    command.add_argument('script', help='script, with its arguments after it')

    add('imagenet100', None, 'prepare ImageNet100 for training, and check it')


def become_program(argv: List[str]) -> None:
    """Replace this process if the command is another program, with its own options."""
    if argv[:1] == ['imagenet100']:
        become_python([str(PACKAGE / 'data' / 'imagenet100.py'), *argv[1:]])
    if argv[:1] == ['run']:
        keep_memory = argv[1:2] == ['--keep-memory']
        script = argv[1 + keep_memory:]
        if script[:1] not in ([], ['-h'], ['--help']):
            run_script(script, keep_memory)


def _recipe(args: argparse.Namespace) -> None:
    from mlfm_zoo.workflow.recipe import DATASETS, load_recipe, training_command
    recipe = load_recipe(args.model, args.dataset)
    print(f'# {args.model} on {DATASETS[recipe.dataset]}: {recipe.settings["epochs"]} epochs, '
          f'{recipe.global_batch_size} images an update. {recipe.path} says where each setting comes from.')
    folder = {'imagenet100': 'is one that imagenet100 prepare made', 'imagenet': 'has train/<class> and val/<class>'}
    print("# train.py is timm's, in its repository; the folder of data "
          f'{folder.get(recipe.dataset, "is where they are downloaded to")}.')
    kinds = (False, True) if args.model.startswith('mlfm_') else (None,)
    for gpus, nodes, where in (
        (1, 1, 'one GPU'),
        (args.gpus, 1, f'{args.gpus} GPUs of one machine'),
        (args.gpus, args.nodes, f'{args.nodes} machines of {args.gpus} GPUs, the same on each, HOST being one of them'),
    ):
        print(f'\n# {where}{": baseline, then with memory" if len(kinds) > 1 else ""}')
        for memory in kinds:
            try:
                print(training_command(
                    args.model, args.data or recipe.dataset.upper(), memory, args.seed, gpus, nodes, args.script,
                    recipe.dataset))
            except ValueError as error:
                print(f'# {error}')
                break


def _collect(args: argparse.Namespace) -> None:
    from mlfm_zoo._terminal import printable
    from mlfm_zoo.workflow.collect import compare, publish_args, read_run
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
                    cells.append(f'{name} {s["mean"]:.2f} +- {s["half_interval"]:.2f}')
                    if s['deviation'] is not None:
                        cells[-1] += f', deviation {s["deviation"]:.2f} over {len(s["top1"])} runs'
            if row['difference'] is not None:
                low, high = row['interval']
                cells.append(f'difference {row["difference"]:+.2f} ({low:+.2f} to {high:+.2f})')
            print('; '.join(cells))
    with_memory = [run for run in runs if run.memory]
    if args.publish is not None and len(with_memory) > 1:
        raise ValueError('Several runs have memory, and one can be published: name its folder alone.')
    for run in with_memory:
        arguments = publish_args(run, args.tag, args.data)
        if args.publish is not None:
            publish(args.manifest, namespace=args.publish, **arguments)
        elif not args.json:
            arguments.update(namespace='ORG', manifest=args.manifest)
            model_args, command = arguments.pop('model_args'), ['mlfm-zoo', 'publish', arguments.pop('name')]
            for option, value in arguments.items():
                command += [f'--{option}', str(value)] if value is not None else []
            if model_args:
                command += ['--model-kwargs', *(f'{key}={value}' for key, value in model_args.items())]
            print(f'To publish {printable(run.folder)}: {printable(shlex.join(command))}')
