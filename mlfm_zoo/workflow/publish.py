"""Publish weights as a repository on the Hub and an entry in the manifest.

The whole repository is built and verified on this machine and then uploaded in one commit. The manifest is written
last, so that it never refers to a missing repository.
"""

import dataclasses
import os
import re
import shutil
import tempfile
import textwrap
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple, Union

import timm
import torch
import torch.nn as nn
import yaml
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id
from timm.data import resolve_data_config, resolve_model_data_config

from .._files import one_at_a_time, written_whole
from .._timm import config_of, save_model
from ..convert import read_checkpoint
from ..data import imagenet100
from ..data.folders import label_names
from ..hub.files import CheckpointError, file_digest
from ..hub.loading import fetch_checkpoint
from ..hub.manifest import Checkpoint, Key, ManifestError, load_manifest, manifest_path, read_manifest
from .build import build_network, first_line
from .card import IMAGENET100, dataset_of, make_card
from .collect import find_runs, num_classes_of, publish_args, read_args
from .evaluate import evaluate

__all__ = [
    'Repository', 'build_repository', 'describe', 'releases_to_publish', 'runs_to_publish', 'target_manifest',
    'upload_repository', 'write_manifest_entry',
]

# Points of top-1 accuracy by which the measured figure may differ from the given one: both are rounded to two decimals.
FIGURE_TOLERANCE = 0.01
RUN_TOLERANCE = 0.5  # for figures of train.py, which may have measured in half precision


class Repository(NamedTuple):
    """A repository to upload: its folder, and its manifest entry without a commit."""
    folder: Path
    checkpoint: Checkpoint


def build_repository(
        name: str,
        weights: Optional[Union[str, Path]],
        namespace: str,
        folder: Union[str, Path],
        manifest: Union[str, Path],
        model_args: Optional[Dict[str, Any]] = None,
        origin: Optional[str] = None,
        license: str = 'apache-2.0',
        data: Optional[Union[str, Path]] = None,
        top1: Optional[float] = None,
        tolerance: float = FIGURE_TOLERANCE,
        progress: bool = False,
) -> Repository:
    """Build a checkpoint's whole repository in a folder and verify it.

    Args:
        name: 'model.tag', a registered network and the tag of the weights.
        weights: File of weights, safetensors or a pickle that is read with `weights_only=True`. If there is an
            args.yaml beside it, it holds the arguments of the training run. None fetches, verifies and converts the
            authors' weights in the manifest.
        namespace: Organization or user on the Hub.
        folder: Existing empty folder to build in.
        manifest: Manifest that will get the entry; it is only checked here.
        model_args: Arguments that build the network, beside the registered ones.
        origin: Where the weights come from, as text; the manifest's text if None.
        license: License of the weights, unless the manifest has one.
        data: Image folder to validate on.
        top1: Top-1 accuracy in percent that has to be reproduced on `data`.
        tolerance: Points by which it may differ.
        progress: Whether to print the progress of validation.

    Returns:
        The repository.

    Raises:
        ManifestError: The manifest is broken, or does not allow the value of a field, such as the license.
        ValueError: The name, the weights or the origin is missing or wrong, or the accuracy is not reproduced.
        RuntimeError: The weights do not fit, or the saved ones give other outputs.
        OSError: The folder cannot be written.
    """
    folder, manifest = Path(folder), Path(manifest)
    model_name, _, tag = name.partition('.')
    is_ours = timm.is_model(model_name) and timm.model_entrypoint(model_name).__module__.startswith('mlfm_zoo.models.')
    if not is_ours or not re.fullmatch(r'[a-z0-9_]+', tag):
        raise ValueError(f'{name!r} is no name for weights, expected a registered network and a tag, like '
                         'mlfm_resnet50.in100.')
    validate_repo_id(f'{namespace}/{name}')
    known = load_manifest().get((model_name, tag, True))
    if weights is None:
        if known is None or known.kind != 'paper' or 'authors' not in known.places:
            raise ValueError(f'{name} is not available from its authors: give a file of weights, with --weights.')
        weights, model_args = fetch_checkpoint(dataclasses.replace(known, places=('authors',)))
    if origin is None and known is None:
        raise ValueError(f'The manifest does not know {name}: say with --origin where the weights come from.')
    if top1 is not None and data is None:
        raise ValueError('A top-1 accuracy is given, but no data to reproduce it on: give --data too.')

    weights = Path(weights)
    state_dict = read_checkpoint(weights)
    num_classes = num_classes_of(model_name, state_dict, model_args or {})
    model = build_network(model_name, dict(model_args or {}, num_classes=num_classes)).eval()
    model.load_state_dict(state_dict)
    training_file = weights.with_name('args.yaml')
    training_args = read_args(training_file) if training_file.is_file() else {}
    if training_args:
        _take_data_config(model, training_args)
        (folder / 'args.yaml').write_text(yaml.safe_dump(training_args), encoding='utf-8')
    dataset = dataset_of(tag, num_classes, training_args)
    of_imagenet100 = dataset == IMAGENET100
    labels: Dict[str, Any] = dict(label_names=label_names(model)) if label_names(model) else {}
    if of_imagenet100:
        labels = dict(label_names=list(imagenet100.SYNSETS), label_descriptions=imagenet100.label_descriptions())
    save_model(model, folder, labels, model_args)
    _verify_outputs(model, folder)

    file = folder / 'model.safetensors'
    input_size: Any = tuple(config_of(model)['input_size'])
    base = known or Checkpoint(model_name, tag, 'trained', (), license, str(origin), num_classes, input_size)
    checkpoint = dataclasses.replace(
        base, origin=origin or base.origin, places=('hub', *(place for place in base.places if place == 'authors')),
        repo=f'{namespace}/{name}', file=file.name, sha256=file_digest(file), size=file.stat().st_size,
        num_params=sum(p.numel() for p in model.parameters()), num_classes=num_classes, input_size=input_size,
        commit=None, recipe=None)
    with tempfile.TemporaryDirectory() as scratch:  # faults of the entry are found before the upload
        if manifest.exists():
            shutil.copy(manifest, scratch)
        write_manifest_entry(dataclasses.replace(checkpoint, commit='0' * 40), Path(scratch, manifest.name))
    if data is not None:
        result = evaluate(model, data, class_names=imagenet100.SYNSETS if of_imagenet100 else None, progress=progress)
        found_top1, found_top5 = (round(100 * correct / result.total, 2) for correct in (result.top1, result.top5))
        if top1 is not None and abs(found_top1 - top1) > tolerance:
            raise ValueError(f'Top-1 accuracy on {data} is {found_top1:.2f} %, not the {top1:.2f} % given: '
                             'find out why before publishing.')
        images = f' of {result.total} images' + (f' of {dataset.name}' if dataset else '')
        if of_imagenet100 and result.total == len(imagenet100.SYNSETS) * imagenet100.NUM_IMAGES['val']:
            images = ''  # all validation images: the figure is the dataset's own
        checkpoint = dataclasses.replace(
            checkpoint, command=f'mlfm-zoo evaluate {name} DATA',
            measured={f'top-1{images}': found_top1, f'top-5{images}': found_top5})
    (folder / 'README.md').write_text(make_card(checkpoint, model_args, training_args), encoding='utf-8')
    return Repository(folder, checkpoint)


def upload_repository(repository: Repository) -> Checkpoint:
    """Upload a built repository in one commit, with the login of the Hub client.

    Args:
        repository: What `build_repository` returned.

    Returns:
        The checkpoint with the commit in it.

    Raises:
        CheckpointError: The upload failed. The Hub shows nothing of it, and it can be repeated.
    """
    api = HfApi()
    repo = repository.checkpoint.repo
    assert repo is not None
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=repository.folder, commit_message=f'Add {repository.checkpoint.name}')
    except Exception as error:  # of any kind: the client's HTTP library differs between its versions
        raise CheckpointError(
            f'{repo} was not published ({first_line(error)}): log in with `hf auth login`, with a token that may write '
            'there, or try again later.') from error
    return dataclasses.replace(repository.checkpoint, commit=commit.oid)


def target_manifest(path: Optional[Union[str, Path]] = None) -> Path:
    """Choose the manifest that a new entry goes into.

    Args:
        path: Its path. If None, the one that `MLFM_ZOO_MANIFEST` names, or else the package's own.

    Returns:
        The path of a valid or missing file.

    Raises:
        ManifestError: The file exists and is broken, or its folder cannot be written to.
    """
    path = Path(path or os.environ.get('MLFM_ZOO_MANIFEST') or manifest_path())
    if not os.access(path.parent, os.W_OK):
        raise ManifestError(f'{path} cannot be written: name a manifest in a folder that you may write to.')
    if path.exists():
        read_manifest(path)
    return path


def write_manifest_entry(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint into a manifest, replacing an entry of the same name.

    Args:
        checkpoint: The checkpoint.
        path: The manifest, made if it is missing. The rest of the file is kept.

    Raises:
        OSError: The manifest cannot be written.
        ManifestError: The manifest is broken; it stays as it was.
    """
    fields = {
        field.name: list(value) if isinstance(value, tuple) else value for field in dataclasses.fields(checkpoint)
        if (value := getattr(checkpoint, field.name)) not in (None, {}, field.default)}
    dumped = yaml.safe_dump([fields], sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    entry = textwrap.indent(dumped, '  ')
    block = re.compile(
        rf'^  - model: {re.escape(checkpoint.model)}\n    tag: {re.escape(checkpoint.tag)}\n(?!    memory: false$)'
        r'(?:    .*\n)*', re.MULTILINE)
    with one_at_a_time(path.parent), written_whole(path) as unfinished:
        text = path.read_text(encoding='utf-8') if path.exists() else 'version: 2\n\ncheckpoints:\n'
        if block.search(text):
            text = block.sub(lambda _: entry, text, count=1)
        else:
            text = f'{text.rstrip()}\n\n{entry}'
        unfinished.write_text(text, encoding='utf-8')
        if read_manifest(unfinished).checkpoints.get(checkpoint.key) != checkpoint:
            raise ManifestError(f'{path} is not in the form that this program writes: add {checkpoint.name} by hand.')


def runs_to_publish(
        folder: Union[str, Path],
        tag: str,
        manifest: Path,
        data: Optional[Union[str, Path]] = None,
) -> Tuple[List[Dict[str, Any]], List[str]]:
    """Choose a folder's runs to publish: one for each network with memory.

    Of a network's finished runs, the one with the lowest seed is chosen.

    Args:
        folder: Folder that holds output folders of train.py.
        tag: Tag of the weights.
        manifest: Manifest that gets the entries. Networks that it has on the Hub under this tag are left out.
        data: Validation images; those of each run if None.

    Returns:
        Arguments of `build_repository` for each run, and a sentence about each run that is left out.

    Raises:
        FileNotFoundError: The folder is not there.
        ManifestError: The manifest is broken.
    """
    runs, left_out = find_runs(folder)
    chosen: Dict[str, Dict[str, Any]] = {}
    published = _published(manifest)
    for run in sorted((run for run in runs if run.memory), key=lambda run: int(run.args.get('seed') or 0)):
        if run.model_args:
            left_out.append(f'{run.folder} has arguments of its own, {run.model_args}: publish it under another tag.')
        elif (run.model, tag, True) in published:
            left_out.append(f'{run.model}.{tag} is published already.')
        else:
            chosen.setdefault(run.model, dict(publish_args(run, tag, data), tolerance=RUN_TOLERANCE))
    return [*chosen.values()], [*dict.fromkeys(left_out)]


def releases_to_publish(manifest: Path) -> List[Dict[str, Any]]:
    """List the weights with memory of the paper's authors that are not on the Hub yet.

    Args:
        manifest: Manifest that gets the entries.

    Returns:
        Arguments of `build_repository` for each of them.

    Raises:
        ManifestError: The manifest is broken.
    """
    published = _published(manifest)
    return [dict(name=c.name, weights=None) for c in load_manifest().values()
            if c.kind == 'paper' and c.memory and c.key not in published]


def _published(manifest: Path) -> Set[Key]:
    """Keys of the checkpoints on the Hub, by the manifests in use and the given one."""
    written = read_manifest(manifest).checkpoints if manifest.exists() else {}
    return {key for key, c in {**load_manifest(), **written}.items() if 'hub' in c.places}


def _take_data_config(model: nn.Module, training_args: Dict[str, Any]) -> None:
    """Take a run's image size; raise if its preparation differs from the network's."""
    trained = resolve_data_config(training_args, model=model)
    own = resolve_model_data_config(model)
    for name in ('interpolation', 'mean', 'std', 'crop_pct'):
        if trained[name] != own[name]:
            raise ValueError(
                f'The weights were trained with {name} {trained[name]}, and the network has {own[name]}, which '
                'pretrained=True would take: train with that, or save them with timm.models.push_to_hf_hub.')
    config_of(model)['input_size'] = trained['input_size']


def _verify_outputs(model: nn.Module, folder: Path) -> None:
    """Check that the folder, loaded as by a user, gives the saved network's outputs."""
    loaded = build_network(f'local-dir:{folder}', pretrained=True).eval()
    image = torch.randn(1, *config_of(model)['input_size'], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not torch.equal(loaded(image), model(image)):
            raise RuntimeError(
                'The repository, loaded again, does not give the outputs of its weights: nothing was published.')


def describe(repository: Repository) -> List[str]:
    """List the files to upload, one per line."""
    lines = [f'{repository.checkpoint.repo}:']
    for path in sorted(repository.folder.iterdir()):
        lines.append(f'  {path.name}  {path.stat().st_size:,} bytes  sha256 {file_digest(path)}')
    return lines
