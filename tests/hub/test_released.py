"""What the authors released: fetched from loopback and folders, verified, converted and kept."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from timm.data import ImageNetInfo

from helpers.authors_form import mobilenetv2, released
from helpers.disks import full_disk, reader_of
from helpers.hub_server import environment, git_oid
from helpers.raw_server import RawServer
from helpers.reference import REFERENCE, load_fill, needs_reference
from mlfm_zoo.data.imagenet100 import SYNSETS
from mlfm_zoo.hub.files import CheckpointError
from mlfm_zoo.hub.loading import cached_checkpoint, fetch_checkpoint, verify_checkpoint
from mlfm_zoo.hub.manifest import Checkpoint, load_manifest
from mlfm_zoo.hub.released import source_url

NAME = 'mlfm_mobilenetv2_010'
PATH = 'MLFM classification/a b/model_best.pth.tar'


def as_file(weights) -> bytes:
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


WEIGHTS = mobilenetv2(0.1)
CONTENT = as_file(released(WEIGHTS))


class Zoo:
    """A server of one file of the authors', the checkpoint that pins it, and a cache."""

    def __init__(self, server, cache):
        self.server, self.cache = server, cache
        server.files[PATH] = CONTENT

    def checkpoint(self, content=CONTENT, **fields):
        return Checkpoint(**dict(
            dict(model=NAME, tag='paper_in100', kind='paper', places=('authors',), license='mit', origin='a test',
                 num_classes=100, input_size=(3, 224, 224), source_repo='github.com/a/b', source_commit='0' * 40,
                 source_path=PATH, source_blob=git_oid(content), source_size=len(content)), **fields))

    def fetch(self, content=CONTENT, **fields):
        return fetch_checkpoint(self.checkpoint(content, **fields), self.cache)

    def refusal(self, content=CONTENT, **fields):
        """The one sentence that says why the file is not taken."""
        with pytest.raises(CheckpointError) as error:
            self.fetch(content, **fields)
        assert '\n' not in str(error.value)
        return str(error.value)

    def kept(self):
        """What a later call could take for weights."""
        return list(self.cache.rglob('*.safetensors'))


@pytest.fixture
def zoo(monkeypatch):
    with RawServer() as server, tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)  # which other users may read, unlike tmp_path
        monkeypatch.setenv('MLFM_ZOO_PAPER_MIRROR', server.endpoint)
        yield Zoo(server, Path(root, 'cache'))


def test_a_converted_file_costs_no_request(zoo, monkeypatch):
    assert cached_checkpoint(zoo.checkpoint(), zoo.cache) is None
    weights = zoo.fetch()
    assert zoo.server.requests == ['/MLFM%20classification/a%20b/model_best.pth.tar']
    tensors = load_file(weights.path)
    assert torch.equal(tensors['conv_stem.weight'], WEIGHTS['featuresconv.0.weight'])
    assert timm.create_model(NAME, num_classes=100).state_dict().keys() == tensors.keys()
    assert weights.model_args == {'memory_update': 'cat'}
    assert zoo.fetch() == weights
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert zoo.fetch() == weights and len(zoo.server.requests) == 1
    assert cached_checkpoint(zoo.checkpoint(), zoo.cache) == weights.path
    assert verify_checkpoint(weights.path, zoo.checkpoint())
    assert 'HF_HUB_OFFLINE is set' in zoo.refusal(memory=False)


@pytest.mark.parametrize('fault, expected', [
    ('missing', 'the server answered with status 404'), ('error', 'status 500'), ('cut', 'the transfer broke off'),
    ('short', 'bytes, expected'), ('longer', 'bytes, expected'), ('flipped', 'has the git blob id'),
    ('file:///etc/hostname?', 'broke off'), ('ftp://127.0.0.1', 'broke off'),
])
def test_what_goes_wrong_leaves_nothing(zoo, fault, expected):
    zoo.server.fault = fault
    assert expected in zoo.refusal()
    assert not zoo.kept()
    zoo.server.fault = f'{zoo.server.endpoint}/moved'  # is followed
    assert zoo.fetch().path in zoo.kept()


@pytest.mark.parametrize('fields, expected', [
    (dict(source_blob='f' * 40), f'expected {"f" * 40}'), (dict(source_size=10), 'bytes, expected 10'),
    (dict(source_path='nothing/there'), 'status 404'),
    (dict(model='mlfm_mobilenetv2_035'), f"holds {{'network': '{NAME}', 'memory': True, 'classes': 100, "),
    (dict(memory=False), "'memory': False"), (dict(num_classes=7), "'classes': 7"),
])
def test_wrong_entries(zoo, fields, expected):
    assert expected in zoo.refusal(**fields)
    assert not zoo.kept()


def test_no_checkpoint(zoo):
    zoo.server.files[PATH] = b'no checkpoint'
    assert f'cannot be converted: {zoo.server.endpoint}/MLFM' in zoo.refusal(b'no checkpoint')


def test_cache_that_cannot_be_written(zoo):
    zoo.cache.mkdir()
    with full_disk(100_000):
        assert 'cannot be kept in' in (text := zoo.refusal()) and 'free space there' in text
    assert not zoo.kept()
    with pytest.raises(CheckpointError, match='cannot be kept in .*another cache_dir'), reader_of(zoo.cache):
        zoo.fetch()
    path = zoo.fetch().path
    zoo.server.requests.clear()
    with reader_of(zoo.cache):
        assert zoo.fetch().path == path and not zoo.server.requests
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match='SHA-256 .*; remove .* from the cache'), reader_of(zoo.cache):
        zoo.fetch()


def test_damage_in_the_cache_is_noticed(zoo):
    file = zoo.fetch().path
    data = file.read_bytes()
    assert file.stem == hashlib.sha256(data).hexdigest()
    half = len(data) // 2
    for damaged in (data[:half] + bytes([data[half] ^ 1]) + data[half + 1:], data[:-100], b''):
        file.write_bytes(damaged)
        assert 'it was removed from the cache: try again' in zoo.refusal()
        assert not zoo.kept() and zoo.fetch().path == file and file.read_bytes() == data
    file.rename(file.with_stem('model'))  # a name that verifies nothing
    zoo.server.requests.clear()
    assert zoo.fetch().path == file and zoo.server.requests


def test_many_processes_fetch_once(zoo):
    code = f'''
import sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from mlfm_zoo.hub.loading import fetch_checkpoint
from mlfm_zoo.hub.manifest import Checkpoint
print(fetch_checkpoint({zoo.checkpoint()!r}, {str(zoo.cache)!r}).path)
'''
    env = environment(zoo.server.endpoint, zoo.cache.parent)
    processes = [subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE) for _ in range(2)]
    assert {process.communicate()[0].decode().strip() for process in processes} == {str(*zoo.kept())}
    assert len(zoo.server.requests) == 1


def test_a_killed_process_leaves_nothing_in_the_way(zoo):
    path = zoo.fetch().path
    path.unlink()
    (path.parent / '.unfinished-1').mkdir()
    (path.parent / '.unfinished-1' / 'source').write_bytes(b'half')
    (path.parent / '.unfinished-2').write_bytes(b'half')
    assert zoo.fetch().path == path
    assert {file.name for file in path.parent.iterdir()} == {'.lock', path.name}


def test_passwords_are_shown_nowhere(zoo, monkeypatch):
    address = zoo.server.endpoint
    monkeypatch.setenv('MLFM_ZOO_PAPER_MIRROR', address.replace('//', '//user:p@ss@'))
    for fault in ('error', 'flipped'):
        zoo.server.fault = fault
        assert address in (text := zoo.refusal()) and 'p@ss' not in text and 'user' not in text
    zoo.server.fault = None
    content = zoo.fetch().path.read_bytes()
    assert f'{address}/MLFM'.encode() in content and b'user' not in content
    for mirror in (
        f'{address}/a?token=secret', f'{address}/#secret', address.replace('//', '//user:p/secret@'),
        address.replace('http://', 'HTTP://secret@'), 'ftp://user:secret@127.0.0.1',
    ):
        monkeypatch.setenv('MLFM_ZOO_PAPER_MIRROR', mirror)
        assert 'secret' not in zoo.refusal(memory=False)


def test_folders(zoo, tmp_path, monkeypatch):
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_bytes(CONTENT)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)  # a folder needs no network
    monkeypatch.setenv('MLFM_ZOO_PAPER_MIRROR', str(tmp_path))
    assert zoo.fetch() and not zoo.server.requests
    (tmp_path / PATH).write_bytes(CONTENT[:-1] + b'x')
    assert 'git blob id' in zoo.refusal(memory=False)
    for mirror, expected in (
        (str(tmp_path / 'nothing'), 'name a clone of github.com/a/b'), ('http://127.0.0.1:9', 'there was no answer'),
    ):
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setenv('MLFM_ZOO_PAPER_MIRROR', mirror)
        assert f'from {mirror}/MLFM' in (text := zoo.refusal(memory=False)) and expected in text


def test_addresses_are_those_of_the_repository():
    assert source_url(load_manifest()['mlfm_mobilenetv2_100', 'paper_in100', True]) == (
        'https://raw.githubusercontent.com/AlphaWuSeu/MLFM/94c17aae7b47ca9d3f47db124831014f4a2057fb/MLFM%20classification/'
        'MobileNet/mobilenetv2_MLFM/checkpoint/mobilenetv2_1.0_wavelet/model_best.pth.tar')


def write_manifest(path, *checkpoints):
    path.write_text(json.dumps({'version': 2, 'checkpoints': [
        {k: v for k, v in vars(c).items() if v not in (None, {})} for c in checkpoints]}))
    return str(path)


def test_by_name(zoo, tmp_path, monkeypatch):
    """The file decides how the memory is updated: here 'add', which is not what the name stands for."""
    monkeypatch.setenv('MLFM_ZOO_MANIFEST', write_manifest(tmp_path / 'manifest.yaml', *(
        zoo.checkpoint(zoo.server.files.setdefault(kind, as_file(released(mobilenetv2(0.35, update)))),
                       model='mlfm_mobilenetv2_035', source_path=kind, memory=kind == 'memory')
        for kind, update in (('memory', 'add'), ('trunk', None)))))

    def create(**kwargs):
        return timm.create_model('mlfm_mobilenetv2_035', pretrained=True, cache_dir=str(zoo.cache), **kwargs)

    model = create(num_classes=5, in_chans=1)
    assert model.memory.stem.update == 'add' and model(torch.zeros(2, 1, 64, 64)).shape == (2, 5)
    assert create(memory_update='add', features_only=True).feature_info.channels()
    with pytest.raises(ValueError, match="memory_update is 'cat', but the weights .* were trained with 'add'"):
        create(memory_update='cat')
    trunk = create(memory=False)
    assert not hasattr(trunk, 'memory') and trunk.num_classes == 100 and 'file' not in trunk.pretrained_cfg
    assert trunk.pretrained_cfg['url'].endswith('/trunk')


@pytest.mark.parametrize('model, width', [
    ('mlfm_mobilenetv2_010', 0.1), ('mlfm_mobilenetv2_035', 0.35), ('mlfm_mobilenetv2_050', 0.5),
    ('mlfm_mobilenetv2_075', 0.75), ('mlfm_mobilenetv2_100', 1.0)])
def test_starting_points_on_imagenet_1k(zoo, tmp_path, monkeypatch, model, width):
    """Made-up files under the names of d-li14's, whose parameters have the authors' names, in the place of his."""
    known = load_manifest()[model, 'dli14_in1k', True]
    weights = mobilenetv2(width, None, num_classes=1000)
    content = as_file(weights)
    assert known.source_path == f'pretrained/mobilenetv2_{width}-{known.source_sha256}.pth'
    zoo.server.files[known.source_path] = content
    entry = dataclasses.replace(
        known, source_blob=git_oid(content), source_sha256=hashlib.sha256(content).hexdigest()[:8])
    monkeypatch.setenv('MLFM_ZOO_MANIFEST', write_manifest(tmp_path / 'manifest.yaml', entry))

    def create(**kwargs):
        return timm.create_model(f'{model}.dli14_in1k', pretrained=True, cache_dir=str(zoo.cache), **kwargs).eval()

    trunk, warm = create(memory=False), create()
    assert torch.equal(trunk.conv_stem.weight, weights['features.0.0.weight'])
    assert torch.equal(trunk.blocks[3][2].conv_dw.weight, weights['features.9.conv.3.weight'])
    assert torch.equal(trunk.classifier.weight, weights['classifier.weight'])
    assert trunk.pretrained_cfg['interpolation'] == 'bilinear' and trunk.pretrained_cfg['url'] == source_url(known)
    if width != 0.1:  # timm's own network takes them whole
        timm.create_model(model.removeprefix('mlfm_')).load_state_dict(trunk.state_dict())
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(warm(image), trunk(image), rtol=1e-4, atol=1e-4)
    assert hasattr(warm, 'memory') and len(zoo.server.requests) == 1
    names = ImageNetInfo().label_names()
    rows = weights['classifier.weight'][[names.index(name) for name in SYNSETS]]
    assert torch.equal(create(imagenet100_head=True).classifier.weight, rows)
    zoo.server.files[known.source_path] = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    for fields, expected in (({}, 'has SHA-256'), (dict(source_sha256=None), 'has the git blob id')):
        with pytest.raises(CheckpointError, match=expected):
            fetch_checkpoint(dataclasses.replace(entry, **fields), zoo.cache / 'other')


@needs_reference
def test_the_authors_own(zoo):
    """The authors' outputs by name, and again with the source gone."""
    image = torch.from_numpy(load_fill().image('input', (2, 3, 224, 224)))
    for kind, file in (('wavelet', 'mlfm'), ('ori', 'baseline')):
        known = load_manifest()[NAME, 'paper_in100', kind == 'wavelet']
        zoo.server.files[known.source_path] = (REFERENCE / 'authors' / f'mobilenetv2_0.1_{file}.pth.tar').read_bytes()
    for _ in range(2):
        for memory, file in ((True, 'mlfm'), (False, 'baseline')):
            model = timm.create_model(NAME, pretrained=True, memory=memory, cache_dir=str(zoo.cache)).eval()
            golden = load_file(REFERENCE / 'golden' / f'mobilenetv2_0.1_{file}_authors_224.safetensors')['logits']
            with torch.inference_mode():
                assert (model(image) - golden).abs().max() / golden.abs().max() < 1e-4
        zoo.server.files.clear()
        assert len(zoo.server.requests) == 2
