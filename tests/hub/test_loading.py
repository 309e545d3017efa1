"""From the manifest's checkpoints to verified files, against a Hub on loopback with the real client."""

import hashlib
import os
import re
import tempfile
from pathlib import Path

import pytest
import timm
from huggingface_hub import constants

from helpers.disks import full_disk, reader_of
from helpers.hub_server import HubServer, point_client_at
from mlfm_zoo.hub.loading import (
    CheckpointError,
    cached_checkpoint,
    fetch_checkpoint,
    find_checkpoint,
    verify_checkpoint,
)
from mlfm_zoo.hub.manifest import Checkpoint

FILE = 'model.safetensors'
CONTENT = bytes(range(256)) * 2000


class Zoo:
    """A Hub with one repository, and the checkpoint that is pinned to it."""

    def __init__(self, server, cache):
        self.server, self.cache = server, cache
        self.commit = server.add_repo('org/name', {FILE: CONTENT})

    def checkpoint(self, **fields):
        return Checkpoint(**dict(
            dict(model='test_mlfm_resnet', tag='mine', kind='trained', places=('hub',), license='mit', origin='a test',
                 num_classes=10, input_size=(3, 64, 64), repo='org/name', commit=self.commit, file=FILE,
                 sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT)), **fields))

    def loads(self, **fields):
        """Whether the content arrives; how many requests that took is left in the server's list."""
        self.server.clear()
        return fetch_checkpoint(self.checkpoint(**fields), self.cache).path.read_bytes() == CONTENT

    def refusal(self, cache=None, **fields):
        """The one sentence that says why the file is not taken."""
        with pytest.raises(CheckpointError, match='^The (weights|file) of test_mlfm_resnet.mine ') as error:
            fetch_checkpoint(self.checkpoint(**fields), cache or self.cache)
        assert '\n' not in str(error.value)
        return str(error.value)

    def flip(self):
        """Flip a bit of the one file in the cache."""
        blob, = (p for p in self.cache.rglob('*') if p.parent.name == 'blobs')
        content = bytearray(blob.read_bytes())
        content[-100] ^= 1
        blob.write_bytes(content)

    def cached(self):
        """What a later call would take for the file."""
        return [p for p in self.cache.rglob('*') if p.is_file() and {'blobs', 'snapshots'} & {*p.parts}]


@pytest.fixture
def zoo(monkeypatch):
    with HubServer() as server, tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)  # which other users may read, unlike tmp_path
        point_client_at(monkeypatch, server.endpoint)
        yield Zoo(server, Path(root, 'cache'))


def test_a_file_in_the_cache_costs_no_request(zoo, monkeypatch):
    assert cached_checkpoint(zoo.checkpoint(), zoo.cache) is None
    assert zoo.loads()
    assert {path for _, path in zoo.server.requests} == {f'/org/name/resolve/{zoo.commit}/{FILE}'}
    assert verify_checkpoint(cached_checkpoint(zoo.checkpoint(), zoo.cache), zoo.checkpoint())
    assert zoo.loads() and not zoo.server.requests
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert zoo.loads() and not zoo.server.requests
    zoo.flip()
    assert 'SHA-256' in zoo.refusal()  # what is damaged is not taken offline either
    assert 'HF_HUB_OFFLINE is set' in zoo.refusal() and not zoo.server.requests


@pytest.mark.parametrize('fault, expected', [
    ('wrong_bytes', r'has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}; it was removed from the cache'),
    ('truncated', r'has [\d,]+ bytes, expected [\d,]+; it was removed from the cache'),
    ('short', r'could not be downloaded from org/name/.*: the transfer broke off .* try again'),
    ('cut', r'could not be downloaded from .*: the transfer broke off .* try again'),
    ('error_500', r'could not be downloaded from .*: the Hub did not answer and the cache'),
])
@pytest.mark.parametrize('pinned', [True, False])
def test_faults_of_a_transfer(zoo, fault, expected, pinned):
    """Without a SHA-256 in the manifest the Hub's own is compared, by which it names the file."""
    fields = {} if pinned else dict(sha256=None, size=None, commit=None, kind='warm_start')
    expected = expected if pinned or fault != 'truncated' else 'has SHA-256'
    zoo.server.fault = fault
    assert re.search(expected, zoo.refusal(**fields))
    assert not zoo.cached()
    zoo.server.fault = None
    assert zoo.loads(**fields)


def test_damaged_in_the_cache(zoo):
    assert zoo.loads()
    zoo.flip()
    with pytest.raises(CheckpointError, match='SHA-256'):
        verify_checkpoint(cached_checkpoint(zoo.checkpoint(), zoo.cache), zoo.checkpoint())
    assert 'it was removed from the cache' in zoo.refusal() and not zoo.cached()
    assert zoo.loads() and zoo.server.requests


def test_a_file_that_the_hub_names_by_its_git_blob_id(zoo):
    """As it names a file that is no LFS file: the id is the one that `git hash-object` prints for 'hello\\n'."""
    blob = zoo.cache / 'models--org--name' / 'blobs' / 'ce013625030ba8dba906f756967f9e9ca394464a'
    path = blob.parents[1] / 'snapshots' / zoo.commit / FILE
    for folder in (blob.parent, path.parent):
        folder.mkdir(parents=True)
    path.symlink_to(blob)
    fields = dict(sha256=None, size=None, kind='warm_start')
    blob.write_bytes(b'hello\n')
    assert verify_checkpoint(path, zoo.checkpoint(**fields))
    assert fetch_checkpoint(zoo.checkpoint(**fields), zoo.cache).path == path and not zoo.server.requests
    blob.write_bytes(b'hell')
    assert 'has the git blob id' in (text := zoo.refusal(**fields)) and 'it was removed from the cache' in text
    assert not zoo.cached() and zoo.loads(**fields)


@pytest.mark.parametrize('fields, expected', [
    (dict(repo='org/none'), f'from org/none/{FILE}: there is no such repository, or it is not open; ask for access'),
    (dict(commit='f' * 40), f'no such file at commit {"f" * 40}; update'),
    (dict(file='weights/other.safetensors'), 'other.safetensors: the repository has no such file'),
])
def test_what_the_hub_does_not_give(zoo, fields, expected):
    assert expected in zoo.refusal(**fields)
    zoo.server.repos['org/name'].gated = True
    assert 'ask for access' in zoo.refusal()
    assert not zoo.cached()


def test_another_revision_and_organization_and_no_network(zoo, monkeypatch):
    zoo.server.commit('org/name', {FILE: b'other'})
    assert zoo.loads()
    zoo.server.repos['mirror/name'] = zoo.server.repos.pop('org/name')
    monkeypatch.setenv('MLFM_ZOO_HUB', 'mirror')
    assert zoo.loads()
    with HubServer() as closed:
        point_client_at(monkeypatch, closed.endpoint)
    assert zoo.loads()
    assert 'the Hub did not answer' in zoo.refusal(commit='a' * 40)


def test_cache_that_cannot_be_written(zoo, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    assert f'the cache {tmp_path / "file"} cannot be written to' in zoo.refusal(tmp_path / 'file')
    zoo.cache.mkdir()
    checkpoint = zoo.checkpoint()
    with pytest.raises(CheckpointError, match=r'cannot be written to \(.*\)'), full_disk(100_000):
        fetch_checkpoint(checkpoint, zoo.cache)
    assert not zoo.cached()
    with pytest.raises(CheckpointError, match='cannot be written to .*another cache_dir'), reader_of(zoo.cache):
        fetch_checkpoint(checkpoint, zoo.cache)
    assert zoo.loads()
    zoo.server.clear()
    with reader_of(zoo.cache):
        fetch_checkpoint(checkpoint, zoo.cache)
    assert not zoo.server.requests
    zoo.flip()
    with pytest.raises(CheckpointError, match='SHA-256 .*; remove .* from the cache'), reader_of(zoo.cache):
        fetch_checkpoint(checkpoint, zoo.cache)
    assert 'it was removed from the cache' in zoo.refusal()


@pytest.mark.parametrize('model, tag, expected', [
    ('mlfm_resnet50', '', 'Trained weights of mlfm_resnet50 are not published: load mlfm_resnet50.a1_in1k'),
    ('mlfm_resnet50', 'in100', 'The weights mlfm_resnet50.in100 are not published: load mlfm_resnet50.a1_in1k'),
    ('mlfm_mobilenetv2_010', 'in100', 'mlfm_mobilenetv2_010.paper_in100, .*recipe mlfm_mobilenetv2_010'),
    ('test_mlfm_resnet', 'none', 'load test_mlfm_resnet.digits, or build it untrained with pretrained=False'),
])
def test_not_published(model, tag, expected):
    with pytest.raises(CheckpointError, match=expected):
        find_checkpoint(model, tag)


def test_without_memory():
    """Weights of the network without memory are preferred where it is without, and never taken where it is with."""
    assert not find_checkpoint('mlfm_mobilenetv2_010', 'paper_in100', memory=False).memory
    assert find_checkpoint('mlfm_mobilenetv2_010', 'paper_in100').memory
    assert find_checkpoint('mlfm_resnet50', 'a1_in1k', memory=False).memory


def test_every_network_says_what_it_has():
    for name in timm.list_models(['mlfm_*', 'gssdnet_*'], exclude_filters='mlfm_filtered'):
        if not timm.get_pretrained_cfg(name).has_weights:
            with pytest.raises(CheckpointError, match=f'{name} are not published'):
                timm.create_model(name, pretrained=True)
