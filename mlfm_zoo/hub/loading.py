"""Load checkpoints of the manifest as verified files on this machine."""

import contextlib
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
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .files import CheckpointError, Weights, compare_file
from .manifest import PACKAGE, Checkpoint, load_manifest
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

    Examples:
        >>> checkpoint = find_checkpoint('test_mlfm_resnet', 'digits')
        >>> checkpoint.name, checkpoint.num_classes
        ('test_mlfm_resnet.digits', 10)
    """
    checkpoints = [c for c in load_manifest().values() if c.model == model]
    tagged = [c for c in checkpoints if c.tag == tag and c.available]
    for checkpoint in sorted(tagged, key=lambda c: c.memory != memory):
        if checkpoint.memory or not memory:
            return checkpoint
    ways = [f'{"start a training from" if c.kind == "initialisation" else "load"} {c.name}'
            for c in checkpoints if c.available and c.memory][:3]
    ways += [f'make {c.name} ({c.recipe})' for c in checkpoints if not c.available and tag in ('', c.tag)]
    if model.startswith(('mlfm_', 'gssdnet_')):
        ways.append(f'train it (mlfm-zoo recipe {model})')
    ways.append('build it untrained with pretrained=False')
    asked = f'The weights {model}.{tag}' if tag else f'Trained weights of {model}'
    raise CheckpointError(f'{asked} are not published: {", or ".join(ways)} (mlfm-zoo list {model} shows all weights).')


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

    Examples:
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
        blob = path.resolve()
        with contextlib.suppress(OSError):  # the cache may be read-only
            blob.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        done = f'remove {blob} from the cache' if blob.exists() else 'it was removed from the cache: try again'
        raise CheckpointError(f'{str(error)[:-1]}; {done}.') from error
    return Weights(path, released_model_args(path) if place == 'authors' else {})


def cached_checkpoint(checkpoint: Checkpoint, cache_dir: Optional[Union[str, Path]] = None) -> Optional[Path]:
    """Look for the file of a checkpoint on this machine, without verifying it.

    Args:
        checkpoint: A checkpoint.
        cache_dir: Cache of the Hub client, its own default if None.

    Returns:
        Its path; None if it is not here.

    Examples:
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

    Examples:
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
        cache = Path(cache_dir or constants.HF_HUB_CACHE)
        if isinstance(error, RepositoryNotFoundError):  # or it is gated
            fault = 'there is no such repository, or it is not open; ask for access, then log in with `hf auth login`'
        elif isinstance(error, LocalEntryNotFoundError):
            reason = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else 'the Hub did not answer'
            fault = f'{reason} and the cache {cache} does not have them; load them once with a network'
        elif isinstance(error, (EntryNotFoundError, RevisionNotFoundError)):
            fault = f'the repository has no such file at commit {checkpoint.commit}; update mlfm_zoo or its manifest'
        elif isinstance(error, OSError) and error.strerror:
            fault = f'the cache {cache} cannot be written to ({error.strerror}); name another cache_dir'
        else:
            fault = f'the transfer broke off ({type(error).__name__}); try again'
        raise CheckpointError(
            f'The weights of {checkpoint.name} could not be downloaded from {checkpoint.hub_repo}/{checkpoint.file}: '
            f'{fault}.') from error


def _require_answer(url: str) -> None:
    """Ask for a file once: without a network, `hf_hub_download` asks for about 30 s."""
    try:
        get_hf_file_metadata(url)
    except HfHubHTTPError:  # an answer; hf_hub_download turns it into an error
        pass
    except Exception as error:  # those of the HTTP library, which differs between versions of the client
        raise LocalEntryNotFoundError('The Hub did not answer.') from error
