"""From a checkpoint of the manifest to a file on this machine whose bytes are the ones that the manifest names."""

import contextlib
import dataclasses
import errno
import hashlib
import re
from pathlib import Path
from typing import Optional, Union

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .manifest import PACKAGE, Checkpoint, checkpoints_of

__all__ = ['CheckpointError', 'fetch_checkpoint', 'file_digest', 'find_checkpoint', 'verify_file']


class CheckpointError(RuntimeError):
    """A checkpoint cannot be had, or its file is not the one that the manifest names."""


def find_checkpoint(model: str, tag: str) -> Checkpoint:
    """The published checkpoint `model.tag`.

    Args:
        model: Registered name.
        tag: Tag of the weights; empty where the network has none to fall back on.

    Raises:
        CheckpointError: It is not published; the message says what is, for this network, and how to make the rest.
    """
    checkpoints = checkpoints_of(model)
    for checkpoint in checkpoints:
        if checkpoint.tag == tag and checkpoint.published:
            return checkpoint
    asked = f'The weights {model}.{tag}' if tag else f'ImageNet100 weights of {model}'
    ways = []
    published = [c.name for c in checkpoints if c.published]
    if published:
        more = f' and {len(published) - 3} more (python -m mlfm_zoo list {model})' if len(published) > 3 else ''
        ways.append(f'load {", ".join(published[:3])}{more}')
    ways += [f'make {c.name} ({c.recipe})' for c in checkpoints if not c.published and tag in ('', c.tag)]
    if tag in ('', 'in100') and model.startswith('mlfm_'):
        ways.append(f'train it (python -m mlfm_zoo recipe {model})')
    ways.append('build it untrained with pretrained=False')
    raise CheckpointError(f'{asked} are not published: {", or ".join(ways)}.')


def fetch_checkpoint(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Path:
    """Path of a published checkpoint's file, downloaded if need be, its size and SHA-256 verified.

    A file in the cache costs no request if the manifest pins its commit. A file that is not the manifest's is removed
    from the cache, so that no later call takes it.

    Args:
        checkpoint: A published checkpoint.
        cache_dir: Cache of the Hub client, its own default if None.

    Raises:
        CheckpointError: The file cannot be had, or is not the one that the manifest names.
    """
    if checkpoint.kind == 'embedded':
        path = PACKAGE / checkpoint.file
        verify_file(path, checkpoint)
        return path
    where = f'{checkpoint.hub_repo}/{checkpoint.file}'
    blobs = Path(cache_dir or constants.HF_HUB_CACHE, f'models--{checkpoint.hub_repo.replace("/", "--")}', 'blobs')
    unfinished_before = set(blobs.glob('*.incomplete'))
    try:
        path = Path(hf_hub_download(
            checkpoint.hub_repo, checkpoint.file, revision=checkpoint.commit, cache_dir=cache_dir))
    except Exception as error:  # the client raises those of its http library too, which differs between its versions
        raise CheckpointError(_download_fault(error, checkpoint, where, cache_dir)) from error
    finally:  # older clients leave what they had when they were stopped
        for unfinished in set(blobs.glob('*.incomplete')) - unfinished_before:
            with contextlib.suppress(OSError):
                unfinished.unlink()
    # The Hub names an LFS file by its SHA-256, and its client the file in the cache by that.
    if checkpoint.sha256 is None and re.fullmatch('[0-9a-f]{64}', path.resolve().name):
        checkpoint = dataclasses.replace(checkpoint, sha256=path.resolve().name)
    try:
        verify_file(path, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f'{str(error)[:-1]}; {_remove_from_cache(path)}') from None
    return path


def verify_file(path: Path, checkpoint: Checkpoint) -> None:
    """Compare a file with what the manifest says of it. What the manifest does not know is not compared.

    Raises:
        CheckpointError: The file is missing, or its size or SHA-256 differs.
    """
    try:
        size = path.stat().st_size
        if checkpoint.size is not None and size != checkpoint.size:
            raise CheckpointError(
                f'The file of {checkpoint.name} has {size:,} bytes, expected {checkpoint.size:,}.')
        if checkpoint.sha256 is not None and (digest := file_digest(path)) != checkpoint.sha256:
            raise CheckpointError(
                f'The file of {checkpoint.name} has SHA-256 {digest}, expected {checkpoint.sha256}.')
    except OSError as error:
        raise CheckpointError(
            f'The file of {checkpoint.name} at {path} cannot be read ({error.strerror}): install or download it '
            'again.') from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _remove_from_cache(path: Path) -> str:
    """Remove a file and the blob it links to from the Hub client's cache; say what was done, or what to do."""
    blob = path.resolve()
    try:
        for file in {path, blob}:
            file.unlink(missing_ok=True)
    except OSError:
        return f'it could not be removed from the cache, which is read-only: remove {blob}, or name another cache_dir.'
    return 'it was removed from the cache: try again, and report it if it happens again.'


def _download_fault(error: BaseException, checkpoint: Checkpoint, where: str, cache_dir) -> str:
    """One sentence on why a download failed, and what to do."""
    cache = cache_dir or constants.HF_HUB_CACHE
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    codes = {getattr(cause, 'errno', None) for cause in causes}
    # those of a connection have no file name
    file_codes = {cause.errno for cause in causes if isinstance(cause, OSError) and cause.filename is not None}
    start = f'The weights of {checkpoint.name} could not be downloaded from {where}'
    if codes & {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f'{start}: no space is left in {cache}; free some, or name another cache_dir.'
    if file_codes & {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}:
        return f'{start}: the cache {cache} cannot be written to; name another cache_dir, or set HF_HOME.'
    if isinstance(error, GatedRepoError):
        return f'{start}: the repository is gated; ask for access on its page, then log in with `hf auth login`.'
    if isinstance(error, RepositoryNotFoundError):
        return f'{start}: there is no such repository, or it is private; log in with `hf auth login` if it is yours.'
    if isinstance(error, RevisionNotFoundError):
        return f'{start}: the repository has no commit {checkpoint.commit}; update mlfm_zoo or its manifest.'
    if isinstance(error, LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return f'{start}: HF_HUB_OFFLINE is set and the cache {cache} does not have them; unset it once.'
        return f'{start}: the Hub did not answer and the cache {cache} does not have them; check the network.'
    if isinstance(error, EntryNotFoundError):
        return f'{start}: the repository has no such file at that commit; update mlfm_zoo or its manifest.'
    if isinstance(error, HfHubHTTPError) and getattr(error, 'response', None) is not None:
        return f'{start}: the Hub answered with status {error.response.status_code}; try again later.'
    return f'{start}: the transfer broke off ({type(error).__name__}); try again.'
