"""The manifest: what is read, and each fault in one sentence that names the file, the entry and the field."""

import json
import os
import subprocess
import sys

import pytest

from mlfm_zoo.hub.manifest import ManifestError, load_manifest, paper_accuracies, read_manifest

GOOD = dict(
    model='test_mlfm_resnet', tag='good', kind='trained', places=['hub'], repo='org/name', commit='a' * 40,
    file='model.safetensors', sha256='b' * 64, size=10, num_classes=10, input_size=[3, 64, 64], license='apache-2.0',
    origin='made by a test')


def write(path, *entries, **more):
    path.write_text(json.dumps({'version': 2, 'checkpoints': entries} | more))  # which is YAML too
    return path


def refusal(path):
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert '\n' not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_own_manifest():
    checkpoints = load_manifest()
    assert {c.kind for c in checkpoints.values()} >= {'embedded', 'paper', 'warm_start', 'initialisation'}
    assert all(key == c.key and isinstance(c.places, tuple) for key, c in checkpoints.items())
    assert all(c.command for c in checkpoints.values() if c.measured)
    assert [c.name for c in checkpoints.values() if c.kind == 'embedded'] == [
        'test_mlfm_resnet.digits', *['mlfm_mobilenetv2_010.imagenette'] * 2,
        *['mlfm_mobilenetv2_035.imagenette'] * 2]
    assert paper_accuracies()['mlfm_resnet18'] == (77.86, 81.22)


def test_second_manifest(tmp_path, monkeypatch):
    """Its entries join the package's and replace those of the same name; `MLFM_ZOO_HUB` moves all repositories."""
    digits = GOOD | {'tag': 'digits'}
    monkeypatch.setenv('MLFM_ZOO_MANIFEST', str(write(tmp_path / 'manifest.yaml', GOOD, digits)))
    checkpoints = load_manifest()
    assert checkpoints['test_mlfm_resnet', 'digits', True].places == ('hub',)
    assert checkpoints['test_mlfm_resnet', 'good', True].hub_repo == 'org/name'
    assert ('mlfm_resnet50', 'a1_in1k', True) in checkpoints
    monkeypatch.setenv('MLFM_ZOO_HUB', 'mirror')
    assert checkpoints['test_mlfm_resnet', 'good', True].hub_repo == 'mirror/name'
    assert checkpoints['test_mlfm_resnet', 'good', True].repo == 'org/name'


@pytest.mark.parametrize('changes, expected', [
    ({'sha256': 'abc'}, "sha256 is 'abc', expected 64 hexadecimal digits"),
    ({'commit': 5}, 'commit is 5, expected 40 hexadecimal digits'),
    ({'kind': 'other'}, "kind is 'other', expected one of embedded"), ({'license': None}, 'license is None'),
    ({'size': -1}, 'size is -1, expected'), ({'size': True}, 'size is True'), ({'num_classes': 'ten'}, "is 'ten'"),
    ({'input_size': [3, 64]}, 'input_size is (3, 64), expected'), ({'memory': 1}, 'memory is 1, expected'),
    ({'measured': {'top-1': 101}}, "measured is {'top-1': 101}, expected"),
    ({'places': ['moon']}, "places is ('moon',), expected some of package, hub, authors"),
    ({'places': 'hub'}, "places is 'hub'"),
    ({'origin': '\x1b[31m'}, "origin is '\\x1b[31m', expected"),
    ({'licence': 'mit'}, "unexpected keyword argument 'licence'"),
    ({'source_sha256': 'abc'}, 'expected 8 to 64 hexadecimal digits'),
    ({'commit': None}, 'it is available from hub, so it needs the field "commit"'),
    ({'places': []}, 'it is available from nowhere, so it needs the field "recipe"'),
])
def test_faults_of_an_entry(changes, expected, tmp_path):
    message = refusal(write(tmp_path / 'manifest.yaml', GOOD, GOOD | {'tag': 'bad'} | changes))
    assert 'entry 2 (test_mlfm_resnet.bad): ' in message and expected in message, message


def test_faults_of_a_file(tmp_path):
    path = tmp_path / 'manifest.yaml'
    assert "missing 1 required positional argument: 'origin'" in refusal(
        write(path, {k: v for k, v in GOOD.items() if k != 'origin'}))
    assert 'entry 2: test_mlfm_resnet.good is listed twice' in refusal(write(path, GOOD, GOOD))
    assert 'has version 1, expected 2' in refusal(write(path, version=1))
    for text, expected in (
        ('version: 2\ncheckpoints: [{', 'line 3 is not valid YAML'), ('[]', 'must hold "version"'),
        ('version: 2\ncheckpoints: [[]]', 'entry 1: '), ('a: 2024-99-99', 'is not valid YAML'),
        ('!!python/object/apply:os.mkdir [executed]', 'is not valid YAML'),
    ):
        path.write_text(text)
        assert expected in refusal(path)


def test_manifest_that_cannot_be_read_at_import(tmp_path):
    manifest = write(tmp_path / 'manifest.yaml', GOOD | {'commit': 'abc'})
    result = subprocess.run(
        [sys.executable, '-c', 'import mlfm_zoo'], env=os.environ | {'MLFM_ZOO_MANIFEST': str(manifest)},
        capture_output=True, text=True)
    assert f'ManifestError: {manifest}, entry 1' in result.stderr
