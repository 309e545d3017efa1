"""Load checkpoints of the manifest as verified files on this machine."""

import re
from pathlib import Path
from typing import Optional, Union

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .files import CheckpointError, Weights, compare_file
from .manifest import PACKAGE, Checkpoint, checkpoints_of
from .released import fetch_released, find_released, released_model_args

__all__ = ['CheckpointError', 'cached_checkpoint', 'fetch_checkpoint', 'find_checkpoint', 'verify_checkpoint']


def find_checkpoint(model: str, tag: str, memory: bool = True) -> Checkpoint:
    """Find the available checkpoint `model.tag`.

    Args:
        model: Registered name.
        tag: Tag of the weights; empty if the network has no default weights.
        memory: Whether the network has its memory. If not, weights that were trained without memory are preferred;
            where there are none, the trunk is taken from the weights with memory.

    Returns:
        The manifest's entry.

    Raises:
        CheckpointError: It is not available. The message lists what is, and how to make the rest.

    Example:
        >>> checkpoint = find_checkpoint('test_mlfm_resnet', 'digits')
        >>> checkpoint.name, checkpoint.num_classes
        ('test_mlfm_resnet.digits', 10)
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
        available = [c.name for c in sorted(checkpoints, key=lambda c: c.kind == 'embedded')
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
    """Return the verified file of a checkpoint, downloaded if it is not in the cache.

    A cached file at a pinned commit costs no request. A cached file that differs is removed from the cache.

    Args:
        checkpoint: An available checkpoint.
        cache_dir: Cache of the Hub client, its own default if None.

    Returns:
        The path, and the arguments of the network that follow from the file.

    Raises:
        CheckpointError: The file cannot be fetched, or is not the one that the manifest names.

    Example:
        >>> fetch_checkpoint(find_checkpoint('test_mlfm_resnet', 'digits')).path.name
        'test_mlfm_resnet.digits.safetensors'
    """
    place = checkpoint.places[0]
    if place == 'package':
        assert checkpoint.file
        path = PACKAGE / checkpoint.file
    else:
        path = (fetch_released if place == 'authors' else _fetch_from_hub)(checkpoint, cache_dir)
    try:
        verify_checkpoint(path, checkpoint)
    except CheckpointError as error:
        if place == 'package':
            raise
        raise CheckpointError(f'{str(error)[:-1]}; {_remove_from_cache(path)}') from error
    return Weights(path, released_model_args(path) if place == 'authors' else {})


def cached_checkpoint(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Optional[Path]:
    """Look for the file of a checkpoint on this machine, without verifying it.

    Args:
        checkpoint: A checkpoint.
        cache_dir: Cache of the Hub client, its own default if None.

    Returns:
        Its path; None if it is not here.

    Example:
        >>> cached_checkpoint(find_checkpoint('test_mlfm_resnet', 'digits')).name
        'test_mlfm_resnet.digits.safetensors'
    """
    if not checkpoint.available:
        return None
    if checkpoint.places[0] == 'authors':
        return find_released(checkpoint, cache_dir)
    assert checkpoint.file
    if checkpoint.places[0] == 'package':
        return PACKAGE / checkpoint.file
    assert checkpoint.hub_repo
    found = try_to_load_from_cache(
        checkpoint.hub_repo, checkpoint.file, revision=checkpoint.commit, cache_dir=cache_dir)
    return Path(found) if isinstance(found, str) else None


def verify_checkpoint(path: Path, checkpoint: Checkpoint) -> bool:
    """Compare the file of a checkpoint with its known size and digest.

    A file from the Hub is compared with the manifest's size and SHA-256. If the manifest has no SHA-256, the digest in
    the Hub's file name is used: a SHA-256 or a git blob id. A converted file has its SHA-256 as its name.

    Args:
        path: The file, as `cached_checkpoint` returns it.
        checkpoint: The checkpoint.

    Returns:
        Whether a SHA-256 or git blob id was known.

    Raises:
        CheckpointError: The file differs.

    Example:
        >>> checkpoint = find_checkpoint('test_mlfm_resnet', 'digits')
        >>> verify_checkpoint(fetch_checkpoint(checkpoint).path, checkpoint)
        True
    """
    # the manifest does not know the file that this machine converted
    size, sha256 = (None, None) if checkpoint.places[0] == 'authors' else (checkpoint.size, checkpoint.sha256)
    digits = path.resolve().stem  # in the Hub client's cache: an LFS file's SHA-256, any other's git blob id
    if sha256 is None and re.fullmatch('[0-9a-f]{64}', digits):
        sha256 = digits
    blob = digits if sha256 is None and re.fullmatch('[0-9a-f]{40}', digits) else None
    compare_file(path, checkpoint.title, size, sha256, blob)
    return sha256 is not None or blob is not None


def _fetch_from_hub(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]]) -> Path:
    assert checkpoint.hub_repo and checkpoint.file
    try:
        if not constants.HF_HUB_OFFLINE and cached_checkpoint(checkpoint, cache_dir) is None:
            _require_answer(hf_hub_url(checkpoint.hub_repo, checkpoint.file, revision=checkpoint.commit))
        return Path(hf_hub_download(
            checkpoint.hub_repo, checkpoint.file, revision=checkpoint.commit, cache_dir=cache_dir))
    except Exception as error:  # of any kind: the client's HTTP library differs between its versions
        where = f'{checkpoint.hub_repo}/{checkpoint.file}'
        fault = _download_fault(error, checkpoint, Path(cache_dir or constants.HF_HUB_CACHE))
        raise CheckpointError(
            f'The weights of {checkpoint.name} could not be downloaded from {where}: {fault}.') from error


def _require_answer(url: str) -> None:
    """Ask for a file once: without a network, `hf_hub_download` asks for about 30 s."""
    try:
        get_hf_file_metadata(url)
    except HfHubHTTPError:  # an answer; hf_hub_download turns it into an error
        pass
    except Exception as error:  # those of the HTTP library, which differs between versions of the client
        raise LocalEntryNotFoundError('The Hub did not answer.') from error


def _download_fault(error: Exception, checkpoint: Checkpoint, cache: Path) -> str:
    """Why a download failed, and what to do."""
    for kind, fault in (  # from the special to the general
        (GatedRepoError, 'the repository is gated; ask for access on its page, then log in with `hf auth login`'),
        (RepositoryNotFoundError, 'there is no such repository, or it is private; log in with `hf auth login` if it is '
                                  'yours'),
        (RevisionNotFoundError, f'the repository has no commit {checkpoint.commit}; update mlfm_zoo or its manifest'),
        (LocalEntryNotFoundError,
         f'HF_HUB_OFFLINE is set and the cache {cache} does not have them; unset it once' if constants.HF_HUB_OFFLINE
         else f'the Hub did not answer and the cache {cache} does not have them; check the network'),
        (EntryNotFoundError, 'the repository has no such file at that commit; update mlfm_zoo or its manifest'),
        (HfHubHTTPError, f'the Hub answered with an error ({type(error).__name__}); try again later'),
    ):
        if isinstance(error, kind):
            return fault
    if isinstance(error, OSError) and error.strerror:
        return f'the cache {cache} cannot be written to ({error.strerror}); free space there, or name another cache_dir'
    return f'the transfer broke off ({type(error).__name__}); try again'


def _remove_from_cache(path: Path) -> str:
    """Remove a cached file and its blob; return what was done, or what to do."""
    blob = path.resolve()
    try:
        for file in {path, blob}:
            file.unlink(missing_ok=True)
    except OSError:
        return f'it could not be removed from the cache, which is read-only: remove {blob}, or name another cache_dir.'
    return 'it was removed from the cache: try again, and report it if it happens again.'
