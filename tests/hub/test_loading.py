"""`pretrained=True` of what the manifest lists, against a Hub on loopback with the real client."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save
from timm.data import ImageNetInfo

from helpers.hub_server import Client, ClientError, HubServer
from mlfm_zoo.data.imagenet100 import SYNSETS
from mlfm_zoo.hub.loading import CheckpointError
from helpers.networks import lived_in

MODEL = 'test_mlfm_resnet'
FILE = 'model.safetensors'
SETUP = f'''
import os, resource, timm, torch
image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

def create(name, **kwargs):
    return timm.create_model(name, pretrained=True, **kwargs).eval()

@torch.inference_mode()
def logits(name, **kwargs):
    return create(name, **kwargs)(image)

@torch.inference_mode()
def difference(a, b, image):
    # False for another shape
    a, b = a(image), b(image)
    return a.shape == b.shape and ((a - b).abs().max() / b.abs().max()).item()

def reference(file):
    model = timm.create_model('{MODEL}', num_classes=10)
    model.load_state_dict(load_file(file))
    return model.eval()(image)

import mlfm_zoo
from safetensors.torch import load_file
'''


def weights(seed: int, **kwargs) -> bytes:
    torch.manual_seed(seed)
    return save(lived_in(timm.create_model(MODEL, num_classes=10, **kwargs)).state_dict())


def entry(tag: str, commit: str | None, content: bytes, **fields) -> dict:
    return dict(
        dict(model=MODEL, tag=tag, kind='trained', places=['hub'], repo=f'org/{MODEL}.{tag}', commit=commit, file=FILE,
             sha256=hashlib.sha256(content).hexdigest(), size=len(content), num_classes=10, input_size=[3, 64, 64],
             license='apache-2.0', origin='made by a test'), **fields)


def write_manifest(path: Path, entries: list) -> Path:
    path.write_text(json.dumps({'version': 2, 'checkpoints': entries}, indent=1))  # which is YAML too
    return path


# One repository for each test that damages or locks one.
TAGS = ('pinned', 'wrong_bytes', 'short', 'truncated', 'cut', 'error_500', 'gated', 'full', 'blocked', 'flipped',
        'readonly', 'uncached')


class Zoo:
    """A Hub with checkpoints of one small network, the manifest that pins them, and an anonymous client."""

    def __init__(self, root: Path, server: HubServer):
        self.root, self.server = root, server
        self.content, self.other = weights(1), weights(2)
        (root / FILE).write_bytes(self.content)
        self.entries = []
        for tag in (*TAGS, 'digits'):  # the last takes the place of the embedded one
            commit = server.add_repo(f'org/{MODEL}.{tag}', {FILE: self.content, 'config.json': b'{}'})
            self.entries.append(entry(tag, commit, self.content))
        trunk = weights(3, memory=False)
        (root / 'trunk.safetensors').write_bytes(trunk)
        server.add_repo(f'org/{MODEL}.trunk', {FILE: trunk})
        commit = self.entries[0]['commit']
        self.entries += [
            entry('no_repo', commit, self.content),
            entry('no_commit', 'f' * 40, self.content, repo=f'org/{MODEL}.pinned'),
            entry('trunk', None, b'', kind='warm_start', sha256=None, size=None),
            entry('no_file', commit, self.content, repo=f'org/{MODEL}.pinned', file='weights/other.safetensors'),
        ]
        self.manifest = write_manifest(root / 'manifest.yaml', self.entries)
        self.client = self.start()
        self.client(SETUP)
        self.client(f'wanted = reference({str(root / FILE)!r})')

    def start(self, **kwargs) -> Client:
        env = {'MLFM_ZOO_MANIFEST': str(self.manifest), 'MLFM_ZOO_HUB': None} | kwargs.pop('env', {})
        return Client(kwargs.pop('endpoint', self.server.endpoint), self.root / 'home', env=env, **kwargs)

    def commit(self, tag: str) -> str:
        return next(e['commit'] for e in self.entries if e['tag'] == tag)

    def loads(self, tag: str, client: Client | None = None, **kwargs) -> bool:
        """Whether a checkpoint gives the output of the model that it was saved from."""
        return (client or self.client)(f'torch.equal(logits("{MODEL}.{tag}", **{kwargs!r}), wanted)')

    def refusal(self, tag: str, client: Client | None = None, **kwargs) -> str:
        """The one sentence that says why a checkpoint is not loaded."""
        with pytest.raises(ClientError) as error:
            self.loads(tag, client, **kwargs)
        return sentence(error, 'CheckpointError', f'{MODEL}.{tag}')


def sentence(error, kind: str, name: str) -> str:
    assert error.value.kinds[0] == kind, error.value
    text = str(error.value).removeprefix(f'{kind}: ')
    assert '\n' not in text and text.endswith('.') and '. ' not in text and len(text) < 500
    assert text.startswith((f'The weights of {name} ', f'The file of {name} ')) or kind != 'CheckpointError'
    return text


def cached(cache: Path) -> list[str]:
    """What a later call would take for a file."""
    if not cache.is_dir():
        return []
    return [p.name for p in cache.rglob('*') if p.parent.name == 'blobs' and p.suffix != '.incomplete'
            or 'snapshots' in p.parts and not p.is_dir()]


@pytest.fixture(scope='module')
def zoo():
    with HubServer() as server, tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)  # which other users may read, unlike tmp_path
        zoo = Zoo(Path(root), server)
        with zoo.client:
            yield zoo
        assert not server.errors


@pytest.fixture(autouse=True)
def well(request):
    yield
    if 'zoo' in request.fixturenames:
        request.getfixturevalue('zoo').server.fault = None


def test_loads_what_was_saved_then_asks_no_more(zoo, tmp_path):
    zoo.server.clear()
    assert zoo.loads('pinned')
    assert {path for _, path, _ in zoo.server.requests} == {
        f'/org/{MODEL}.pinned/resolve/{zoo.commit("pinned")}/{FILE}'}
    zoo.server.clear()
    assert zoo.loads('pinned')
    assert not zoo.server.requests

    with zoo.start(offline=True) as offline:
        offline(SETUP)
        offline(f'wanted = reference({str(zoo.root / FILE)!r})')
        assert zoo.loads('pinned', offline)
        assert 'HF_HUB_OFFLINE is set' in zoo.refusal('uncached', offline)
        assert not zoo.server.requests
        # what is damaged is not taken offline either
        assert zoo.loads('flipped', cache_dir=str(tmp_path))
        zoo.server.clear()
        flip(tmp_path)
        assert 'SHA-256' in zoo.refusal('flipped', offline, cache_dir=str(tmp_path))
        assert 'HF_HUB_OFFLINE is set' in zoo.refusal('flipped', offline, cache_dir=str(tmp_path))
        assert not zoo.server.requests and not cached(tmp_path)


def test_arguments_of_timm(zoo, tmp_path):
    result = zoo.client(f'''
plain = create('{MODEL}.pinned')
weights = plain.state_dict()
grey = image[:, :1]
with torch.inference_mode():
    five = create('{MODEL}.pinned', num_classes=5)
    none = create('{MODEL}.pinned', num_classes=0)
    one = create('{MODEL}.pinned', in_chans=1)
    features = create('{MODEL}.pinned', features_only=True)
    result = dict(
        five=list(five(image).shape),
        trunk=all(torch.equal(v, weights[k]) for k, v in five.state_dict().items() if not k.startswith('fc.')),
        embedding=torch.equal(none(image), plain.forward_head(plain.forward_features(image), pre_logits=True)),
        grey=difference(one, lambda x: plain(x.repeat(1, 3, 1, 1)), grey),
        features=torch.equal(features(image)[-1], plain.forward_features(image)),
        configs=[m.pretrained_cfg for m in (plain, five, one, features)],
    )
''')
    assert result['five'] == [2, 5] and result['trunk'] and result['embedding'] and result['features']
    assert result['grey'] < 1e-4
    for config in result['configs']:
        assert 'file' not in config or config['file'] is None
        assert config['hf_hub_id'] == f'org/{MODEL}.pinned@{zoo.commit("pinned")}'
        assert config['hf_hub_filename'] == FILE and config['tag'] == 'pinned'
    assert result['configs'][0]['num_classes'] == 10 and result['configs'][0]['crop_pct'] == 1.0

    assert zoo.loads('pinned', cache_dir=str(tmp_path), pretrained_cfg_overlay={'crop_pct': 0.5})
    assert FILE in cached(tmp_path)
    crop = f'create("{MODEL}.pinned", pretrained_cfg_overlay=dict(crop_pct=0.5)).pretrained_cfg["crop_pct"]'
    assert zoo.client(crop) == 0.5
    assert zoo.client(f'"{MODEL}.pinned" in timm.list_pretrained()')
    # the registered config is as it was
    assert zoo.client(f'timm.get_pretrained_cfg("{MODEL}.pinned").file') is None
    assert zoo.client(f'timm.get_pretrained_cfg("{MODEL}.pinned").crop_pct') == 1.0


def flip(cache: Path) -> None:
    """Flips a bit of a tensor in the one file of a cache."""
    blob, = (p for p in cache.rglob('*') if p.parent.name == 'blobs')
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    blob.write_bytes(content)


@pytest.mark.parametrize('fault, expected', [
    ('wrong_bytes', r'has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}; it was removed from the cache'),
    ('truncated', r'has [\d,]+ bytes, expected [\d,]+; it was removed from the cache'),
    ('short', r'could not be downloaded from .*: the transfer broke off .* try again'),
    ('cut', r'could not be downloaded from .*: the transfer broke off .* try again'),
    ('error_500', r'could not be downloaded from .*: the Hub did not answer .* check the network'),
])
def test_faults_of_a_transfer(zoo, tmp_path, fault, expected):
    zoo.server.fault = fault
    assert re.search(expected, zoo.refusal(fault, cache_dir=str(tmp_path)))
    assert not cached(tmp_path)
    zoo.server.fault = None
    assert zoo.loads(fault, cache_dir=str(tmp_path))


def test_damaged_in_the_cache(zoo, tmp_path):
    assert zoo.loads('flipped', cache_dir=str(tmp_path))
    flip(tmp_path)
    digest = hashlib.sha256(zoo.content).hexdigest()
    assert f'expected {digest}; it was removed from the cache' in zoo.refusal('flipped', cache_dir=str(tmp_path))
    assert not cached(tmp_path)
    zoo.server.clear()
    assert zoo.loads('flipped', cache_dir=str(tmp_path))
    assert zoo.server.requests


def test_what_the_hub_does_not_give(zoo, tmp_path):
    zoo.server.gate(f'org/{MODEL}.gated')
    for tag, expected in {
        'gated': 'the repository is gated; ask for access',
        'no_repo': f'from org/{MODEL}.no_repo/{FILE}: there is no such repository, or it is private',
        'no_commit': f'the repository has no commit {"f" * 40}; update',
        'no_file': 'weights/other.safetensors: the repository has no such file at that commit',
    }.items():
        assert expected in zoo.refusal(tag, cache_dir=str(tmp_path))
        assert not cached(tmp_path)
    zoo.server.gate(f'org/{MODEL}.gated', False)
    assert zoo.loads('gated', cache_dir=str(tmp_path))


def test_cache_that_is_no_folder(zoo, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    for cache in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        message = zoo.refusal('blocked', cache_dir=str(cache))
        assert f'the cache {cache} cannot be written to' in message and 'another cache_dir' in message


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='no users here')
def test_read_only_cache(zoo):
    """As a user who may read the cache, but not write to it; root may."""
    cache = zoo.root / 'readonly'
    cache.mkdir()

    def as_reader(action):
        folders = [cache, *(p for p in cache.rglob('*') if p.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        zoo.client('root = os.geteuid() == 0\nif root: os.seteuid(65534)')
        try:
            return action('readonly', cache_dir=str(cache))
        finally:
            zoo.client('if root: os.seteuid(0)')
            for folder in folders:
                folder.chmod(0o755)

    assert zoo.loads('readonly')  # all is imported then, from where others may not read
    message = as_reader(zoo.refusal)
    assert f'the cache {cache} cannot be written to' in message and 'another cache_dir' in message
    assert not cached(cache)
    assert zoo.loads('readonly', cache_dir=str(cache))
    zoo.server.clear()
    assert as_reader(zoo.loads)
    assert not zoo.server.requests
    flip(cache)
    message = as_reader(zoo.refusal)
    assert 'SHA-256' in message and 'could not be removed from the cache' in message and str(cache) in message
    assert 'it was removed from the cache' in zoo.refusal('readonly', cache_dir=str(cache))


def test_full_disk(zoo, tmp_path):
    """A limit on the size of files stands for it; it fails in the same call, with another number."""
    pytest.importorskip('resource')
    zoo.client('limits = resource.getrlimit(resource.RLIMIT_FSIZE)\n'
               'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))')
    try:
        message = zoo.refusal('full', cache_dir=str(tmp_path))
    finally:
        zoo.client('resource.setrlimit(resource.RLIMIT_FSIZE, limits)')
    assert f'no space is left in {tmp_path}' in message
    assert not cached(tmp_path) and sum(p.stat().st_size for p in tmp_path.rglob('*') if p.is_file()) < 100_000
    assert zoo.loads('full', cache_dir=str(tmp_path))


def test_another_revision_on_the_hub(zoo, tmp_path):
    zoo.server.commit(f'org/{MODEL}.pinned', {FILE: zoo.other})
    assert zoo.server.files(f'org/{MODEL}.pinned')[FILE] != zoo.content
    assert zoo.loads('pinned', cache_dir=str(tmp_path))
    assert FILE in cached(tmp_path)


def test_not_published(zoo):
    zoo.server.clear()
    for name, expected in {
        'mlfm_resnet50': ['ImageNet100 weights of mlfm_resnet50 are not published', 'load mlfm_resnet50.a1_in1k'],
        'mlfm_resnet50.in100': ['The weights mlfm_resnet50.in100 are not published', 'load mlfm_resnet50.a1_in1k'],
        'mlfm_mobilenetv2_010.in100': [
            'The weights mlfm_mobilenetv2_010.in100 are not published', 'load mlfm_mobilenetv2_010.paper_in100'],
        f'{MODEL}.none': [f'The weights {MODEL}.none are not published', f'load {MODEL}.digits', 'more (python -m'],
    }.items():
        with pytest.raises(ClientError) as error:
            zoo.client(f'create({name!r})')
        assert error.value.kinds[0] == 'CheckpointError' and 'pretrained=False' in str(error.value)
        assert '\n' not in str(error.value) and all(part in str(error.value) for part in expected), error.value
    assert not zoo.server.requests


def test_every_network_says_what_it_has():
    for name in timm.list_models(['mlfm_*', 'gssdnet_*'], exclude_filters='mlfm_filtered'):
        if timm.get_pretrained_cfg(name).has_weights:
            continue
        with pytest.raises(CheckpointError, match=f'{name} are not published') as error:
            timm.create_model(name, pretrained=True)
        assert '\n' not in str(error.value)


def test_manifest_of_ones_own(zoo):
    assert zoo.loads('digits')  # not the embedded one, whose place it takes
    assert zoo.client(f'torch.equal(logits("{MODEL}"), wanted)')  # and it is the default as that was
    assert zoo.client(f'create("{MODEL}.digits").pretrained_cfg["hf_hub_id"]').startswith(f'org/{MODEL}.digits@')
    # the package's other entries are still there
    assert zoo.client('("mlfm_resnet50", "a1_in1k", True) in mlfm_zoo.hub.manifest.load_manifest()')


def test_broken_manifest(zoo, tmp_path, request):
    broken = tmp_path / 'broken.yaml'
    zoo.client(f'os.environ["MLFM_ZOO_MANIFEST"] = {str(broken)!r}')
    request.addfinalizer(lambda: zoo.client(f'os.environ["MLFM_ZOO_MANIFEST"] = {str(zoo.manifest)!r}'))

    def refusal():
        with pytest.raises(ClientError) as error:
            zoo.client(f'create("{MODEL}.pinned")')
        return sentence(error, 'ManifestError', '')

    good, one = entry('good', 'a' * 40, b''), entry('bad', 'a' * 40, b'')
    for entries, expected in (
        ([good, one | {'sha256': 'abc'}], f"entry 2 ({MODEL}.bad): sha256 is 'abc'"),
        ([one | {'file': '../x.safetensors'}], f'entry 1 ({MODEL}.bad): file is'),
        ([good, good | {'tag': 'other'}, one | {'commit': None}],
         f'entry 3 ({MODEL}.bad): it can be had from the hub, so it needs the field "commit"'),
        ([good, good], f'entry 2: {MODEL}.good is listed twice'),
    ):
        write_manifest(broken, entries)
        assert f'{broken}, {expected}' in refusal()
    for text, expected in (
        ('version: 1\ncheckpoints: [{', 'is not valid YAML'),
        ('[]', 'must hold "version"'),
        ('version: 1\ncheckpoints:\n- model: a\n  tag: b\n  tag: c',
         "line 5 is not valid YAML (the key 'tag' stands twice)"),
        ('version: 1\ncheckpoints: []\npaper: []', '"paper" must be a mapping'),
        ('version: 1\ncheckpoints: []\npaper: {mlfm_resnet18: [77, 101]}', '"paper": \'mlfm_resnet18\' is [77, 101]'),
    ):
        broken.write_text(text)
        assert str(broken) in (message := refusal()) and expected in message
    broken.unlink()
    assert f'The manifest {broken} cannot be read' in refusal()


@pytest.mark.parametrize('fault', ['broken', 'missing'])
def test_manifest_that_cannot_be_read_at_import(zoo, tmp_path, fault):
    """A warning then, and an error where weights are asked for; networks need none."""
    manifest = tmp_path / 'manifest.yaml'
    if fault == 'broken':
        write_manifest(manifest, [entry('pinned', 'abc', b'')])
    with zoo.start(env={'MLFM_ZOO_MANIFEST': str(manifest)}) as client:
        client('import warnings\nwith warnings.catch_warnings(record=True) as told:\n'
               '    warnings.simplefilter("always")\n    import mlfm_zoo')
        [warning] = client('[str(w.message) for w in told]')
        assert str(manifest) in warning and 'no weights can be loaded' in warning
        client(SETUP)
        assert client(f'timm.create_model("{MODEL}").num_classes') == 10
        for name in (MODEL, 'mlfm_resnet18.a1_in1k'):
            with pytest.raises(ClientError) as error:
                client(f'create("{name}")')
            assert str(manifest) in sentence(error, 'ManifestError', '')


def test_another_organisation_and_no_network(zoo, tmp_path):
    manifest = write_manifest(tmp_path / 'manifest.yaml', zoo.entries)
    env = {'MLFM_ZOO_HUB': 'mirror', 'MLFM_ZOO_MANIFEST': str(manifest), 'HF_HOME': str(tmp_path / 'home')}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(HubServer())
        for tag in ('pinned', 'uncached'):  # a copy has the commits of what it is a copy of
            repo = zoo.server.repos[f'org/{MODEL}.{tag}']
            server.repos[f'mirror/{MODEL}.{tag}'] = dataclasses.replace(repo, name=f'mirror/{MODEL}.{tag}')
        server.repos['mirror/resnet18.a1_in1k'] = dataclasses.replace(repo, name='mirror/resnet18.a1_in1k', gated=True)
        with zoo.start(endpoint=server.endpoint, env=env) as client:
            client(SETUP)
            client(f'wanted = reference({str(zoo.root / FILE)!r})')
            assert zoo.loads('pinned', client)
            assert client(f'create("{MODEL}.pinned").pretrained_cfg["hf_hub_id"]').startswith(f'mirror/{MODEL}.pinned@')
            with pytest.raises(ClientError, match='from mirror/resnet18.a1_in1k/.* gated'):  # timm's own as well
                client('create("mlfm_resnet18.a1_in1k")')
            assert {path.split('/')[1] for _, path, _ in server.requests} == {'mirror'}

            server.fault = 'cut'  # else the server would go on to serve the open connection
            assert 'broke off' in zoo.refusal('uncached', client)
            stack.close()
            assert zoo.loads('pinned', client)
            assert 'the Hub did not answer' in zoo.refusal('uncached', client)
            assert not [name for name in cached(tmp_path / 'home') if 'uncached' in name]


ROWS = [sorted(ImageNetInfo('imagenet-1k').label_names()).index(synset) for synset in sorted(SYNSETS)]


@pytest.fixture(scope='module')
def warm(tmp_path_factory):
    with HubServer() as server, Client(server.endpoint, tmp_path_factory.mktemp('warm') / 'home') as client:
        client(SETUP)
        yield server, client
        assert not server.errors


@pytest.mark.parametrize('name', [
    'resnet50.a1_in1k', 'mobilenetv2_100.ra_in1k', 'regnetx_002.pycls_in1k', 'convnext_tiny.fb_in1k',
    'inception_next_tiny.sail_in1k',
])
def test_warm_start(warm, tmp_path, name):
    server, client = warm
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    if f'timm/{name}' not in server.repos:  # by another test
        server.add_repo(f'timm/{name}', {p.name: p.read_bytes() for p in tmp_path.iterdir()})
    del model
    result = client(f"""
theirs, ours, one = create('{name}'), create('mlfm_{name}'), create('mlfm_{name}', in_chans=1)
head, ten = create('mlfm_{name}', imagenet100_head=True), create('mlfm_{name}', num_classes=10)
with torch.inference_mode():
    logits = theirs(image)
    result = dict(
        memory=len(list(ours.memory.parameters())),
        spread=((logits[0] - logits[1]).abs().max() / logits.abs().max()).item(),
        logits=difference(ours, theirs, image),
        grey=difference(one, lambda x: theirs(x.repeat(1, 3, 1, 1)), image[:, :1]),
        head=difference(head, lambda x: logits[:, {ROWS!r}], image),
        classes=[head.num_classes, head.pretrained_cfg['num_classes'], *head(image).shape],
        ten=list(ten(image).shape),
        features=difference(ten.forward_features, ours.forward_features, image),
        config=[{{k: m.pretrained_cfg.get(k) for k in ('hf_hub_id', 'mean', 'crop_pct')}} for m in (ours, theirs)],
        file=ours.pretrained_cfg.get('file'),
    )
del theirs, ours, one, head, ten
""")
    assert result['memory'] and result['spread'] > 1e-3  # the images do matter
    for kind in ('logits', 'grey', 'head'):
        assert result[kind] is not False and result[kind] < 1e-5, kind
    assert result['classes'] == [100, 100, 2, 100] and result['ten'] == [2, 10]
    assert result['features'] == 0 and result['file'] is None
    assert result['config'][0] == result['config'][1]


@pytest.mark.parametrize('name, trunk', [
    ('dct_resnet50_24s', 'resnet50.tv_in1k'), ('dct_resnet50_ycbcr', 'resnet50.tv_in1k'),
    ('dct_mobilenetv2_100_192_gate', 'mobilenetv2_100.ra_in1k')])
def test_initialisation(warm, tmp_path, name, trunk):
    """What a network on DCT coefficients starts from is what `to_dct` makes of timm's pretrained network."""
    server, client = warm
    torch.manual_seed(0)
    if f'timm/{trunk}' not in server.repos:  # by another test
        timm.models.save_for_hf(lived_in(timm.create_model(trunk.split('.')[0])), tmp_path, safe_serialization=True)
        server.add_repo(f'timm/{trunk}', {p.name: p.read_bytes() for p in tmp_path.iterdir()})
    channels, gate = name.removesuffix('_gate').split('_')[-1], name.endswith('_gate')
    result = client(f"""
from mlfm_zoo.dct import to_dct
ours, ten = create('{name}.init_{trunk.split('.')[1]}'), create('{name}.init_{trunk.split('.')[1]}', num_classes=10)
theirs = create('{trunk}')
if '{channels}' != 'ycbcr':
    theirs = to_dct(theirs, '{channels}', gate={gate})
given = theirs.state_dict()
result = dict(
    other=[k for k, v in ours.state_dict().items() if not torch.equal(v, given[k])],
    ten=[k for k, v in ten.state_dict().items() if v.shape != given[k].shape],
    default=ours.default_cfg['tag'], missing=sorted(set(given) ^ set(ours.state_dict())))
del ours, ten, theirs
""")
    new = {'blocks.0.0.conv_dw.weight', 'conv_stem.1.conv1.weight', 'conv_stem.1.conv2.weight'} if gate else set()
    assert set(result['other']) == new and not result['missing']
    assert all(k.startswith(('fc.', 'classifier.')) for k in result['ten']) and result['default'].startswith('init_')


def test_imagenet100_head_needs_a_warm_start(zoo):
    for name, kwargs in (('mlfm_resnet50', {}), ('mlfm_resnet50.a1_in1k', {}), (MODEL, {'pretrained': True})):
        with pytest.raises(ValueError, match='imagenet100_head cuts the classifier of a warm start') as error:
            timm.create_model(name, imagenet100_head=True, **kwargs)
        assert '\n' not in str(error.value)
    with pytest.raises(ClientError, match='imagenet100_head cuts the classifier of a warm start') as error:
        zoo.client(f'create("{MODEL}.pinned", imagenet100_head=True)')
    assert error.value.kinds[0] == 'ValueError'


def test_warm_start_of_ones_own(zoo, tmp_path):
    """One that timm knows nothing of, pinned to nothing: LFS files bear their SHA-256 as their name on the Hub."""
    trunk = f"""
ours, trunk = (create('{MODEL}.trunk', memory=m, cache_dir={str(tmp_path)!r}) for m in (True, False))
given = load_file({str(zoo.root / 'trunk.safetensors')!r})
result = [difference(ours, trunk, image), all(torch.equal(v, given[k]) for k, v in trunk.state_dict().items())]
"""
    difference, kept = zoo.client(trunk)
    assert difference is not False and difference < 1e-5 and kept
    flip(tmp_path)
    assert 'it was removed from the cache' in zoo.refusal('trunk', cache_dir=str(tmp_path))
    assert not cached(tmp_path)
    for fault, expected in (('wrong_bytes', 'SHA-256'), ('short', 'the transfer broke off')):
        zoo.server.fault = fault
        assert expected in zoo.refusal('trunk', cache_dir=str(tmp_path))
        assert not cached(tmp_path)
    zoo.server.fault = None
    assert zoo.client(trunk) == [difference, True]
    with pytest.raises(ClientError, match='expected one .* of 1,000 classes') as error:
        zoo.client(f'create("{MODEL}.trunk", imagenet100_head=True)')
    assert error.value.kinds[0] == 'ValueError'
