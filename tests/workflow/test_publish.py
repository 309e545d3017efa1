"""Publishing to a Hub on loopback through the command line, and loading what was published."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, load_file, save_file

from digits import load_split
from helpers.hub_server import TOKEN, HubServer
from helpers.networks import ALL, GSSDNET, WEIGHTS
from helpers.reference import REFERENCE, load_fill, needs_reference
from helpers.user import User
from mlfm_zoo.cli import main
from mlfm_zoo.data.imagenet100 import SYNSETS
from mlfm_zoo.hub.manifest import load_manifest, read_manifest
from mlfm_zoo.workflow.publish import write_manifest_entry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def user(server, tmp_path):
    return User(server, tmp_path)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The held-out digits as an image folder."""
    root = tmp_path_factory.mktemp('digits')
    _, test = load_split()
    for i, (image, label) in enumerate(zip(test.images, test.labels.tolist())):
        (root / str(label)).mkdir(exist_ok=True)
        image.save(root / str(label) / f'{i}.png')
    return root


LOGITS = '''
model = timm.create_model({name!r}, pretrained=True).eval()
image = torch.randn(1, *model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    print(json.dumps(model(image).tolist()))
'''


def assert_same_logits(actual, model):
    image = torch.randn(1, *model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(torch.tensor(actual), model.eval()(image), rtol=1e-4, atol=1e-4)


def failed(result):
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
    error = result.stderr.splitlines()[-1]
    assert error.startswith('error: '), result.stderr
    return error


def test_publish_and_load(server, user, digits, capsys):
    (user.home / 'run').mkdir()
    weights = user.home / 'run' / 'model_best.pth.tar'
    torch.save({'state_dict': load_file(WEIGHTS), 'epoch': 3}, weights)  # as timm's train.py writes it
    weights.with_name('args.yaml').write_text('epochs: 40\nopt: adamw\nlr: 0.004\n')
    options = ['--origin', 'made up for a test', '--data', digits, '--top1', '100.0']

    dry = ['publish', 'test_mlfm_resnet.mine', '--weights', weights, '--namespace', 'org', '--manifest', user.manifest]
    assert main([str(word) for word in [*dry, *options, '--dry-run']]) == 0
    printed = capsys.readouterr().out
    for text in ('model.safetensors', 'config.json', 'README.md', 'args.yaml', 'library_name: timm',
                 'made up for a test', 'top-1 | 100.00 %', 'epochs 40', 'dry run'):
        assert text in printed, text
    assert not server.requests and not user.manifest.exists()

    result = user.publish('test_mlfm_resnet.mine', weights, *options)
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    files = server.files('org/test_mlfm_resnet.mine')
    assert {'model.safetensors', 'config.json', 'README.md', 'args.yaml'} <= set(files)
    assert json.loads(files['config.json'])['architecture'] == 'test_mlfm_resnet'
    assert sum(method == 'POST' and '/commit/' in path for method, path in server.requests) == 1
    entry = read_manifest(user.manifest).checkpoints['test_mlfm_resnet', 'mine', True]
    assert entry.commit == server.repos['org/test_mlfm_resnet.mine'].main
    assert entry.size == len(files['model.safetensors']) and entry.measured == {'top-1': 100.0, 'top-5': 100.0}

    model = timm.create_model('test_mlfm_resnet', pretrained=True)
    server.clear()
    assert_same_logits(user.code(LOGITS.format(name='test_mlfm_resnet.mine')), model)
    assert server.requests
    assert_same_logits(user.code(LOGITS.format(name='hf-hub:org/test_mlfm_resnet.mine')), model)

    blob = next(p for p in user.home.rglob('blobs/*') if p.stat().st_size == entry.size)
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(damaged)
    assert 'differ from the manifest' in failed(user.command('verify'))
    assert user.command('download', 'test_mlfm_resnet.mine').returncode == 1 and not blob.exists()


def test_refusals(server, user, digits, capsys):
    def run(name, weights, *options):
        command = ['publish', name, '--weights', weights, '--namespace', 'org', '--manifest', user.manifest, *options]
        assert main([str(word) for word in command]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    def publish(name='test_mlfm_resnet.mine', weights=WEIGHTS, *options):
        return run(name, weights, '--origin', 'a test', *options)

    assert 'no name for weights' in publish('test_mlfm_resnet')
    assert 'no name for weights' in publish('resnet18.mine')
    assert 'no checkpoint at' in publish(weights='none.pth')
    assert 'not the 99.00 % given' in publish('test_mlfm_resnet.mine', WEIGHTS, '--data', digits, '--top1', '99')
    assert 'no data to reproduce' in publish('test_mlfm_resnet.mine', WEIGHTS, '--top1', '99')
    assert 'do not fit' in publish('test_mlfm_resnet.mine', WEIGHTS, '--model-kwargs', 'memory_update=cat')
    assert "license is '', expected a line of text" in publish('test_mlfm_resnet.mine', WEIGHTS, '--license', '')
    for option in ((), ('--dry-run',)):
        assert r"origin is 'two\nlines', expected a line" in run(
            'test_mlfm_resnet.mine', WEIGHTS, '--origin', 'two\nlines', *option)
    assert 'does not know' in run('test_mlfm_resnet.mine', WEIGHTS)
    (user.home / 'broken.yaml').write_text('version: 2')
    assert 'must hold "version" and "checkpoints"' in publish(
        'test_mlfm_resnet.mine', WEIGHTS, '--manifest', user.home / 'broken.yaml')
    assert not server.requests and not user.manifest.exists()
    user.token = 'hf_wrong'
    assert 'hf auth login' in failed(user.publish('test_mlfm_resnet.mine', WEIGHTS, '--origin', 'a test'))
    assert not user.manifest.exists()


def test_publishing_again_finishes_the_work(server, user):
    """After an upload that broke off, and after one that was stopped before the manifest was written."""
    server.cut_uploads = True
    assert 'was not published' in failed(user.publish('test_mlfm_resnet.mine', WEIGHTS, '--origin', 'a test'))
    assert not user.manifest.exists()
    assert 'model.safetensors' not in server.files('org/test_mlfm_resnet.mine')
    server.cut_uploads = False
    entries = []
    for _ in range(2):
        result = user.publish('test_mlfm_resnet.mine', WEIGHTS, '--origin', 'a test')
        assert result.returncode == 0, result.stderr
        entries.append(user.manifest.read_text())
        user.manifest.unlink()
    assert entries[0] == entries[1]
    published = load(server.files('org/test_mlfm_resnet.mine')['model.safetensors'])
    assert published.keys() == (weights := load_file(WEIGHTS)).keys()
    assert all(torch.equal(published[k], v) for k, v in weights.items())


def test_manifest_is_kept_around_a_new_entry(tmp_path):
    file = tmp_path / 'manifest.yaml'
    known = load_manifest()['test_mlfm_resnet', 'digits', True]
    for tag in ('a', 'b', 'a'):
        write_manifest_entry(dataclasses.replace(known, tag=tag), file)
        file.write_text(file.read_text().replace('  - model', '  # kept\n  - model', 1))
    assert list(read_manifest(file).checkpoints) == [('test_mlfm_resnet', 'a', True), ('test_mlfm_resnet', 'b', True)]
    assert file.read_text().count('# kept') == 3


def test_timms_own_hub_functions(server, user):
    repo = user.code('''
model = timm.create_model('test_mlfm_resnet', pretrained=True)
timm.models.push_to_hf_hub(model, 'org/pushed', safe_serialization=True)
cfg, name, args = timm.models.load_model_config_from_hf('org/pushed')
again = timm.create_model('hf-hub:org/pushed', pretrained=True)
same = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
print(json.dumps([name, cfg['num_classes'], same]))
''')
    assert repo == ['test_mlfm_resnet', 10, True]


@needs_reference
def test_authors_checkpoint(server, user):
    """Convert, publish, load by the plain name: the authors' outputs and their 27 of 50 photos."""
    checkpoint = REFERENCE / 'authors' / 'mobilenetv2_0.1_mlfm.pth.tar'
    assert user.command('convert', checkpoint, '--output', 'converted').returncode == 0
    result = user.publish('mlfm_mobilenetv2_010.paper_in100', user.home / 'converted' / 'model.safetensors')
    assert result.returncode == 0, result.stderr
    entry = read_manifest(user.manifest).checkpoints['mlfm_mobilenetv2_010', 'paper_in100', True]
    assert entry.kind == 'paper' and entry.places == ('hub', 'authors')
    assert entry.source_blob == 'a4b96fee3a10beb0fbea1ed47834bdd1375303d8'
    config = json.loads(server.files('org/mlfm_mobilenetv2_010.paper_in100')['config.json'])
    assert config['label_names'] == list(SYNSETS)
    assert config['label_descriptions']['n01440764'].startswith('tench')

    save_file({'image': torch.from_numpy(load_fill().image('input', (2, 3, 224, 224)))},
              user.home / 'image.safetensors')
    logits = torch.tensor(user.code('''
from safetensors.torch import load_file
model = timm.create_model('mlfm_mobilenetv2_010', pretrained=True).eval()
with torch.inference_mode():
    print(json.dumps(model(load_file('image.safetensors')['image']).tolist()))
'''))
    golden = load_file(REFERENCE / 'golden' / 'mobilenetv2_0.1_mlfm_authors_224.safetensors')['logits']
    assert (logits - golden).abs().max() / golden.abs().max() < 1e-4
    photos = REFERENCE / 'imagenet100_samples' / 'val'
    evaluated = user.command('evaluate', 'mlfm_mobilenetv2_010', photos, '--imagenet100', '--img-size', '224')
    assert 'top-1: 27 of 50' in evaluated.stdout and 'top-5: 44 of 50' in evaluated.stdout


@pytest.mark.slow
@needs_reference
def test_republish_the_authors_own_in_one_command(server, user, tmp_path, monkeypatch):
    """Fetched, verified, converted, published with its provenance, and loaded by the same name from the Hub."""
    known = load_manifest()['mlfm_mobilenetv2_010', 'paper_in100', True]
    source = tmp_path / 'clone' / known.source_path
    source.parent.mkdir(parents=True)
    shutil.copy(REFERENCE / 'authors' / 'mobilenetv2_0.1_mlfm.pth.tar', source)
    monkeypatch.setenv('MLFM_ZOO_PAPER_MIRROR', str(tmp_path / 'clone'))
    publish = ['publish', known.name, '--namespace', 'org', '--manifest', user.manifest]
    assert 'Nothing was uploaded' in user.command(*publish, '--dry-run').stdout
    result = user.command(*publish)
    assert result.returncode == 0, result.stderr
    entry = read_manifest(user.manifest).checkpoints[known.key]
    assert entry.places == ('hub', 'authors') and entry.commit and entry.sha256
    assert (entry.source_blob, entry.origin, entry.reported) == (known.source_blob, known.origin, known.reported)
    card = server.files(f'org/{known.name}')['README.md'].decode()
    for text in (
        known.source_blob, known.source_commit, 'Fuzhi Wu', 'license: apache-2.0', '62.86 % | the authors, not',
    ):
        assert text in card, text
    source.unlink()
    server.clear()
    shutil.rmtree(next(user.home.rglob('assets')))
    [update, cfg] = user.code('\n'.join([
        'model = timm.create_model("mlfm_mobilenetv2_010", pretrained=True)',
        'print(json.dumps([model.memory.stem.update, model.pretrained_cfg["hf_hub_id"]]))']))
    assert update == 'cat' and cfg == f'org/{known.name}@{entry.commit}' and server.requests
    for name in ('mlfm_resnet18.mine', 'mlfm_resnet18.a1_in1k'):
        message = failed(user.command('publish', name, '--namespace', 'org'))
        assert 'is not available from its authors: give a file' in message


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL + GSSDNET)
def test_round_trip_of_every_network(server, user, name):
    """Publish, load from an empty cache, offline, after damage in the cache, and after another revision."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    save_file(model.state_dict(), user.home / 'weights.safetensors')
    result = user.publish(f'{name}.in100', user.home / 'weights.safetensors', '--origin', 'untrained, for a test')
    assert result.returncode == 0, result.stderr
    (user.home / 'weights.safetensors').unlink()
    server.clear()
    assert_same_logits(user.code(LOGITS.format(name=name)), model)
    assert server.requests
    server.clear()
    assert_same_logits(user.code(LOGITS.format(name=name), offline=True), model)
    assert not server.requests
    if name == 'mlfm_resnet50':
        assert_same_logits(user.code(LOGITS.format(name='hf-hub:org/mlfm_resnet50.in100')), model)
    size = read_manifest(user.manifest).checkpoints[name, 'in100', True].size
    blob = next(p for p in user.home.rglob('blobs/*') if p.stat().st_size == size)
    with open(blob, 'r+b') as f:
        f.seek(-1, os.SEEK_END)
        last = f.read(1)[0]
        f.seek(-1, os.SEEK_END)
        f.write(bytes([last ^ 1]))
    damaged = user.command('download', name)
    assert 'SHA-256' in failed(damaged) and not blob.exists()
    server.commit(f'org/{name}.in100', {'model.safetensors': b'another revision'})
    assert_same_logits(user.code(LOGITS.format(name=name)), model)
