"""The manifest: what is read, and each fault in one sentence that names the file, the entry and the field."""

import json
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
    message = str(error.value)
    assert '\n' not in message and str(path) in message and len(message) < 700, message
    return message


def test_own_manifest():
    checkpoints = load_manifest()
    assert {c.kind for c in checkpoints.values()} >= {'embedded', 'paper', 'warm_start', 'initialisation'}
    assert all(key == c.key and isinstance(c.places, tuple) for key, c in checkpoints.items())
    assert all(c.command for c in checkpoints.values() if c.measured)
    assert [c.name for c in checkpoints.values() if c.kind == 'embedded'] == [
        'test_mlfm_resnet.digits', *['mlfm_mobilenetv2_010.imagenette'] * 2,
        'mlfm_mobilenetv2_035.imagenette']
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
    ({'kind': 'other'}, "kind is 'other', expected one of embedded"),
    ({'size': -1}, 'size is -1, expected a whole number'), ({'size': True}, 'size is True'),
    ({'num_classes': 'ten'}, "num_classes is 'ten'"), ({'license': None}, 'license is None'),
    ({'input_size': [3, 64]}, 'input_size is [3, 64], expected three whole numbers'),
    ({'places': ['moon']}, "places is ['moon'], expected some of package, hub, authors"),
    ({'places': 'hub'}, "places is 'hub'"), ({'memory': 1}, 'memory is 1, expected true or false'),
    ({'measured': {'top-1': 101}}, "measured is {'top-1': 101}, expected percentages from 0 to 100"),
    ({'origin': '\x1b[31m'}, "origin is '\\x1b[31m', expected a line of text"),
    ({'licence': 'mit'}, "the field 'licence' is unknown"),
    ({'source_sha256': 'abc'}, 'expected 8 to 64 hexadecimal digits'),
    ({'commit': None}, 'it is available from hub, so it needs the field "commit"'),
    ({'places': []}, 'it is available from nowhere, so it needs the field "recipe"'),
])
def test_faults_of_an_entry(changes, expected, tmp_path):
    bad = GOOD | {'tag': 'bad'} | changes
    message = refusal(write(tmp_path / 'manifest.yaml', GOOD, bad))
    assert 'entry 2 (test_mlfm_resnet.bad): ' in message and expected in message, message


def test_faults_of_a_file(tmp_path):
    path = tmp_path / 'manifest.yaml'
    assert "the field 'origin' is missing" in refusal(write(path, {k: v for k, v in GOOD.items() if k != 'origin'}))
    assert 'entry 2: test_mlfm_resnet.good is listed twice' in refusal(write(path, GOOD, GOOD))
    assert 'entry 1 must be a mapping' in refusal(write(path, []))
    assert '"paper": mlfm_resnet18 is [77, 101], expected two percentages' in refusal(
        write(path, paper={'mlfm_resnet18': [77, 101]}))
    assert 'has version 1, expected 2' in refusal(write(path, version=1))
    for text, expected in (
        ('version: 2\ncheckpoints: [{', 'line 3 is not valid YAML'), ('[]', 'must hold "version"'),
        ('version: 2\ncheckpoints: {}', '"checkpoints" must be a list'), ('a: 2024-99-99', 'is not valid YAML'),
        ('version: 2\ncheckpoints: []\npaper: []', 'and "paper" a mapping'),
        ('!!python/object/apply:os.mkdir [executed]', 'is not valid YAML'),
    ):
        path.write_text(text)
        assert expected in refusal(path)
    path.write_bytes(b'\xff\xfe\xff')
    assert 'is not valid YAML' in refusal(path)
    path.unlink()
    assert f'The manifest {path} cannot be read' in refusal(path)


def test_manifest_that_cannot_be_read_at_import(tmp_path, monkeypatch):
    """A warning then, and an error where weights are asked for; networks need none."""
    manifest = write(tmp_path / 'manifest.yaml', GOOD | {'commit': 'abc'})
    monkeypatch.setenv('MLFM_ZOO_MANIFEST', str(manifest))
    code = f'''
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    import timm, mlfm_zoo
[warning] = [str(w.message) for w in told if {str(manifest)!r} in str(w.message)]
assert 'no weights can be loaded' in warning
assert timm.create_model('test_mlfm_resnet').num_classes == 10
try:
    timm.create_model('mlfm_resnet18.a1_in1k', pretrained=True)
except mlfm_zoo.hub.manifest.ManifestError as error:
    assert {str(manifest)!r} in str(error)
else:
    raise AssertionError
'''
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
