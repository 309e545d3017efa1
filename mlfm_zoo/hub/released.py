"""Checkpoints in their authors' form: fetched, verified and converted once.

The file comes from the authors' repository at the manifest's commit, or from `MLFM_ZOO_PAPER_MIRROR`: a folder with a
clone of the repository, or an http(s) address that replaces its root. Its size and git blob id are compared before it
is parsed. The converted safetensors file is kept below HF_HOME, in the Hub client's folder for files of other
libraries. Its name is its SHA-256, and its header names the source.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional, Union
from urllib.parse import quote

import safetensors.torch
from filelock import FileLock
from huggingface_hub import constants, get_session

from .._files import UNFINISHED, written_whole
from ..convert import convert_state_dict, read_checkpoint
from .files import CheckpointError, compare_file
from .manifest import Checkpoint

__all__ = ['fetch_released', 'find_released', 'released_model_args', 'source_url']

MIRROR = 'MLFM_ZOO_PAPER_MIRROR'
MAX_SIZE = 1 << 30  # bytes, for a file without a size in the manifest


def source_url(checkpoint: Checkpoint) -> str:
    """Address of the authors' file, at the manifest's commit."""
    assert checkpoint.source_repo and checkpoint.source_path
    repository = checkpoint.source_repo.removeprefix('github.com/')
    return f'https://raw.githubusercontent.com/{repository}/{checkpoint.source_commit}/{quote(checkpoint.source_path)}'


def find_released(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Optional[Path]:
    """The converted file of a checkpoint; None if this machine does not have it."""
    return next(_folder(checkpoint, cache_dir).glob('[0-9a-f]' * 64 + '.safetensors'), None)


def fetch_released(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Path:
    """Return a checkpoint's converted file; the first call fetches and converts it.

    Of several processes, one does the work and the others wait. An existing file costs no request. CheckpointError is
    raised if the file cannot be fetched, is not the one that the manifest names, or holds another network.
    """
    if path := find_released(checkpoint, cache_dir):  # without a lock file: the cache may be read-only
        return path
    folder = _folder(checkpoint, cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / '.lock'):
            # another process may have made it meanwhile
            return find_released(checkpoint, cache_dir) or _make(folder, checkpoint)
    except OSError as error:
        raise CheckpointError(
            f'The weights of {checkpoint.title} cannot be kept in {folder} ({error.strerror}): free space there, '
            'name another cache_dir, or set HF_HOME.') from error


def released_model_args(path: Path) -> Dict[str, Any]:
    """Read the memory options that the conversion recognized from its file."""
    with safetensors.safe_open(path, 'pt') as file:
        return json.loads(file.metadata()['mlfm_zoo'])['model_args']


def _folder(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]]) -> Path:
    assert checkpoint.source_blob
    name = checkpoint.name if checkpoint.memory else f'{checkpoint.name}.trunk'
    return Path(cache_dir or constants.HF_ASSETS_CACHE, 'mlfm_zoo', f'{name}.{checkpoint.source_blob[:16]}')


def _make(folder: Path, checkpoint: Checkpoint) -> Path:
    """Fetch, verify and convert a checkpoint into a folder locked by this process."""
    for left in folder.glob(f'{UNFINISHED}*'):  # by killed processes
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as scratch:
        source = Path(scratch, 'source')
        where = _fetch(checkpoint, source)
        compare_file(
            source, f'{checkpoint.title} at {where}', checkpoint.source_size, checkpoint.source_sha256,
            checkpoint.source_blob)
        try:
            architecture, args, state_dict = convert_state_dict(read_checkpoint(source))
        except ValueError as error:
            text = str(error).replace(str(source), where)
            raise CheckpointError(f'The weights of {checkpoint.title} cannot be converted: {text}') from error
    found = dict(
        network=architecture, memory=args.get('memory', True), classes=args['num_classes'],
        channel_multiplier=args.get('channel_multiplier'))
    expected = dict(
        network=checkpoint.model, classes=checkpoint.num_classes, channel_multiplier=None,
        memory=checkpoint.memory and checkpoint.kind != 'warm_start')  # a warm start's file holds the trunk alone
    if found != expected:
        raise CheckpointError(
            f'The file {where} holds {found}, expected {expected} for {checkpoint.title}: correct its manifest entry.')
    record = dict(
        source=where, source_blob=checkpoint.source_blob,
        model_args={k: v for k, v in args.items() if k.startswith('memory_')})
    # one entry: safetensors writes several in any order, so the digest of the same weights would vary
    content = safetensors.torch.save(state_dict, {'mlfm_zoo': json.dumps(record)})
    path = folder / f'{hashlib.sha256(content).hexdigest()}.safetensors'
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def _fetch(checkpoint: Checkpoint, target: Path) -> str:
    """Copy the authors' file to `target`; return its origin without password or token."""
    assert checkpoint.source_path
    mirror = os.environ.get(MIRROR) or ''
    clone = f'let {MIRROR} name a clone of {checkpoint.source_repo}'
    if mirror and '://' not in mirror:
        original = Path(mirror, checkpoint.source_path)
        if not os.access(original, os.R_OK):
            raise CheckpointError(f'The weights of {checkpoint.title} cannot be read from {original}: {clone}.')
        shutil.copyfile(original, target)
        return str(original)

    url = f'{mirror.rstrip("/")}/{quote(checkpoint.source_path)}' if mirror else source_url(checkpoint)
    where = re.split('[?#]', re.sub('//.*@', '//', url))[0]
    start = f'The weights of {checkpoint.title} could not be downloaded from {where}'
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f'{start}: HF_HUB_OFFLINE is set and they are not in the cache; unset it once, or {clone}.')
    session: Any = get_session()
    options = dict(headers={'Accept-Encoding': 'identity'}, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    try:
        if callable(session.stream):  # httpx, from huggingface_hub 1.0 on; in requests it is a setting
            answer, chunks_of = session.stream('GET', url, follow_redirects=True, **options), 'iter_bytes'
        else:
            answer, chunks_of = session.get(url, stream=True, **options), 'iter_content'
        with answer as response, open(target, 'wb') as file:
            for chunk in getattr(response, chunks_of)(1 << 20):
                file.write(chunk)
                if file.tell() > (checkpoint.source_size or MAX_SIZE):
                    break  # which the comparison of sizes or digests reports
    except Exception as error:  # of any kind: the client's HTTP library differs between its versions
        if isinstance(error, OSError) and error.strerror:  # of the disk
            raise
        raise CheckpointError(
            f'{start}: there was no answer, or the transfer broke off ({type(error).__name__}); try again, or '
            f'{clone}.') from error
    if response.status_code != 200:
        raise CheckpointError(
            f'{start}: the server answered with status {response.status_code}; try again later, or update mlfm_zoo.')
    return where
