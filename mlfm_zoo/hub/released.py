"""Checkpoints in their authors' form: fetched, verified and converted once.

The file comes from the authors' repository at the manifest's commit, or from `MLFM_ZOO_PAPER_MIRROR`: a folder with a
clone of the repository, or an http(s) address that replaces its root. Its size and git blob id are compared before it
is parsed. The converted safetensors file is kept below HF_HOME, in the Hub client's folder for files of other
libraries. Its name is its SHA-256, and its header names the source.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple, Union
from urllib.parse import quote

import safetensors.torch
from filelock import FileLock
from huggingface_hub import constants, get_session

from .._files import UNFINISHED, written_whole
from ..convert import Conversion, convert_state_dict, read_checkpoint
from .files import CheckpointError, compare_file
from .manifest import Checkpoint

__all__ = ['fetch_released', 'find_released', 'released_model_args', 'source_url']

MIRROR = 'MLFM_ZOO_PAPER_MIRROR'
MAX_SIZE = 1 << 30  # bytes, for a file without a size in the manifest
CHUNK = 1 << 20


def source_url(checkpoint: Checkpoint) -> str:
    """Address of the authors' file, at the manifest's commit."""
    assert checkpoint.source_repo and checkpoint.source_path
    repository = checkpoint.source_repo.removeprefix('github.com/')
    return f'https://raw.githubusercontent.com/{repository}/{checkpoint.source_commit}/{quote(checkpoint.source_path)}'


def find_released(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Optional[Path]:
    """Look for the converted file of a checkpoint on this machine.

    Args:
        checkpoint: A checkpoint that is available from the authors.
        cache_dir: Folder to use instead of the Hub client's own.

    Returns:
        Its path; None if it is not here.
    """
    files = _folder(checkpoint, cache_dir).glob('*.safetensors')
    return next((file for file in files if re.fullmatch('[0-9a-f]{64}', file.stem) and file.is_file()), None)


def fetch_released(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Path:
    """Return a checkpoint's converted file; the first call fetches and converts it.

    Of several processes, one does the work and the others wait. An existing file costs no request.

    Args:
        checkpoint: A checkpoint that is available from the authors.
        cache_dir: Folder to use instead of the Hub client's own.

    Returns:
        Its path.

    Raises:
        CheckpointError: The file cannot be fetched, is not the one that the manifest names, or holds another network.
    """
    path = find_released(checkpoint, cache_dir)
    if path is not None:  # without a lock file: the cache may be read-only
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
    """Read the memory options that the conversion recognized.

    Args:
        path: The converted file, verified.

    Returns:
        Arguments of the network.
    """
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
            conversion = convert_state_dict(read_checkpoint(source))
        except ValueError as error:
            text = str(error).replace(str(source), where)
            raise CheckpointError(f'The weights of {checkpoint.title} cannot be converted: {text}') from error
    _check_network(conversion, checkpoint, where)
    record = dict(
        source=where, source_blob=checkpoint.source_blob,
        model_args={k: v for k, v in conversion.model_args.items() if k.startswith('memory_')})
    # one entry: safetensors writes several in any order, so the digest of the same weights would vary
    content = safetensors.torch.save(conversion.state_dict, {'mlfm_zoo': json.dumps(record)})
    path = folder / f'{hashlib.sha256(content).hexdigest()}.safetensors'
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def _check_network(conversion: Conversion, checkpoint: Checkpoint, where: str) -> None:
    """Raise if the file holds another network than its manifest entry."""
    def describe(architecture: str, memory: bool, num_classes: int) -> str:
        return f'{architecture} {"with" if memory else "without"} memory, {num_classes} classes'

    args = conversion.model_args
    found = describe(conversion.architecture, args.get('memory', True), args['num_classes'])
    has_memory = checkpoint.memory and checkpoint.kind != 'warm_start'  # a warm start's file holds the trunk alone
    expected = describe(checkpoint.model, has_memory, checkpoint.num_classes)
    if found != expected or 'channel_multiplier' in args:
        raise CheckpointError(
            f'The file {where} holds {found}, expected {expected} for {checkpoint.title}: correct its manifest entry.')


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
    try:
        with _response(url) as (status, chunks), open(target, 'wb') as file:
            if status != 200:
                again = 'try again later' if status >= 500 else 'update mlfm_zoo or its manifest'
                raise CheckpointError(f'{start}: the server answered with status {status}; {again}.')
            limit = checkpoint.source_size or MAX_SIZE
            for chunk in chunks:
                file.write(chunk)
                if file.tell() > limit:
                    raise CheckpointError(f'The file {where} has more than the {limit:,} bytes that were expected.')
    except CheckpointError:
        raise
    except Exception as error:  # of any kind: the client's HTTP library differs between its versions
        if isinstance(error, OSError) and error.strerror:  # of the disk
            raise
        raise CheckpointError(
            f'{start}: there was no answer, or the transfer broke off ({type(error).__name__}); try again, or '
            f'{clone}.') from error
    return where


@contextlib.contextmanager
def _response(url: str) -> Iterator[Tuple[int, Iterator[bytes]]]:
    """Status and content of an answer, through the Hub client's session and proxies."""
    session: Any = get_session()
    headers = {'Accept-Encoding': 'identity'}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(session.stream):  # httpx, from huggingface_hub 1.0 on; in requests it is a setting
        with session.stream('GET', url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response.status_code, response.iter_bytes(CHUNK)
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response.status_code, response.iter_content(CHUNK)
