"""From a checkpoint of the manifest to a file on this machine whose bytes are the ones that the manifest names."""

import contextlib
import dataclasses
import errno
import re
from pathlib import Path
from typing import Optional, Union

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .files import CheckpointError, Weights, compare_file, file_digest
from .manifest import PACKAGE, Checkpoint, checkpoints_of
from .released import fetch_released, released_file, verify_released

__all__ = [
    'CheckpointError', 'cached_checkpoint', 'fetch_checkpoint', 'file_digest', 'find_checkpoint', 'verify_checkpoint',
    'verify_file',
]


def find_checkpoint(model: str, tag: str, memory: bool = True) -> Checkpoint:
    """The checkpoint `model.tag`, which can be had.

    Args:
        model: Registered name.
        tag: Tag of the weights; empty where the network has none to fall back on.
        memory: Whether the network has its memory. Weights of the network without it are taken if there are any under
            the tag, and else those of the network with it, whose trunk they hold.

    Returns:
        The manifest's entry.

    Raises:
        CheckpointError: It cannot be had; the message says what can, for this network, and how to make the rest.
    """
    checkpoints = checkpoints_of(model)
    tagged = [c for c in checkpoints if c.tag == tag and c.available]
    for checkpoint in sorted(tagged, key=lambda c: c.memory != memory):
        if checkpoint.memory or not memory:
            return checkpoint
    data, trained_tag = ('ImageNet100', 'in100') if 'mlfm_' in model else ('ImageNet', 'in1k')
    asked = f'The weights {model}.{tag}' if tag else f'{data} weights of {model}'
    ways = []
    for verb, initial in (('load', False), ('start a training from', True)):
        available = [c.name for c in checkpoints
                     if c.available and c.memory and (c.kind == 'initialisation') == initial]
        if available:
            more = f' and {len(available) - 3} more (mlfm-zoo list {model})' if len(available) > 3 else ''
            ways.append(f'{verb} {", ".join(available[:3])}{more}')
    ways += [f'make {c.name} ({c.recipe})' for c in checkpoints if not c.available and tag in ('', c.tag)]
    if tag in ('', trained_tag) and model.startswith(('mlfm_', 'gssdnet_')):
        ways.append(f'train it (mlfm-zoo recipe {model})')
    ways.append('build it untrained with pretrained=False')
    raise CheckpointError(f'{asked} are not published: {", or ".join(ways)}.')


def fetch_checkpoint(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Weights:
    """The file of a checkpoint on this machine, downloaded if need be, and verified.

    Size and SHA-256 are the manifest's; of a file of the authors', size and git blob id are, and then what was
    converted from it is compared with what was written. A file in the cache costs no request if the manifest pins its
    commit. A file that differs is removed from the cache, so that no later call takes it.

    Args:
        checkpoint: A checkpoint that can be had.
        cache_dir: Cache of the Hub client, its own default if None.

    Returns:
        Where it lies, and what it decides about the network.

    Raises:
        CheckpointError: The file cannot be had, or is not the one that the manifest names.
    """
    place = checkpoint.places[0]
    if place == 'package':
        assert checkpoint.file
        path = PACKAGE / checkpoint.file
        verify_file(path, checkpoint)
        return Weights(path)
    if place == 'authors':
        return fetch_released(checkpoint, cache_dir)
    return Weights(_fetch_from_hub(checkpoint, cache_dir))


def cached_checkpoint(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Optional[Path]:
    """Look for the file of a checkpoint on this machine, without verifying it.

    Args:
        checkpoint: A checkpoint.
        cache_dir: Cache of the Hub client, its own default if None.

    Returns:
        Where it lies; None if it is not here, or cannot be had.
    """
    place = checkpoint.places[0] if checkpoint.places else None
    if place == 'package':
        assert checkpoint.file
        return PACKAGE / checkpoint.file
    if place == 'authors':
        path = released_file(checkpoint, cache_dir)
        return path if path.exists() else None
    if place == 'hub':
        assert checkpoint.hub_repo and checkpoint.file
        found = try_to_load_from_cache(
            checkpoint.hub_repo, checkpoint.file, revision=checkpoint.commit, cache_dir=cache_dir)
        return Path(found) if isinstance(found, str) else None
    return None


def verify_checkpoint(path: Path, checkpoint: Checkpoint) -> bool:
    """Compare a file that `cached_checkpoint` found with all that is known of it, without loading it.

    Args:
        path: The file.
        checkpoint: What it should be.

    Returns:
        Whether a digest of it was known.

    Raises:
        CheckpointError: It differs.
    """
    if checkpoint.places[0] == 'authors':
        verify_released(path, checkpoint)
        return True
    verify_file(path, checkpoint)
    return checkpoint.sha256 is not None


def _fetch_from_hub(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]]) -> Path:
    assert checkpoint.hub_repo and checkpoint.file
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

    Args:
        path: The file.
        checkpoint: What it should be.

    Raises:
        CheckpointError: The file is missing, or its size or SHA-256 differs.
    """
    compare_file(path, checkpoint.title, checkpoint.size, checkpoint.sha256)


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
