"""Commands about checkpoints: list, info, verify, download, card, publish."""

import argparse
import dataclasses
import fnmatch
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Union

from .arguments import AddCommand, add_model_kwargs
from .errors import FAILURES, sentence

if TYPE_CHECKING:
    from mlfm_zoo.hub.manifest import Checkpoint

__all__ = ['add_commands', 'publish']

# What `list` prints, in this order: titles, and the kinds of weights below them.
SECTIONS = {
    'Trained networks': ('trained', 'paper', 'embedded'),
    'Warm starts: a trained trunk, and a memory that has learned nothing yet': ('warm_start',),
    'Initializations, to train on DCT coefficients': ('initialisation',),
    'Networks without weights': (None,),
}


def add_commands(add: AddCommand) -> None:
    command = add('list', _list, 'list networks, their weights, and where the weights are')
    command.add_argument('filter', nargs='?', default='*', help="names to list, with wildcards, such as 'mlfm_resnet*'")
    command.add_argument('--pretrained', action='store_true', help='only weights that can be loaded today')
    command.add_argument('--json', action='store_true', help='print JSON')

    command = add('info', _info, 'show what is known of a network and its weights')
    command.add_argument('model', help='a network, or network.tag for one of its weights')
    command.add_argument('--json', action='store_true', help='print JSON')

    command = add('verify', _verify, 'compare weights in the cache with the manifest, by size and SHA-256')
    command.add_argument('model', nargs='?', help='a network or network.tag; all if left out')
    _add_cache(command)

    command = add('download', _download, 'download and verify weights, and print where they are')
    command.add_argument('model', help='a network, or network.tag')
    _add_cache(command)
    _add_no_memory(command)

    command = add('card', _card, 'print the model card of weights')
    command.add_argument('model', help='network.tag')
    _add_no_memory(command)

    command = add(
        'publish', _publish, 'publish weights on the Hub',
        'Build the whole repository of some weights, verify it, upload it in one commit, and write commit, size and '
        "SHA-256 into the manifest. The login is the Hub client's own: run `hf auth login` first.")
    command.add_argument('model', nargs='?', help='network.tag, such as mlfm_resnet50.in100')
    command.add_argument(
        '--all', metavar='FOLDER', help="publish instead, from a folder of runs of timm's train.py, each network with "
        'memory that is not published yet: its finished run of the lowest seed. The same command resumes')
    command.add_argument('--tag', help='tag of the weights, for --all')
    command.add_argument(
        '--authors', action='store_true',
        help="publish instead all weights of the paper's authors that are not published yet, converted")
    command.add_argument(
        '--weights', metavar='FILE', help="weights, such as train.py's model_best.pth.tar; if left out, the weights "
        "of the paper's authors are downloaded and converted")
    command.add_argument('--namespace', required=True, metavar='ORG', help='organization or user on the Hub')
    command.add_argument('--origin', metavar='TEXT', help='where the weights come from, in words, for a new entry')
    command.add_argument('--license', default='apache-2.0', metavar='NAME', help='license of the weights')
    add_model_kwargs(command, 'memory_update=add')
    command.add_argument('--data', metavar='FOLDER', help='image folder to validate the weights on')
    command.add_argument('--top1', type=float, metavar='PERCENT', help='top-1 accuracy that the data has to reproduce')
    command.add_argument(
        '--manifest', metavar='FILE', help="manifest to write, instead of MLFM_ZOO_MANIFEST or the package's own")
    command.add_argument('--dry-run', action='store_true', help='build, verify and show the repository, and stop there')


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument('--cache-dir', metavar='FOLDER', help="cache of the Hub client, instead of its own default")


def _add_no_memory(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--no-memory', dest='memory', action='store_false', help='the weights of the network without it')


def _models() -> List[str]:
    """The networks of this package; `mlfm_filtered` is a wrapper around others."""
    import timm

    from mlfm_zoo import models
    return [
        name for name in timm.list_models()
        if timm.model_entrypoint(name).__module__.startswith(f'{models.__name__}.') and name != 'mlfm_filtered']


def _check_model(model: str) -> None:
    if model not in _models():
        raise ValueError(f'{model} is no network of this package: mlfm-zoo list names them.')


def _find(name: str, memory: bool = True) -> 'Checkpoint':
    """The available checkpoint of a name; without a tag, the one that timm would take."""
    import timm

    from mlfm_zoo.hub.loading import find_checkpoint
    model, _, tag = name.partition('.')
    _check_model(model)
    return find_checkpoint(model, tag or timm.get_pretrained_cfg_value(model, 'tag') or '', memory)


def _where(checkpoint: 'Checkpoint', short: bool = False) -> str:
    """Where the weights are; if short, it fits into a line of 80 of `list`."""
    place = checkpoint.places[0] if checkpoint.places else None
    if place == 'hub':
        return f'{str(checkpoint.hub_repo).partition("/")[0]} on the Hub' if short else str(checkpoint.hub_repo)
    if place == 'authors':
        source = str(checkpoint.source_repo)
        return f'{source.split("/")[1]} on GitHub' if short else f"the authors' {source}, converted when first used"
    return 'in the package' if place else 'not published'


def _list(args: argparse.Namespace) -> None:
    from mlfm_zoo.hub.manifest import load_manifest
    checkpoints = load_manifest().values()
    found: List[Tuple[str, Optional[Checkpoint]]] = []  # networks with each of their checkpoints, or None
    for model in _models():
        own: List[Optional[Checkpoint]] = [c for c in checkpoints if c.model == model]
        for c in own or [None]:
            if fnmatch.fnmatch(model, args.filter) or c and fnmatch.fnmatch(c.name, args.filter):
                found.append((model, c))
    if not found:
        raise ValueError(f'{args.filter} matches no network of this package and no weights: list them all with '
                         'mlfm-zoo list.')
    if args.pretrained:
        found = [(model, c) for model, c in found if c and c.places]
    if args.json:
        print(json.dumps([
            dict(name=c.name, memory=c.memory, kind=c.kind, places=c.places, where=_where(c)) if c else
            dict(name=model, memory=True, kind=None, places=(), where='no weights') for model, c in found], indent=2))
        return
    if not found:
        print(f'No weights of {args.filter} can be loaded today.')
    lines = [(c.kind if c else None, c.title if c else model, _where(c, short=True) if c else '') for model, c in found]
    width, separator = max((len(title) for _, title, _ in lines), default=0), ''
    for heading, kinds in SECTIONS.items():
        section = [f'  {title:{width}}  {where}'.rstrip() for kind, title, where in lines if kind in kinds]
        if section:
            print(separator + '\n'.join([heading, *section]))
            separator = '\n'


def _info(args: argparse.Namespace) -> None:
    from mlfm_zoo.hub.manifest import load_manifest, paper_accuracies
    from mlfm_zoo.workflow.cost import count_cost
    model, _, tag = args.model.partition('.')
    _check_model(model)
    checkpoints = [c for c in load_manifest().values() if c.model == model and tag in ('', c.tag)]
    if tag and not checkpoints:
        _find(args.model)
    cost, paper = count_cost(model), paper_accuracies().get(model)
    if args.json:
        print(json.dumps(dict(
            model=model, **cost._asdict(), paper=paper and paper._asdict(),
            checkpoints=[dataclasses.asdict(c) for c in checkpoints]), indent=2))
        return
    print(f'{model}: {cost.params / 1e6:.2f} M parameters, {cost.madds / 1e9:.3f} G multiply-adds and '
          f'{cost.activations / 1e6:.2f} M activations at {" x ".join(map(str, cost.input_size[1:]))}')
    if paper is not None:
        print("ImageNet100 top-1 in the authors' README, not measured here: "
              f'{paper.trunk:.2f} % without memory, {paper.memory:.2f} % with it')
    for c in checkpoints:
        print(f'\n{c.title} ({c.kind}, {_where(c)})')
        for name, value in dataclasses.asdict(c).items():
            if name not in ('model', 'tag', 'kind', 'memory') and value not in (None, {}, ()):
                print(f'  {name}: {", ".join(value) if name == "places" else value}')
        if c.kind == 'paper' and not c.measured:
            print('  not evaluated by this project: the figures are the authors\' own')


def _verify(args: argparse.Namespace) -> None:
    from mlfm_zoo.hub.loading import CheckpointError, cached_checkpoint, verify_checkpoint
    from mlfm_zoo.hub.manifest import load_manifest
    checkpoints = [c for c in load_manifest().values() if args.model in (None, c.model, c.name)]
    if not checkpoints:
        _find(args.model)
    counts = dict(good=0, bad=0, unknown=0)
    for c in checkpoints:
        path = cached_checkpoint(c, args.cache_dir)
        if path is None:
            continue
        verdict, text = 'good', 'as the manifest says'
        try:
            if not verify_checkpoint(path, c):
                verdict, text = 'unknown', 'no SHA-256 or git blob id of it is known'
        except CheckpointError as error:
            verdict, text = 'bad', str(error)
        counts[verdict] += 1
        print(f'{c.title}: {text}')
    if not any(counts.values()):
        print('None of these weights is in the cache: there is nothing to compare.')
        return
    print(f'{counts["good"]} good, {counts["bad"]} bad, {counts["unknown"]} without a known SHA-256')
    if counts['bad']:
        raise CheckpointError('Files differ from the manifest: load those weights once, which replaces them.')


def _download(args: argparse.Namespace) -> None:
    from mlfm_zoo.hub.loading import fetch_checkpoint
    print(fetch_checkpoint(_find(args.model, args.memory), args.cache_dir).path)


def _card(args: argparse.Namespace) -> None:
    from mlfm_zoo.hub.manifest import load_manifest
    from mlfm_zoo.workflow.card import make_card
    model, _, tag = args.model.partition('.')
    checkpoint = load_manifest().get((model, tag, args.memory)) or _find(args.model, args.memory)
    print(make_card(checkpoint), end='')


def _publish(args: argparse.Namespace) -> None:
    if (args.model is not None) + (args.all is not None) + args.authors != 1:
        raise ValueError('Give one of network.tag, --all FOLDER and --authors.')
    if (args.all is None) != (args.tag is None):
        raise ValueError('--all and --tag go together: --tag in100 says that the runs are on ImageNet100.')
    of_one = dict(weights=args.weights, origin=args.origin, top1=args.top1, model_args=dict(args.model_kwargs))
    shared: Dict[str, Any] = dict(namespace=args.namespace, license=args.license)
    if args.model is not None:
        publish(args.manifest, args.dry_run, name=args.model, data=args.data, **of_one, **shared)
        return
    if any(of_one.values()):
        raise ValueError('--weights, --origin, --top1 and --model-kwargs are of one network: leave them out.')
    from mlfm_zoo._terminal import printable
    from mlfm_zoo.workflow.publish import releases_to_publish, runs_to_publish, target_manifest
    target = target_manifest(args.manifest)
    left_out: List[str] = []
    if args.authors:
        chosen = [dict(arguments, data=args.data) for arguments in releases_to_publish(target)]
    else:
        chosen, left_out = runs_to_publish(args.all, args.tag, target, args.data)
    for text in left_out:
        print(f'left out: {printable(text)}')
    failed = []
    for arguments in chosen:
        try:
            publish(target, args.dry_run, show_card=False, **arguments, **shared)
        except FAILURES as error:
            failed.append(arguments['name'])
            print(f'{arguments["name"]} was not published: {sentence(error)}')
    if failed:
        raise RuntimeError(f'{len(failed)} of {len(chosen)} were not published, {", ".join(failed)}: see above, then '
                           'run the same command again.')
    print(f'{len(chosen)} {"can be" if args.dry_run else "were"} published.')


def publish(
        manifest: Optional[Union[str, Path]] = None,
        dry_run: bool = False,
        show_card: bool = True,
        **repository_args: Any,
) -> None:
    """Build a repository with `repository_args`, upload it, and add it to a manifest."""
    from mlfm_zoo.workflow import publish as publishing
    target = publishing.target_manifest(manifest)
    with tempfile.TemporaryDirectory(prefix='mlfm_zoo_publish_') as folder:
        repository = publishing.build_repository(
            folder=folder, manifest=target, progress=sys.stdout.isatty(), **repository_args)
        print('\n'.join(publishing.describe(repository)))
        if dry_run:
            if show_card:
                print((repository.folder / 'README.md').read_text(encoding='utf-8'))
            print('Nothing was uploaded: this was a dry run.')
            return
        checkpoint = publishing.upload_repository(repository)
    print(f'{checkpoint.repo} is published at commit {checkpoint.commit}.')
    publishing.write_manifest_entry(checkpoint, target)
    print(f'Its entry is written into {target}.')
