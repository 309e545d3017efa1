"""Checkpoints that their authors released in a form of their own: fetched, verified, converted once, and kept.

The file comes from the authors' repository at the manifest's commit, or from what `MLFM_ZOO_PAPER_MIRROR` names in its
place: a folder that holds a clone of the repository, or an http(s) address that stands for its root. Its size, where
known, and its git blob id are compared before a byte of it is parsed. What was converted is kept as safetensors, with
its own size and SHA-256 beside it, in the folder for other libraries' files of the Hub client, below HF_HOME.
"""

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Optional, Tuple, Union
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

import safetensors.torch
from filelock import FileLock
from huggingface_hub import constants, get_session
from huggingface_hub.utils import tqdm

from ..convert import Conversion, convert_state_dict, read_checkpoint
from .files import CheckpointError, Weights, compare_file, file_digest, git_blob_id
from .manifest import Checkpoint

__all__ = ['fetch_released', 'released_file', 'source_url', 'verify_released']

MIRROR = 'MLFM_ZOO_PAPER_MIRROR'
MAX_SIZE = 1 << 30  # bytes of a file whose size the manifest does not know
CHUNK = 1 << 20
RECORD = 'record.json'


def source_url(checkpoint: Checkpoint) -> str:
    """Address of the authors' file, at the manifest's commit."""
    assert checkpoint.source_repo and checkpoint.source_path
    repository = checkpoint.source_repo.removeprefix('github.com/')
    return f'https://raw.githubusercontent.com/{repository}/{checkpoint.source_commit}/{quote(checkpoint.source_path)}'


def released_file(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Path:
    """Say where the converted file of a checkpoint is kept.

    Args:
        checkpoint: A checkpoint that can be had from the authors.
        cache_dir: Folder in the place of the Hub client's own.

    Returns:
        Its path, whether it is there or not.
    """
    assert checkpoint.source_blob
    name = checkpoint.name if checkpoint.memory else f'{checkpoint.name}.trunk'
    root = Path(cache_dir or constants.HF_ASSETS_CACHE, 'mlfm_zoo')
    return root / f'{name}.{checkpoint.source_blob[:16]}' / 'model.safetensors'


def fetch_released(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Weights:
    """The converted file of a checkpoint, fetched and converted if this was not done before.

    Processes that ask at once do it once, and the others wait. No request is made for what is there.

    Args:
        checkpoint: A checkpoint that can be had from the authors.
        cache_dir: Folder in the place of the Hub client's own.

    Returns:
        Where it lies, and the options of the memory that it was recognised to have.

    Raises:
        CheckpointError: The file cannot be had, is not the one that the manifest names, or holds another network.
    """
    path = released_file(checkpoint, cache_dir)
    folder = path.parent
    try:
        if not path.exists():  # nothing is written where it is, which may be a cache that others own
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f'.{folder.name}.lock')):
                if not path.exists():  # another process may have made it while this one waited
                    _make(folder, checkpoint)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = 'no space is left in' if full else 'nothing can be written to'
        raise CheckpointError(
            f'The weights of {checkpoint.title} cannot be kept: {what} {folder.parent} ({error.strerror}); '
            f'{"free some" if full else "set HF_HOME"}, or name another cache_dir.') from None
    return verify_released(path, checkpoint)


def verify_released(path: Path, checkpoint: Checkpoint) -> Weights:
    """Compare a converted file with what was written down of it when it was made.

    Args:
        path: The file.
        checkpoint: What it was made from.

    Returns:
        The path, and the options of the memory that were written down.

    Raises:
        CheckpointError: It differs; it is removed, so that no later call takes it.
    """
    try:
        try:
            record = json.loads(path.with_name(RECORD).read_text(encoding='utf-8'))
            size, sha256, model_args = record['size'], record['sha256'], dict(record['model_args'])
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f'The file of {checkpoint.title} at {path} lacks its record.') from None
        compare_file(path, checkpoint.title, size, sha256)
    except CheckpointError as error:
        try:
            shutil.rmtree(path.parent)
        except OSError:
            raise CheckpointError(
                f'{str(error)[:-1]}; it could not be removed from the cache, which is read-only: remove {path.parent}, '
                'or name another cache_dir.') from None
        raise CheckpointError(f'{str(error)[:-1]}; it was removed from the cache: try again.') from None
    return Weights(path, model_args)


def _make(folder: Path, checkpoint: Checkpoint) -> None:
    """Fetch, verify and convert a checkpoint in a folder beside its own, and move that into place when it is whole."""
    for left in folder.parent.glob(f'.{folder.name}.unfinished-*'):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.unfinished-', dir=folder.parent) as unfinished:
        source, made = Path(unfinished, 'source'), Path(unfinished, 'made')
        where = _fetch(checkpoint, source)
        _verify_source(source, checkpoint, where)
        try:
            conversion = convert_state_dict(read_checkpoint(source))
        except ValueError as error:
            raise CheckpointError(f'The weights of {checkpoint.title} cannot be converted: '
                                  f'{str(error).replace(str(source), where)}') from None
        _check_network(conversion, checkpoint, where)
        made.mkdir()
        file = made / 'model.safetensors'
        _save(conversion, file)
        record = dict(
            size=file.stat().st_size, sha256=file_digest(file), source=where, source_blob=checkpoint.source_blob,
            model_args={k: v for k, v in conversion.model_args.items() if k.startswith('memory_')})
        (made / RECORD).write_text(json.dumps(record, indent=2), encoding='utf-8')
        os.replace(made, folder)


def _save(conversion: Conversion, file: Path) -> None:
    try:
        safetensors.torch.save_file(conversion.state_dict, file)
    except safetensors.SafetensorError as error:  # which tells no number of what went wrong on the disk
        no_space = 'No space' in str(error) or 'os error 28' in str(error) or 'os error 27' in str(error)
        raise OSError(errno.ENOSPC if no_space else errno.EIO, str(error)) from None
    file.chmod(0o644)  # safetensors makes its files private


def _verify_source(source: Path, checkpoint: Checkpoint, where: str) -> None:
    size = source.stat().st_size
    if checkpoint.source_size is not None and size != checkpoint.source_size:
        raise CheckpointError(f'The file {where} of {checkpoint.title} has {size:,} bytes, expected '
                              f'{checkpoint.source_size:,}: nothing of it was read or kept; try again.')
    if (blob := git_blob_id(source)) != checkpoint.source_blob:
        raise CheckpointError(f'The file {where} of {checkpoint.title} has the git blob id {blob}, expected '
                              f'{checkpoint.source_blob}: nothing of it was read or kept; try again.')


def _check_network(conversion: Conversion, checkpoint: Checkpoint, where: str) -> None:
    """The file holds the network whose name it stands under."""
    args = conversion.model_args
    memory = args.get('memory', True)
    if (conversion.architecture, memory, args['num_classes'], args.get('channel_multiplier')) != (
            checkpoint.model, checkpoint.memory, checkpoint.num_classes, None):
        name, weight = next(
            (k, v) for k, v in conversion.state_dict.items() if k.endswith('conv_stem.weight') or v.ndim == 4)
        raise CheckpointError(
            f'The file {where} holds {conversion.architecture} {"with" if memory else "without"} memory, '
            f'{args["num_classes"]} classes and {name} of shape {tuple(weight.shape)}, expected {checkpoint.title} of '
            f'{checkpoint.num_classes} classes: correct its manifest entry.')


def _fetch(checkpoint: Checkpoint, target: Path) -> str:
    """Copy the authors' file to a path; returns where it came from."""
    assert checkpoint.source_path
    limit = checkpoint.source_size or MAX_SIZE
    folder, url = _origin(checkpoint)
    with open(target, 'wb') as file:
        if folder is not None:
            path = folder / checkpoint.source_path
            try:
                with open(path, 'rb') as original:
                    chunks = iter(lambda: original.read(CHUNK), b'')
                    _write(chunks, file, limit, path, checkpoint)
            except OSError as error:
                if error.filename is None:  # of what is written, not of what is read
                    raise
                raise CheckpointError(
                    f'The weights of {checkpoint.title} cannot be read from {path} ({error.strerror}): {MIRROR} must '
                    f'name a clone of {checkpoint.source_repo}.') from None
            return str(path)
        start = f'The weights of {checkpoint.title} could not be downloaded from {url}'
        if constants.HF_HUB_OFFLINE:
            raise CheckpointError(
                f'{start}: HF_HUB_OFFLINE is set and they are not in the cache; unset it once, or let {MIRROR} name a '
                f'clone of {checkpoint.source_repo}.')
        try:
            with _response(url) as (status, size, chunks):
                if status != 200:
                    again = 'try again later' if status >= 500 else 'update mlfm_zoo or its manifest'
                    raise CheckpointError(f'{start}: the server answered with status {status}; {again}.')
                with tqdm(total=size, unit='B', unit_scale=True, desc=checkpoint.title,
                          disable=not sys.stderr.isatty()) as bar:
                    _write(chunks, file, limit, url, checkpoint, bar)
        except (CheckpointError, OSError) as error:
            if isinstance(error, CheckpointError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise CheckpointError(f'{start}: {_transfer_fault(error)}.') from error
        except Exception as error:  # the client raises those of its http library, which differs between its versions
            raise CheckpointError(f'{start}: {_transfer_fault(error)}.') from error
    return url


def _origin(checkpoint: Checkpoint) -> Tuple[Optional[Path], str]:
    """The folder to copy from, or else the address to download from."""
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return None, source_url(checkpoint)
    assert checkpoint.source_path
    scheme = urlsplit(mirror).scheme.lower() if '://' in mirror else ''
    if scheme in ('http', 'https'):
        return None, f'{mirror.rstrip("/")}/{quote(checkpoint.source_path)}'
    if scheme not in ('', 'file'):
        raise CheckpointError(
            f'{MIRROR} is {mirror!r}, expected a folder or an address that starts with http, https or file: correct it '
            'or unset it.')
    folder = Path(url2pathname(unquote(urlsplit(mirror).path)) if scheme else mirror)
    if not folder.is_dir():
        raise CheckpointError(f'{MIRROR} is {mirror!r}, which is no folder: let it name a clone of '
                              f'{checkpoint.source_repo}, or unset it.')
    return folder, ''


@contextlib.contextmanager
def _response(url: str) -> Iterator[Tuple[int, Optional[int], Iterator[bytes]]]:
    """Status, size if it is told, and content of an answer, through the Hub client's own session, with its proxies."""
    session: Any = get_session()
    headers = {'Accept-Encoding': 'identity'}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(session.stream):  # httpx, from huggingface_hub 1.0 on; in requests it is a setting
        answer = session.stream('GET', url, headers=headers, timeout=timeout, follow_redirects=True)
        with answer as response:
            yield response.status_code, _length(response.headers), response.iter_bytes(CHUNK)
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response.status_code, _length(response.headers), response.iter_content(CHUNK)


def _length(headers) -> Optional[int]:
    text = headers.get('Content-Length', '')
    return int(text) if text.isdecimal() else None


def _write(chunks: Iterator[bytes], file: BinaryIO, limit: int, where, checkpoint: Checkpoint, bar=None) -> None:
    """Write what comes, and stop when it is more than the limit."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise CheckpointError(
                f'The file {where} of {checkpoint.title} has more than {limit:,} bytes, which is what was expected at '
                'the most: nothing of it was read or kept.')
        file.write(chunk)
        if bar is not None:
            bar.update(len(chunk))


def _transfer_fault(error: Exception) -> str:
    kind = type(error).__name__
    if kind in ('UnsupportedProtocol', 'InvalidSchema', 'MissingSchema', 'InvalidURL'):
        return f'it leads to an address that is not http ({kind}), which is not followed'
    if 'Connect' in kind or isinstance(error, ConnectionError):
        return f'there was no answer ({kind}); check the network, or let {MIRROR} name a clone of the repository'
    return f'the transfer broke off ({kind}); try again'
