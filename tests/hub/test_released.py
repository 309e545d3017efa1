"""`pretrained=True` of what the authors released: fetched from loopback and folders, verified, converted and kept."""

import io
import json
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from helpers.authors_form import mobilenetv2, released
from helpers.hub_server import Client, ClientError, git_oid
from mlfm_zoo.convert import convert_state_dict
from mlfm_zoo.hub.manifest import load_manifest
from mlfm_zoo.hub.released import source_url
from helpers.raw_server import RawServer
from helpers.reference import REFERENCE, load_fill, needs_reference

NAME = 'mlfm_mobilenetv2_010'
SETUP = '''
import os, resource, timm, torch, mlfm_zoo
image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

def create(name, **kwargs):
    return timm.create_model(name, pretrained=True, **kwargs).eval()

def logits(name, **kwargs):
    with torch.inference_mode():
        return create(name, **kwargs)(image).tolist()
'''


class Evil:
    """Makes a folder where its pickle is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def as_file(weights) -> bytes:
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Contents of made-up files of the authors', by the width and the kind in their path."""
    torch.manual_seed(0)
    evil = tmp_path_factory.mktemp('evil') / 'executed'
    contents = {
        ('0.1', 'wavelet'): released(mobilenetv2(0.1)),
        ('0.1', 'ori'): released(mobilenetv2(0.1, update=None)),
        ('0.35', 'wavelet'): released(mobilenetv2(0.35, update='add')),
        ('0.35', 'ori'): released(mobilenetv2(0.1, update=None)),  # of another width
        ('0.5', 'wavelet'): released(mobilenetv2(0.5, update=None)),  # a plain trunk
        ('0.5', 'ori'): released(mobilenetv2(0.5, update='cat')),  # no plain trunk
        ('0.75', 'wavelet'): released(mobilenetv2(0.75, num_classes=7)),
    }
    data = {key: as_file(value) for key, value in contents.items()}
    data['0.75', 'ori'] = as_file({'state_dict': {'a': torch.zeros(1)}, 'extra': Evil(str(evil))})
    data['1.0', 'wavelet'] = pickle.dumps(Evil(str(evil)), protocol=2)
    data['1.0', 'ori'] = b'no checkpoint'
    return {path(*key): content for key, content in data.items()}, evil


def path(width, kind):
    return f'MLFM classification/MobileNet/mobilenetv2_MLFM/checkpoint/mobilenetv2_{width}_{kind}/model_best.pth.tar'


class Zoo:
    """A server of the files, a manifest of one's own that pins them, and clients with a cache."""

    def __init__(self, root: Path, files: dict):
        self.root, self.server = root, RawServer()
        self.server.files.update(files)
        self.entries = []
        for checkpoint in load_manifest().values():
            if checkpoint.kind == 'paper':
                content = files[checkpoint.source_path]
                self.entries.append(dict(
                    model=checkpoint.model, tag=checkpoint.tag, memory=checkpoint.memory, kind='paper',
                    places=['authors'], num_classes=100, input_size=[3, 224, 224], license='apache-2.0',
                    origin='made by a test', source_repo='github.com/a/b', source_commit='0' * 40,
                    source_path=checkpoint.source_path, source_blob=git_oid(content), source_size=len(content)))
        self.manifest = root / 'manifest.yaml'
        self.write()

    def write(self, **changes):
        entries = [dict(e, **changes) if e['model'] == NAME and e['memory'] else e for e in self.entries]
        self.manifest.write_text(json.dumps({'version': 2, 'checkpoints': entries}))

    def start(self, mirror=None, home='home', env=None, **kwargs) -> Client:
        client = Client(self.server.endpoint, self.root / home, env={
            'MLFM_ZOO_MANIFEST': str(self.manifest), 'MLFM_ZOO_PAPER_MIRROR': mirror or self.server.endpoint,
            **(env or {})}, **kwargs)
        client(SETUP)
        return client


@pytest.fixture(scope='module')
def module_zoo(files):
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)  # which other users may read, unlike tmp_path
        zoo = Zoo(Path(root), files[0])
        with zoo.server, zoo.start() as zoo.client:
            yield zoo


@pytest.fixture
def zoo(module_zoo):
    yield module_zoo
    module_zoo.server.fault = None
    module_zoo.server.requests.clear()


def kept(cache: Path) -> list[str]:
    """What a later call could take for weights."""
    return [str(p) for p in cache.rglob('*') if p.is_file() and p.suffix != '.lock'] if cache.is_dir() else []


def refusal(client, cache, name=NAME, kind='CheckpointError', **kwargs) -> str:
    arguments = ''.join(f', {k}={v!r}' for k, v in dict(kwargs, cache_dir=str(cache)).items())
    with pytest.raises(ClientError) as error:
        client(f'create({name!r}{arguments})')
    assert error.value.kinds[0] == kind, error.value
    text = str(error.value).removeprefix(f'{kind}: ')
    assert '\n' not in text and text.endswith('.') and '. ' not in text and len(text) < 700, text
    return text


def reference_logits(files, width, kind):
    weights = torch.load(io.BytesIO(files[path(width, kind)]), weights_only=True)['state_dict']
    conversion = convert_state_dict({k.removeprefix('module.'): v for k, v in weights.items()
                                     if 'total_' not in k and not k.rpartition('.')[2].startswith(('h0_', 'h1_'))})
    model = timm.create_model(conversion.architecture, **conversion.model_args).eval()
    model.load_state_dict(conversion.state_dict)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(image)


def test_loads_by_name_and_makes_no_second_request(zoo, files):
    for memory, kind in ((True, 'wavelet'), (False, 'ori')):
        expected = reference_logits(files[0], '0.1', kind)
        assert torch.equal(torch.tensor(zoo.client(f'logits("{NAME}", memory={memory})')), expected)
        [request] = zoo.server.requests
        assert '%20' in request and ' ' not in request
        zoo.server.requests.clear()
        for name in (NAME, f'{NAME}.paper_in100'):
            assert torch.equal(torch.tensor(zoo.client(f'logits("{name}", memory={memory})')), expected)
    assert not zoo.server.requests
    with zoo.start(offline=True) as client:
        assert torch.equal(torch.tensor(client(f'logits("{NAME}", memory=False)')), expected)
    assert not zoo.server.requests
    cfg = zoo.client(f'model = create("{NAME}", memory=False)\nresult = model.pretrained_cfg')
    assert 'file' not in cfg and cfg['num_classes'] == 100
    assert cfg['url'].endswith('mobilenetv2_0.1_ori/model_best.pth.tar')


def test_the_file_decides_the_update(zoo):
    """x0.35 is 'add' here, which is not what its name stands for."""
    model = 'mlfm_mobilenetv2_035'
    update = 'model.memory.stem.update'
    assert zoo.client(f'model = create("{model}", num_classes=5, in_chans=1)\nresult = {update}') == 'add'
    assert zoo.client('list(model(torch.zeros(1, 1, 64, 64)).shape)') == [1, 5]
    assert zoo.client(f'create("{model}", memory_update="add", features_only=True).feature_info.channels()')
    text = refusal(zoo.client, zoo.root / 'home', model, 'ValueError', memory_update='cat')
    assert text.startswith(f"memory_update is 'cat', but the weights {model}.paper_in100 were trained with 'add'")
    assert zoo.client(f'timm.create_model("{model}", memory_update="cat").memory.stem.update') == 'cat'


@pytest.mark.parametrize('fault, expected', [
    ('missing', 'the server answered with status 404; update'), ('error', 'status 500; try again later'),
    ('cut', 'the transfer broke off'), ('short', 'bytes, expected'), ('longer', 'has more than'),
    ('flipped', 'has the git blob id'), ('redirect_file', 'an address that is not http'),
    ('redirect_ftp', 'an address that is not http'),
])
def test_what_goes_wrong_leaves_nothing(zoo, tmp_path, fault, expected):
    zoo.server.fault = fault
    assert expected in refusal(zoo.client, tmp_path)
    assert not kept(tmp_path)
    zoo.server.fault = 'redirect'  # to http is followed
    zoo.client(f'create("{NAME}", cache_dir={str(tmp_path)!r})')
    assert len(kept(tmp_path)) == 2


def test_wrong_entries(zoo, tmp_path):
    try:
        zoo.write(source_blob='f' * 40)
        assert f'expected {"f" * 40}' in refusal(zoo.client, tmp_path)
        zoo.write(source_size=10)
        assert 'has more than 10 bytes' in refusal(zoo.client, tmp_path)
        zoo.write(source_path='nothing/there')
        assert 'status 404' in refusal(zoo.client, tmp_path)
    finally:
        zoo.write()
    for name, memory, expected in (
        ('mlfm_mobilenetv2_035', False,
         'holds mlfm_mobilenetv2_010 without memory, 100 classes and conv_stem.weight of shape (4, 3, 3, 3), '
         'expected mlfm_mobilenetv2_035.paper_in100 (memory=False)'),
        ('mlfm_mobilenetv2_050', True, 'holds mlfm_mobilenetv2_050 without memory'),
        ('mlfm_mobilenetv2_050', False, 'holds mlfm_mobilenetv2_050 with memory'),
        ('mlfm_mobilenetv2_075', True, 'with memory, 7 classes'),
    ):
        assert expected in refusal(zoo.client, tmp_path, name, memory=memory)
    assert not kept(tmp_path)


def test_nothing_is_executed(zoo, tmp_path, files):
    for width, memory in (('075', False), ('100', True), ('100', False)):
        text = refusal(zoo.client, tmp_path, f'mlfm_mobilenetv2_{width}', memory=memory)
        assert 'cannot be converted' in text and 'unfinished' not in text
    assert not files[1].exists() and not kept(tmp_path)


def test_full_disk(zoo, tmp_path):
    """A limit on the size of files stands for it: in the download, and in what is made of it."""
    pytest.importorskip('resource')
    for limit in (100_000, len(zoo.server.files[path('0.1', 'ori')]) - 100_000):
        zoo.client(f'limits = resource.getrlimit(resource.RLIMIT_FSIZE)\n'
                   f'resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, limits[1]))')
        try:
            text = refusal(zoo.client, tmp_path, memory=False)
        finally:
            zoo.client('resource.setrlimit(resource.RLIMIT_FSIZE, limits)')
        assert f'no space is left in {tmp_path}' in text and not kept(tmp_path)
    zoo.client(f'create("{NAME}", memory=False, cache_dir={str(tmp_path)!r})')


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
            return action()
        finally:
            zoo.client('if root: os.seteuid(0)')
            for folder in folders:
                folder.chmod(0o755)

    create = f'create("{NAME}", cache_dir={str(cache)!r}) is not None'
    zoo.client(f'create("{NAME}")')  # all is imported then, from where others may not read
    text = as_reader(lambda: refusal(zoo.client, cache))
    assert f'nothing can be written to {cache}' in text and 'another cache_dir' in text and not kept(cache)
    assert zoo.client(create)
    zoo.server.requests.clear()
    assert as_reader(lambda: zoo.client(create)) and not zoo.server.requests
    [file] = cache.rglob('model.safetensors')
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert 'could not be removed from the cache' in as_reader(lambda: refusal(zoo.client, cache))
    assert 'it was removed from the cache: try again' in refusal(zoo.client, cache)
    assert not kept(cache) and zoo.client(create)


@pytest.mark.parametrize('damage', ['flip', 'cut', 'no record', 'broken record', 'other record'])
def test_damage_in_the_cache_is_noticed(zoo, tmp_path, damage):
    create = f'create("{NAME}", cache_dir={str(tmp_path)!r}) is not None'
    assert zoo.client(create)
    [file] = tmp_path.rglob('model.safetensors')
    record = file.with_name('record.json')
    data = bytearray(file.read_bytes())
    if damage == 'flip':
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == 'cut':
        file.write_bytes(data[:-100])
    elif damage == 'no record':
        record.unlink()
    else:
        record.write_text('{' if damage == 'broken record' else '{"size": 3, "sha256": "", "model_args": {}}')
    assert 'it was removed from the cache: try again' in refusal(zoo.client, tmp_path)
    assert not kept(tmp_path) and zoo.client(create)


def test_many_processes_fetch_once(zoo):
    clients = [zoo.start(home='shared') for _ in range(4)]
    for client in clients:
        client.start(f'logits("{NAME}")[0][0]')
    assert len({client.wait() for client in clients}) == 1
    assert len(zoo.server.requests) == 1
    for client in clients:
        client.kill()


def test_a_killed_process_leaves_nothing_in_the_way(zoo, tmp_path):
    [entry] = [e for e in zoo.entries if e['model'] == NAME and e['memory']]
    name = f'{NAME}.paper_in100.{entry["source_blob"][:16]}'
    left = tmp_path / 'mlfm_zoo' / f'.{name}.unfinished-abc'
    (left / 'made').mkdir(parents=True)
    (left / 'source').write_bytes(b'half')
    (tmp_path / 'mlfm_zoo' / f'.{name}.lock').touch()
    assert zoo.client(f'create("{NAME}", cache_dir={str(tmp_path)!r}) is not None')
    assert not left.exists()


def test_folders_and_addresses(zoo, files, tmp_path):
    clone = tmp_path / 'clone'
    for name in (path('0.1', 'wavelet'), path('0.1', 'ori')):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(files[0][name])
    for i, mirror in enumerate((str(clone), clone.as_uri())):
        with zoo.start(mirror, f'folder{i}', offline=True) as client:  # which needs no network
            assert client(f'create("{NAME}") is not None')
            assert 'cannot be read from' in refusal(client, tmp_path / 'cache', 'mlfm_mobilenetv2_035')
    for mirror, expected in (
        ('ftp://127.0.0.1/x', "'ftp://127.0.0.1/x', expected a folder or an address"),
        ('data://x', 'expected a folder'), (str(tmp_path / 'nothing'), 'which is no folder'),
        ('http://127.0.0.1:9', 'there was no answer'),
    ):
        with zoo.start(mirror, 'nowhere') as client:
            assert expected in refusal(client, tmp_path / 'cache')
    with zoo.start(home='nowhere', offline=True) as client:
        assert 'HF_HUB_OFFLINE is set' in refusal(client, tmp_path / 'cache')
    assert not kept(tmp_path / 'cache') and not zoo.server.requests


def test_proxies_are_honoured(zoo):
    """Those of the environment, as the Hub client does."""
    env = {'HTTP_PROXY': zoo.server.endpoint, 'http_proxy': zoo.server.endpoint, 'NO_PROXY': None, 'no_proxy': None}
    with zoo.start('http://example.invalid', 'proxied', env=env) as client:
        assert client(f'create("{NAME}") is not None')
    [request] = zoo.server.requests
    assert request.startswith('http://example.invalid/MLFM%20classification/')


def test_addresses_are_those_of_the_repository():
    assert source_url(load_manifest()['mlfm_mobilenetv2_100', 'paper_in100', True]) == (
        'https://raw.githubusercontent.com/AlphaWuSeu/MLFM/94c17aae7b47ca9d3f47db124831014f4a2057fb/MLFM%20classification/'
        'MobileNet/mobilenetv2_MLFM/checkpoint/mobilenetv2_1.0_wavelet/model_best.pth.tar')


@pytest.fixture(scope='module', params=['server', 'folder'])
def authors(request, tmp_path_factory):
    """A client that gets the authors' two files of width 0.1 from a server, or from a folder."""
    root = tmp_path_factory.mktemp('authors')
    with RawServer() as server:
        for kind, file in (('wavelet', 'mlfm'), ('ori', 'baseline')):
            content = (REFERENCE / 'authors' / f'mobilenetv2_0.1_{file}.pth.tar').read_bytes()
            server.files[path('0.1', kind)] = content
            target = root / 'clone' / path('0.1', kind)
            target.parent.mkdir(parents=True)
            target.write_bytes(content)
        mirror = server.endpoint if request.param == 'server' else str(root / 'clone')
        with Client(server.endpoint, root / 'home', env={
                'MLFM_ZOO_MANIFEST': None, 'MLFM_ZOO_PAPER_MIRROR': mirror}) as client:
            client(SETUP)
            yield client, server, root


@needs_reference
def test_the_authors_own(authors):
    """The authors' outputs and their counts of right answers on 50 photos, by name, and again with the source gone."""
    client, server, root = authors
    save_file({'image': torch.from_numpy(load_fill().image('input', (2, 3, 224, 224)))}, root / 'image.safetensors')
    client('from safetensors.torch import load_file\n'
           f'golden_image = load_file({str(root / "image.safetensors")!r})["image"]')
    for _ in range(2):
        for memory, file, top1, top5 in ((True, 'mlfm', 27, 44), (False, 'baseline', 28, 43)):
            logits = torch.tensor(client(
                f'model = create("{NAME}", memory={memory})\nwith torch.inference_mode():\n'
                '    result = model(golden_image).tolist()'))
            golden = load_file(REFERENCE / 'golden' / f'mobilenetv2_0.1_{file}_authors_224.safetensors')['logits']
            assert (logits - golden).abs().max() / golden.abs().max() < 1e-4
            accuracy = client(
                'from mlfm_zoo.workflow.evaluate import evaluate\n'
                f'result = evaluate(model, {str(REFERENCE / "imagenet100_samples" / "val")!r}, '
                'class_names=mlfm_zoo.imagenet100.SYNSETS, num_workers=0)')
            assert accuracy == [top1, top5, 50]
        server.files.clear()
        server.requests.clear()
        for file in (root / 'clone').rglob('*.tar'):
            file.unlink()
    assert not server.requests
