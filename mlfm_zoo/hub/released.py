"""Checkpoints in their authors' own form: fetched, verified, converted once, and kept as safetensors.

The file comes from the authors' repository at the manifest's commit, or from what `MLFM_ZOO_PAPER_MIRROR` names
instead: a folder with a clone of the repository, or an http(s) address that stands for its root. Its size and git blob
id are compared before it is parsed. The converted file is kept below HF_HOME, in the Hub client's folder for files of
other libraries, with its size and SHA-256 beside it.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Union
from urllib.parse import quote

import safetensors.torch
from filelock import FileLock
from huggingface_hub import constants, get_session
from huggingface_hub.utils import tqdm

from .._files import UNFINISHED, written_whole
from ..convert import Conversion, convert_state_dict, read_checkpoint
from .files import CheckpointError, compare_file
from .manifest import Checkpoint

__all__ = ['fetch_released', 'read_record', 'released_file', 'source_url']

MIRROR = 'MLFM_ZOO_PAPER_MIRROR'
MAX_SIZE = 1 << 30  # bytes of a file whose size the manifest does not know
CHUNK = 1 << 20


def source_url(checkpoint: Checkpoint) -> str:
    """Address of the authors' file, at the manifest's commit."""
    assert checkpoint.source_repo and checkpoint.source_path
    repository = checkpoint.source_repo.removeprefix('github.com/')
    return f'https://raw.githubusercontent.com/{repository}/{checkpoint.source_commit}/{quote(checkpoint.source_path)}'


def released_file(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Path:
    """Return where the converted file of a checkpoint is kept.

    Args:
        checkpoint: A checkpoint that is available from the authors.
        cache_dir: Folder to use instead of the Hub client's own.

    Returns:
        Its path, whether the file exists or not.
    """
    assert checkpoint.source_blob
    name = checkpoint.name if checkpoint.memory else f'{checkpoint.name}.trunk'
    root = Path(cache_dir or constants.HF_ASSETS_CACHE, 'mlfm_zoo')
    return root / f'{name}.{checkpoint.source_blob[:16]}' / 'model.safetensors'


def fetch_released(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Path:
    """Return the converted file of a checkpoint, fetched and converted if this was not done before.

    Processes that ask at the same time do it once, and the others wait. A file that is there costs no request.

    Args:
        checkpoint: A checkpoint that is available from the authors.
        cache_dir: Folder to use instead of the Hub client's own.

    Returns:
        Its path.

    Raises:
        CheckpointError: The file cannot be fetched, is not the one that the manifest names, or holds another network.
    """
    path = released_file(checkpoint, cache_dir)
    try:
        if not path.exists():  # nothing is written beside a file that is there: the cache may be read-only
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix('.lock')):
                if not path.exists():  # another process may have made it meanwhile
                    _make(path, checkpoint)
    except OSError as error:
        raise CheckpointError(
            f'The weights of {checkpoint.title} cannot be kept in {path.parent} ({error.strerror}): free space there, '
            'name another cache_dir, or set HF_HOME.') from error
    return path


def read_record(path: Path, checkpoint: Checkpoint) -> Dict[str, Any]:
    """Read what was recorded of a converted file when it was made.

    Args:
        path: The converted file.
        checkpoint: What it was made from.

    Returns:
        `size` and `sha256` of the file, and `model_args`, the options of the memory that it was recognized to have.

    Raises:
        CheckpointError: The record is missing or damaged.
    """
    try:
        record = json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))
        return dict(size=record['size'], sha256=record['sha256'], model_args=dict(record['model_args']))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'The file of {checkpoint.title} at {path} lacks its record.') from error


def _make(path: Path, checkpoint: Checkpoint) -> None:
    """Fetch, verify and convert a checkpoint. The weights are written last, so that they always have their record."""
    for left in path.parent.glob(f'{UNFINISHED}*'):  # by killed processes: this one holds the lock
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
        source = Path(folder, 'source')
        where = _fetch(checkpoint, source)
        compare_file(
            source, f'{checkpoint.title} at {where}', checkpoint.source_size, blob=checkpoint.source_blob)
        try:
            conversion = convert_state_dict(read_checkpoint(source))
        except ValueError as error:
            text = str(error).replace(str(source), where)
            raise CheckpointError(f'The weights of {checkpoint.title} cannot be converted: {text}') from error
    _check_network(conversion, checkpoint, where)
    content = safetensors.torch.save(conversion.state_dict)
    record = dict(
        size=len(content), sha256=hashlib.sha256(content).hexdigest(), source=where, source_blob=checkpoint.source_blob,
        model_args={k: v for k, v in conversion.model_args.items() if k.startswith('memory_')})
    path.with_suffix('.json').write_text(json.dumps(record, indent=2), encoding='utf-8')
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)


def _check_network(conversion: Conversion, checkpoint: Checkpoint, where: str) -> None:
    """Refuse a file of another network than the manifest names it for."""
    def describe(architecture: str, memory: bool, num_classes: int) -> str:
        return f'{architecture} {"with" if memory else "without"} memory, {num_classes} classes'

    args = conversion.model_args
    found = describe(conversion.architecture, args.get('memory', True), args['num_classes'])
    expected = describe(checkpoint.model, checkpoint.memory, checkpoint.num_classes)
    if found != expected or 'channel_multiplier' in args:
        raise CheckpointError(
            f'The file {where} holds {found}, expected {expected} for {checkpoint.title}: correct its manifest entry.')


def _fetch(checkpoint: Checkpoint, target: Path) -> str:
    """Copy the authors' file to a path; returns where it came from."""
    assert checkpoint.source_path
    mirror = os.environ.get(MIRROR) or ''
    limit = checkpoint.source_size or MAX_SIZE
    if mirror and not mirror.startswith(('http://', 'https://')):
        original = Path(mirror, checkpoint.source_path)
        try:
            file = open(original, 'rb')
        except OSError as error:
            raise CheckpointError(
                f'The weights of {checkpoint.title} cannot be read from {original} ({error.strerror}): {MIRROR} must '
                f'name a clone of {checkpoint.source_repo}.') from error
        with file:
            _write(iter(lambda: file.read(CHUNK), b''), target, limit, str(original))
        return str(original)

    url = f'{mirror.rstrip("/")}/{quote(checkpoint.source_path)}' if mirror else source_url(checkpoint)
    shown = re.sub('//[^/]*@', '//', url).partition('?')[0]  # without a password or a token
    start = f'The weights of {checkpoint.title} could not be downloaded from {shown}'
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f'{start}: HF_HUB_OFFLINE is set and they are not in the cache; unset it once, or let {MIRROR} name a '
            f'clone of {checkpoint.source_repo}.')
    try:
        with _response(url) as (status, size, chunks):
            if status != 200:
                again = 'try again later' if status >= 500 else 'update mlfm_zoo or its manifest'
                raise CheckpointError(f'{start}: the server answered with status {status}; {again}.')
            hidden = not sys.stderr.isatty()
            with tqdm(total=size, unit='B', unit_scale=True, desc=checkpoint.title, disable=hidden) as bar:
                _write(chunks, target, limit, shown, bar.update)
    except CheckpointError:
        raise
    except Exception as error:  # the client raises those of its HTTP library, which differs between its versions
        if isinstance(error, OSError) and error.strerror:  # of the disk
            raise
        raise CheckpointError(
            f'{start}: there was no answer, or the transfer broke off ({type(error).__name__}); try again, or let '
            f'{MIRROR} name a clone of {checkpoint.source_repo}.') from error
    return shown


@contextlib.contextmanager
def _response(url: str) -> Iterator[Tuple[int, Optional[int], Iterator[bytes]]]:
    """Status, size if it is known, and content of an answer, through the Hub client's own session, with its proxies."""
    session: Any = get_session()
    headers = {'Accept-Encoding': 'identity'}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(session.stream):  # httpx, from huggingface_hub 1.0 on; in requests it is a setting
        opened = session.stream('GET', url, headers=headers, timeout=timeout, follow_redirects=True)
        content = 'iter_bytes'
    else:
        opened = session.get(url, headers=headers, timeout=timeout, stream=True)
        content = 'iter_content'
    with opened as response:
        length = response.headers.get('Content-Length', '')
        yield response.status_code, int(length) if length.isdecimal() else None, getattr(response, content)(CHUNK)


def _write(
        chunks: Iterator[bytes],
        target: Path,
        limit: int,
        where: str,
        progress: Callable[[int], Any] = lambda size: None,
) -> None:
    """Write chunks to a file, and stop when there are more bytes than the limit."""
    total = 0
    with open(target, 'wb') as file:
        for chunk in chunks:
            total += len(chunk)
            if total > limit:
                raise CheckpointError(f'The file {where} has more than {limit:,} bytes, the most that was expected.')
            file.write(chunk)
            progress(len(chunk))
