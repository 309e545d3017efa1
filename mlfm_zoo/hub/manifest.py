"""The manifest: which checkpoints exist, where, and what their files must be, byte for byte.

`weights_manifest.yaml` lists them, and what the paper reports of each network. `MLFM_ZOO_MANIFEST` names a second file
in the same form, whose entries join these and replace those of the same model and tag. `MLFM_ZOO_HUB` names an
organisation that all Hub repositories are looked for in, instead of their own.
"""

import dataclasses
import functools
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

__all__ = [
    'KINDS', 'OF_TIMM', 'Checkpoint', 'ManifestError', 'PaperAccuracy', 'load_manifest', 'manifest_path',
    'paper_accuracies', 'read_manifest',
]

KINDS = ('embedded', 'paper', 'trained', 'warm_start', 'initialisation')
OF_TIMM = ('warm_start', 'initialisation')  # kinds whose files are in timm's own repositories
PLACES = ('package', 'hub', 'authors')
SCHEMA_VERSION = 2
PACKAGE = Path(__file__).parents[1]
MAX_MANIFEST_SIZE = 16 << 20
MAX_DEPTH = 20
MAX_TEXT = 10_000


class ManifestError(ValueError):
    """A manifest does not follow the schema; the message names the file, the entry and the fault."""


# Model, tag, and whether the weights have a memory.
Key = Tuple[str, str, bool]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        model: Registered name of the network.
        tag: Tag of the weights; `model.tag` is what `timm.create_model` takes.
        kind: 'embedded' (in the package), 'paper' (the authors' weights, converted), 'trained' (by this project's
            recipes), 'warm_start' (timm's weights in the trunk, memory at identity), or 'initialisation' (timm's
            weights of a trunk on RGB images, from which a network on DCT coefficients starts).
        places: Where the weights can be had from by `pretrained=True`, the first of them first: 'package', 'hub'
            (`repo` and `file`) or 'authors' (`source_repo` and what follows). Empty if nobody offers them.
        license: SPDX name of the weights' licence, lower case.
        origin: Where the weights come from, in words.
        repo: Hub repository, 'organisation/name'; None if there is none.
        commit: Commit of the repository, 40 hexadecimal digits; None where it is not known.
        file: Path of the weights in the repository, or in the package for kind 'embedded'.
        sha256: Digest of the file, 64 hexadecimal digits; None where it is not known.
        size: Bytes of the file; None where it is not known.
        num_params: Parameters of the network with these weights; None where not counted.
        num_classes: Outputs of the classifier.
        input_size: Image (channels, height, width) that accuracy is measured at.
        memory: Whether the weights are of the network with its memory, or of the one that `memory=False` builds.
        source_repo: Repository that the weights were released in, for kind 'paper'.
        source_commit: Its commit.
        source_path: Path of the file there.
        source_blob: Git blob id of the file there.
        source_size: Bytes of the file there; None where it is not known.
        reported: Accuracies in percent that others report, by what reports them.
        measured: Accuracies in percent that this project measured, by what was measured.
        command: Command that measured them.
        recipe: How the missing weights can be made, for what is nowhere to be had.
    """
    model: str
    tag: str
    kind: str
    places: Tuple[str, ...]
    license: str
    origin: str
    num_classes: int
    input_size: Tuple[int, int, int]
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
        """What tells it from others."""
        return self.model, self.tag, self.memory

    @property
    def available(self) -> bool:
        """Whether the weights can be had by `pretrained=True`."""
        return bool(self.places)

    @property
    def hub_repo(self) -> Optional[str]:
        """The Hub repository, in the organisation that `MLFM_ZOO_HUB` names if it is set."""
        organisation = os.environ.get('MLFM_ZOO_HUB')
        return f'{organisation}/{self.repo.split("/")[1]}' if organisation and self.repo else self.repo


class PaperAccuracy(NamedTuple):
    """ImageNet100 top-1 accuracy in percent that the authors report for a network, without and with memory."""
    trunk: float
    memory: float


class Manifest(NamedTuple):
    """What one file says: its checkpoints by key, and the paper's figures by model."""
    checkpoints: Dict[Key, Checkpoint]
    paper: Dict[str, PaperAccuracy]


class DuplicateKey(yaml.MarkedYAMLError):
    """A mapping has a key twice."""


if TYPE_CHECKING:
    from yaml import SafeLoader
else:
    SafeLoader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)  # the one in C does the same, where PyYAML has it


class Loader(SafeLoader):
    """YAML's safe loader, but a mapping with a key twice is an error: YAML forbids it, and PyYAML takes the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise DuplicateKey(problem=f'the key {_short(key.value)} stands twice', problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


PART = r'(?!\.\.?(?:/|$))[\w +.-]+'  # of a path; no . or ..
LINE = r'[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+'  # without control characters
PATTERNS = {
    'model': (r'[a-z0-9_]+', 'a registered name of lower-case letters, digits and _'),
    'tag': (r'[a-z0-9_]+', 'a tag of lower-case letters, digits and _'),
    'kind': ('|'.join(KINDS), f'one of {", ".join(KINDS)}'),
    'repo': (r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', 'organisation/name'),
    'commit': (r'[0-9a-f]{40}', '40 hexadecimal digits'),
    'file': (r'[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*\.safetensors',
             'a .safetensors file by its path inside the repository'),
    'sha256': (r'[0-9a-f]{64}', '64 hexadecimal digits'),
    'source_commit': (r'[0-9a-f]{40}', '40 hexadecimal digits'),
    'source_blob': (r'[0-9a-f]{40}', '40 hexadecimal digits'),
    'source_repo': (r'github\.com/[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', 'github.com/owner/name'),
    'source_path': (rf'{PART}(/{PART})*', 'the path of a file inside the repository'),
}
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 2, 78, 78


def manifest_path() -> Path:
    """The package's own manifest: in the package when installed, at the repository's root in a checkout."""
    installed = PACKAGE / 'weights_manifest.yaml'
    return installed if installed.is_file() else PACKAGE.parent / 'weights_manifest.yaml'


def load_manifest() -> Dict[Key, Checkpoint]:
    """Read the package's own manifest and the one that `MLFM_ZOO_MANIFEST` names.

    Returns:
        All checkpoints by key, the package's own first.

    Raises:
        ManifestError: A manifest cannot be read or does not follow the schema.
    """
    checkpoints = own_checkpoints()
    if extra := os.environ.get('MLFM_ZOO_MANIFEST'):
        checkpoints.update(read_manifest(extra).checkpoints)
    return checkpoints


def own_checkpoints() -> Dict[Key, Checkpoint]:
    """The checkpoints of the package's own manifest, by key."""
    return dict(_own_manifest().checkpoints)


def paper_accuracies() -> Dict[str, PaperAccuracy]:
    """What the paper reports, by model, in the order of its table; none of it is measured by this project."""
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
        What it says, in the file's order.

    Raises:
        ManifestError: The file cannot be read or does not follow the schema.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_MANIFEST_SIZE:
            raise ManifestError(f'{path} has more than {MAX_MANIFEST_SIZE >> 20} MiB: it is no manifest.')
        text = path.read_text(encoding='utf-8')
        _refuse_traps(text, path)
        document = yaml.load(text, Loader)
    except OSError as error:
        raise ManifestError(
            f'The manifest {path} cannot be read ({error.strerror}): give the path of a file.') from None
    except ManifestError:
        raise
    except Exception as error:  # of any kind: for a date of month 13, or !!int of no digits, it is not a YAMLError
        where = _line(getattr(error, 'problem_mark', None))
        what = f' ({error.problem})' if isinstance(error, DuplicateKey) else ''
        raise ManifestError(f'The manifest {path}{where} is not valid YAML{what}: correct it there.') from None

    if not isinstance(document, dict) or document.keys() - {'paper'} != {'version', 'checkpoints'}:
        raise ManifestError(f'{path} must hold "version" and "checkpoints", may hold "paper", and nothing else.')
    if type(document['version']) is not int or document['version'] not in (1, SCHEMA_VERSION):
        raise ManifestError(
            f'{path} has version {_short(document["version"])}, expected {SCHEMA_VERSION}: it is of another mlfm_zoo.')
    if not isinstance(document['checkpoints'], list):
        raise ManifestError(f'{path}: "checkpoints" must be a list.')
    checkpoints: Dict[Key, Checkpoint] = {}
    for i, entry in enumerate(document['checkpoints'], start=1):
        if document['version'] == 1:
            entry = _from_version_1(entry)
        checkpoint = _checkpoint(entry, f'{path}, entry {i}')
        if checkpoint.key in checkpoints:
            raise ManifestError(f'{path}, entry {i}: {checkpoint.title} is listed twice.')
        checkpoints[checkpoint.key] = checkpoint
    return Manifest(checkpoints, _paper(document.get('paper', {}), path))


def _from_version_1(entry: Any) -> Any:
    """An entry of the form that said `published` where `places` stands today."""
    if not isinstance(entry, dict) or type(entry.get('published')) is not bool:
        return entry
    entry = dict(entry)
    place = 'package' if entry.get('kind') == 'embedded' else 'hub'
    entry['places'] = [place] if entry.pop('published') else []
    return entry


def _paper(section: Any, path: Path) -> Dict[str, PaperAccuracy]:
    if not isinstance(section, dict):
        raise ManifestError(f'{path}: "paper" must be a mapping.')
    for model, value in section.items():
        if not (isinstance(model, str) and re.fullmatch(PATTERNS['model'][0], model, re.ASCII)
                and isinstance(value, list) and len(value) == 2 and all(map(_is_percentage, value))):
            raise ManifestError(
                f'{path}, "paper": {_short(model)} is {_short(value)}, expected a registered name and two percentages '
                'from 0 to 100, without memory and with it.')
    return {model: PaperAccuracy(*value) for model, value in section.items()}


def _is_percentage(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100


def _refuse_traps(text: str, path: Path) -> None:
    """Refuse YAML that no manifest needs and that would crash its reader, or keep it busy for hours."""
    depth = 0
    for event in yaml.parse(text, Loader):
        fault = None
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            fault = f'nests deeper than {MAX_DEPTH} levels'
        elif isinstance(event, yaml.AliasEvent):
            fault = 'has an alias (*name)'
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_TEXT:
            fault = f'has a text of more than {MAX_TEXT} characters'
        if fault:
            raise ManifestError(
                f'The manifest {path}{_line(event.start_mark)}, {fault}, which manifests must not.')


def _line(mark: Any) -> str:
    return f', line {mark.line + 1}' if mark else ''


def _checkpoint(entry: Any, where: str) -> Checkpoint:
    if not isinstance(entry, dict):
        raise ManifestError(f'{where} must be a mapping of fields.')
    if all(isinstance(entry.get(name), str) and re.fullmatch(r'\w{1,80}', entry[name]) for name in ('model', 'tag')):
        where += f' ({entry["model"]}.{entry["tag"]})'
    fields = {field.name: field for field in dataclasses.fields(Checkpoint)}
    for name in entry:
        if name not in fields:
            raise ManifestError(f'{where}: the field {_short(name)} is unknown, expected one of {", ".join(fields)}.')
    values = {}
    for name, kind in get_type_hints(Checkpoint).items():
        optional = fields[name].default is not dataclasses.MISSING or (
            fields[name].default_factory is not dataclasses.MISSING)
        if name not in entry:
            if not optional:
                raise ManifestError(f'{where}: the field {name!r} is missing.')
            continue
        values[name] = _value(entry[name], kind, name, where)
    checkpoint = Checkpoint(**values)
    _check(checkpoint, where)
    return checkpoint


def _value(value: Any, kind: Any, name: str, where: str) -> Any:
    """Check a field against its annotation and its pattern."""
    if get_origin(kind) is Union:  # Optional
        if value is None:
            return None
        kind = get_args(kind)[0]
    if kind is bool:
        good, expected = isinstance(value, bool), 'true or false'
    elif kind is int:
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48
        expected = 'a whole number, 0 or more'
    elif kind is str:
        pattern, expected = PATTERNS.get(name, (LINE, 'a line of text'))
        good = isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None
    elif name == 'places':
        good = isinstance(value, list) and all(isinstance(v, str) and v in PLACES for v in value)
        good = good and len(set(value)) == len(value)
        value, expected = tuple(value) if good else value, f'a list of some of {", ".join(PLACES)}'
    elif get_origin(kind) is tuple:
        good = (isinstance(value, list) and len(value) == 3
                and all(isinstance(v, int) and not isinstance(v, bool) and 0 < v < 1 << 16 for v in value))
        value, expected = (tuple(value), '') if good else (value, 'three whole numbers: channels, height, width')
        expected = 'three whole numbers: channels, height, width'
    else:  # a mapping of percentages
        good = isinstance(value, dict) and all(
            isinstance(k, str) and re.fullmatch(LINE, k) and _is_percentage(v) for k, v in value.items())
        expected = 'percentages from 0 to 100 by name'
    if not good:
        raise ManifestError(f'{where}: {name} is {_short(value)}, expected {expected}.')
    return value


def _check(c: Checkpoint, where: str) -> None:
    """What fields say together."""
    needed = {
        'package': ('file', 'sha256', 'size'),
        # other people's repositories are pinned where their commits are known
        'hub': ('file', 'repo') if c.kind in OF_TIMM else ('file', 'repo', 'commit', 'sha256', 'size'),
        'authors': ('source_repo', 'source_commit', 'source_path', 'source_blob'),
    }
    for place in c.places:
        for name in needed[place]:
            if getattr(c, name) is None:
                raise ManifestError(f'{where}: it can be had from the {place}, so it needs the field "{name}".')
    if ('package' in c.places) != (c.kind == 'embedded'):
        raise ManifestError(f'{where}: what is in the package, and nothing else, is of the kind embedded.')
    if not c.places and c.recipe is None:
        raise ManifestError(f'{where}: it is nowhere to be had, so "recipe" must say how to make it.')
    if c.measured and c.command is None:
        raise ManifestError(f'{where}: it has measured figures, so "command" must say what measured them.')


def _short(value: Any) -> str:
    try:
        text = _repr.repr(value)
    except ValueError:  # a number of too many digits
        text = f'a {type(value).__name__}'
    return text if len(text) <= 80 else f'{text[:77]}...'


def checkpoints_of(model: str) -> List[Checkpoint]:
    """All checkpoints of a network, those that can be had first."""
    return sorted((c for c in load_manifest().values() if c.model == model), key=lambda c: not c.available)
