"""The manifest: which checkpoints exist, where their files are, and their digests.

`weights_manifest.yaml` lists them, and the accuracies in the authors' README. `MLFM_ZOO_MANIFEST` names a second file
of the same form, whose entries are added and replace those of the same model and tag. `MLFM_ZOO_HUB` names an
organization that replaces the owner of every Hub repository.
"""

import dataclasses
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union, get_type_hints

import yaml

from .._types import fits

__all__ = [
    'KINDS', 'OF_TIMM', 'Checkpoint', 'ManifestError', 'PaperAccuracy', 'load_manifest', 'manifest_path',
    'paper_accuracies', 'read_manifest',
]

KINDS = ('embedded', 'paper', 'trained', 'warm_start', 'initialisation')
OF_TIMM = ('warm_start', 'initialisation')  # kinds whose files on the Hub are in timm's own repositories
PLACES = ('package', 'hub', 'authors')
SCHEMA_VERSION = 2
PACKAGE = Path(__file__).parents[1]


class ManifestError(ValueError):
    """A manifest does not follow the schema; the message names file, entry and fault."""


# Model, tag, and whether the weights have a memory.
Key = Tuple[str, str, bool]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        model: Registered name of the network.
        tag: Tag of the weights; `model.tag` is what `timm.create_model` takes.
        kind: 'embedded' (in the package), 'paper' (the authors' weights, converted), 'trained' (by this project's
            recipes), 'warm_start' (weights without memory in the trunk, memory at identity), or 'initialisation'
            (timm's weights of a trunk on RGB images, from which a network on DCT coefficients starts).
        places: Where `pretrained=True` can take the weights from, the preferred place first: 'package', 'hub' (`repo`
            and `file`) or 'authors' (`source_repo` and what follows). Empty if they are available nowhere.
        license: SPDX name of the weights' license, lower case.
        origin: Where the weights come from, as text.
        repo: Hub repository, 'organization/name'; None if there is none.
        commit: Commit of the repository, 40 hexadecimal digits; None where it is not known.
        file: Path of the weights in the repository, or in the package for kind 'embedded'.
        sha256: Digest of the file, 64 hexadecimal digits; None where it is not known.
        size: Bytes of the file; None where it is not known.
        num_params: Parameters of the network with these weights; None where not counted.
        num_classes: Outputs of the classifier.
        input_size: Image (channels, height, width) that accuracy is measured at.
        label_names: Each class's name in words, by the name of its folder of images, in the order of the outputs;
            empty where the network's own config or the tag says what the classes are.
        memory: Whether the weights are of the network with its memory, or of the one that `memory=False` builds.
        source_repo: Repository that the weights were released in, for the place 'authors'.
        source_commit: Commit of `source_repo`, 40 hexadecimal digits.
        source_path: Path of the released file in `source_repo`.
        source_blob: Git blob id of the released file.
        source_sha256: First digits of the released file's SHA-256, 8 at least; None where they are not known.
        source_size: Bytes of the released file; None where it is not known.
        reported: Accuracies in percent that others report, by what reports them.
        measured: Accuracies in percent that this project measured, by metric.
        command: Command that measured them.
        recipe: How to make the weights, for those that are available nowhere.
    """
    model: str
    tag: str
    kind: str
    places: Tuple[str, ...]
    license: str
    origin: str
    num_classes: int
    input_size: Tuple[int, int, int]
    label_names: Dict[str, str] = dataclasses.field(default_factory=dict)
    memory: bool = True
    repo: Optional[str] = None
    commit: Optional[str] = None
    file: Optional[str] = None
    sha256: Optional[str] = None
    size: Optional[int] = None
    num_params: Optional[int] = None
    source_repo: Optional[str] = None
    source_commit: Optional[str] = None
    source_path: Optional[str] = None
    source_blob: Optional[str] = None
    source_sha256: Optional[str] = None
    source_size: Optional[int] = None
    reported: Dict[str, float] = dataclasses.field(default_factory=dict)
    measured: Dict[str, float] = dataclasses.field(default_factory=dict)
    command: Optional[str] = None
    recipe: Optional[str] = None

    @property
    def name(self) -> str:
        """The name that `timm.create_model` takes."""
        return f'{self.model}.{self.tag}'

    @property
    def title(self) -> str:
        """The name, and whether it is of the network without memory."""
        return self.name if self.memory else f'{self.name} (memory=False)'

    @property
    def key(self) -> Key:
        """What distinguishes it from others."""
        return self.model, self.tag, self.memory

    @property
    def available(self) -> bool:
        """Whether `pretrained=True` can load the weights."""
        return bool(self.places)

    @property
    def hub_repo(self) -> Optional[str]:
        """The Hub repository, in the organization that `MLFM_ZOO_HUB` names if it is set."""
        organization = os.environ.get('MLFM_ZOO_HUB')
        return f'{organization}/{self.repo.split("/")[1]}' if organization and self.repo else self.repo


class PaperAccuracy(NamedTuple):
    """ImageNet100 top-1 accuracy in percent, as reported by the authors."""
    trunk: float
    memory: float


class Manifest(NamedTuple):
    """Content of one file: its checkpoints by key, and the authors' figures by model."""
    checkpoints: Dict[Key, Checkpoint]
    paper: Dict[str, PaperAccuracy]


# Text fields with a fixed form: patterns, and the form in words.
HEX40 = (r'[0-9a-f]{40}', '40 hexadecimal digits')
PATTERNS = {
    'kind': ('|'.join(KINDS), f'one of {", ".join(KINDS)}'),
    'repo': (r'[\w.-]+/[\w.-]+', 'organization/name'),
    'commit': HEX40,
    'file': (r'.+\.safetensors', 'the path of a .safetensors file'),
    'sha256': (r'[0-9a-f]{64}', '64 hexadecimal digits'),
    'source_repo': (r'github\.com/[\w.-]+/[\w.-]+', 'github.com/owner/name'),
    'source_commit': HEX40,
    'source_blob': HEX40,
    'source_sha256': (r'[0-9a-f]{8,64}', '8 to 64 hexadecimal digits'),
}
EXPECTED = {
    str: 'a line of text', Optional[str]: 'a line of text', bool: 'true or false', int: 'a whole number, 0 or more',
    Optional[int]: 'a whole number, 0 or more', Dict[str, float]: 'percentages from 0 to 100 by name',
    Tuple[int, int, int]: 'three whole numbers: channels, height, width',
}

# Fields that a checkpoint needs, by the places that it is available from.
NEEDED = {
    'package': ('file', 'sha256', 'size'),
    'hub': ('file', 'repo', 'commit', 'sha256', 'size'),
    'authors': ('source_repo', 'source_commit', 'source_path', 'source_blob'),
    'nowhere': ('recipe',),
}


def manifest_path() -> Path:
    """Locate the package's own manifest.

    Returns:
        Its path: in the package when installed, at the repository's root in a checkout.

    Examples:
        >>> manifest_path().name
        'weights_manifest.yaml'
    """
    installed = PACKAGE / 'weights_manifest.yaml'
    return installed if installed.is_file() else PACKAGE.parent / 'weights_manifest.yaml'


def load_manifest() -> Dict[Key, Checkpoint]:
    """Read the package's own manifest and the one that `MLFM_ZOO_MANIFEST` names.

    Returns:
        All checkpoints by key, the package's own first.

    Raises:
        OSError: A manifest cannot be read.
        ManifestError: It does not follow the schema.

    Examples:
        >>> checkpoint = load_manifest()['mlfm_mobilenetv2_010', 'paper_in100', True]
        >>> checkpoint.places, checkpoint.license
        (('authors',), 'apache-2.0')
    """
    checkpoints = own_checkpoints()
    if extra := os.environ.get('MLFM_ZOO_MANIFEST'):
        checkpoints.update(read_manifest(extra).checkpoints)
    return checkpoints


def own_checkpoints() -> Dict[Key, Checkpoint]:
    """The checkpoints of the package's own manifest, by key."""
    return dict(_own_manifest().checkpoints)


def paper_accuracies() -> Dict[str, PaperAccuracy]:
    """Read what the authors' README reports; none of it is measured by this project.

    Returns:
        Top-1 on ImageNet100 in percent by model, in the README's order.

    Examples:
        >>> paper_accuracies()['mlfm_resnet18']
        PaperAccuracy(trunk=..., memory=...)
    """
    return _own_manifest().paper


@functools.lru_cache(maxsize=1)
def _own_manifest() -> Manifest:
    return read_manifest(manifest_path())


def read_manifest(path: Union[str, Path]) -> Manifest:
    """Read and check one manifest.

    Args:
        path: A YAML file with `version`, a list `checkpoints` of the fields of `Checkpoint`, and optionally a mapping
            `paper` of two percentages for each network.

    Returns:
        Its content, in the file's order.

    Raises:
        OSError: The file cannot be read.
        ManifestError: It does not follow the schema.

    Examples:
        >>> read_manifest(manifest_path()).paper == paper_accuracies()
        True
    """
    path = Path(path)
    try:
        # the loader in C, where PyYAML has it, takes a tenth of the time
        document = yaml.load(path.read_text(encoding='utf-8'), getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, 'problem_mark', None)
        where = f', line {mark.line + 1}' if mark else ''
        raise ManifestError(f'The manifest {path}{where} is not valid YAML: correct it there.') from error
    if not isinstance(document, dict) or document.keys() - {'paper'} != {'version', 'checkpoints'}:
        raise ManifestError(f'{path} must hold "version" and "checkpoints", may hold "paper", and nothing else.')
    if document['version'] != SCHEMA_VERSION:
        raise ManifestError(
            f'{path} has version {document["version"]!r}, expected {SCHEMA_VERSION}: update mlfm_zoo, or the manifest.')
    checkpoints: Dict[Key, Checkpoint] = {}
    for i, entry in enumerate(document['checkpoints'], start=1):
        checkpoint = _checkpoint(entry, f'{path}, entry {i}')
        if checkpoint.key in checkpoints:
            raise ManifestError(f'{path}, entry {i}: {checkpoint.title} is listed twice.')
        checkpoints[checkpoint.key] = checkpoint
    return Manifest(checkpoints, {model: PaperAccuracy(*pair) for model, pair in document.get('paper', {}).items()})


def _checkpoint(entry: Any, where: str) -> Checkpoint:
    try:
        where += f' ({entry.get("model")}.{entry.get("tag")})'
        fields: Dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        checkpoint = Checkpoint(**fields)
    except (AttributeError, TypeError) as error:  # no mapping, or a field is missing or unknown
        raise ManifestError(f'{where}: {error}.') from error
    for name, kind in get_type_hints(Checkpoint).items():
        value = getattr(checkpoint, name)
        pattern, expected = PATTERNS.get(name, ('.+', EXPECTED.get(kind, 'a list or mapping as documented')))
        good = fits(value, kind, lambda number, of: 0 <= number and (of is int or number <= 100))
        if good and isinstance(value, str):  # control characters would reach the terminal
            good = value.isprintable() and bool(re.fullmatch(pattern, value, re.ASCII))
        if not good:
            raise ManifestError(f'{where}: {name} is {value!r}, expected {expected}.')
    if set(checkpoint.places) - set(PLACES):
        raise ManifestError(f'{where}: places is {checkpoint.places!r}, expected some of {", ".join(PLACES)}.')
    for place in checkpoint.places or ('nowhere',):
        # timm's repositories are pinned only where their commits are known
        pinned = place != 'hub' or checkpoint.kind not in OF_TIMM
        for name in NEEDED[place] if pinned else ('file', 'repo'):
            if getattr(checkpoint, name) is None:
                raise ManifestError(f'{where}: it is available from {place}, so it needs the field "{name}".')
    return checkpoint
