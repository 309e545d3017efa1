"""Publishing to a Hub on loopback through the command line, and loading what was published."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load, load_file, save_file

from digits import write_digits
from helpers.disks import full_disk
from helpers.hub_server import TOKEN, HubServer, point_client_at
from helpers.networks import SMALL, SMALL_GSSDNET, WEIGHTS
from helpers.reference import REFERENCE, load_fill, needs_reference
from helpers.runs import write_run
from helpers.user import User
from mlfm_zoo.data.imagenet100 import NUM_IMAGES, SYNSETS
from mlfm_zoo.hub.manifest import load_manifest, own_checkpoints, read_manifest
from mlfm_zoo.workflow.publish import write_manifest_entry

NAME = 'test_mlfm_resnet.mine'
REPO = f'org/{NAME}'
DIGITS = own_checkpoints()['test_mlfm_resnet', 'digits', True]


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub that this process talks to, a manifest of its own and an empty cache."""
    with HubServer() as server:
        point_client_at(monkeypatch, server.endpoint)
        write_manifest_entry(DIGITS, tmp_path / 'manifest.yaml')
        monkeypatch.setenv('MLFM_ZOO_MANIFEST', str(tmp_path / 'manifest.yaml'))
        for name in ('HF_HUB_CACHE', 'HF_ASSETS_CACHE'):
            monkeypatch.setattr(constants, name, str(tmp_path / name))
        yield server


@pytest.fixture
def manifest(tmp_path):
    """What was published into the manifest."""
    def published():
        checkpoints = read_manifest(tmp_path / 'manifest.yaml').checkpoints
        del checkpoints[DIGITS.key]
        return checkpoints
    return published


def publish(*options, name=NAME, weights=WEIGHTS, origin='a test'):
    """The command that publishes weights."""
    return ['publish', name, '--weights', weights, '--namespace', 'org', '--origin', origin, *options]


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """Sixty of the held-out digits as an image folder."""
    return write_digits(tmp_path_factory.mktemp('digits'), 1, 60) / 'val'


def test_publish_and_load(server, manifest, run, fail, digits, tmp_path):
    (tmp_path / 'run').mkdir()
    weights = tmp_path / 'run' / 'model_best.pth.tar'
    torch.save({'state_dict': load_file(WEIGHTS), 'epoch': 3}, weights)  # as timm's train.py writes it
    weights.with_name('args.yaml').write_text('epochs: 40\nopt: adamw\nlr: 0.004\n')
    command = publish('--data', digits, '--top1', '100.0', weights=weights, origin='made up for a test')

    printed = run(*command, '--dry-run')
    for text in ('model.safetensors', 'config.json', 'README.md', 'args.yaml', 'library_name: timm',
                 'made up for a test', 'top-1 on 60 images | 100.00 %', 'epochs 40', 'dry run'):
        assert text in printed, text
    assert not server.requests and not manifest()

    assert TOKEN not in run(*command)
    files = server.files(REPO)
    assert {'model.safetensors', 'config.json', 'README.md', 'args.yaml'} <= set(files)
    assert json.loads(files['config.json'])['architecture'] == 'test_mlfm_resnet'
    assert sum(method == 'POST' and '/commit/' in path for method, path in server.requests) == 1
    entry = manifest()['test_mlfm_resnet', 'mine', True]
    assert entry.commit == server.repos[REPO].main
    assert entry.size == len(files['model.safetensors'])
    assert entry.measured == {'top-1 of 60 images': 100.0, 'top-5 of 60 images': 100.0}

    image, expected = torch.randn(1, 3, 64, 64), timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    published = timm.create_model(f'hf-hub:{REPO}', pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(published(image), expected(image))
    path = Path(run('download', NAME).strip())
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert 'differ from the manifest' in fail('verify', NAME)
    assert 'SHA-256' in fail('download', NAME) and not path.exists()


def test_refusals(server, manifest, fail, digits, tmp_path, monkeypatch):
    broken, foreign = tmp_path / 'broken.yaml', tmp_path / 'foreign.yaml'
    broken.write_text('version: 2')
    foreign.write_text('version: 2\ncheckpoints: []\n')  # not in the form that the program extends
    for command, expected in (
        (publish(name='test_mlfm_resnet'), 'no name for weights'), (publish(name='resnet18.x'), 'no name for weights'),
        (publish(weights='none.pth'), 'no checkpoint at'),
        (publish('--data', digits, '--top1', '99'), 'not the 99.00 % given'),
        (publish('--top1', '99'), 'no data to reproduce'),
        (publish('--model-kwargs', 'memory_update=cat'), 'do not fit'),
        (publish('--model-kwargs', 'layers=(1,)'), 'ZeroDivisionError'),
        (publish('--license', ''), "license is '', expected a line of text"),
        (publish(origin='two\nlines'), r"origin is 'two\nlines', expected a line"),
        (publish('--dry-run', origin='\x1b[31m'), r"origin is '\x1b[31m', expected a line"),
        (publish('--namespace', 'a--b'), 'a--b'),
        (publish('--manifest', broken), 'must hold "version" and "checkpoints"'),
        (publish('--manifest', foreign), 'is not valid YAML'),
        (publish('--manifest', tmp_path / 'nowhere' / 'a.yaml'), 'cannot be written'),
        (publish()[:-2], 'does not know'), (['publish', '--namespace', 'org'], 'Give one of'),
        (publish('--authors'), 'Give one of'), (['publish', *publish('--authors')[2:]], 'leave them out'),
        (['publish', '--all', tmp_path, '--namespace', 'org'], '--all and --tag go together'),
        (['publish', 'mlfm_resnet18.a1_in1k', '--namespace', 'org'], 'is not available from its authors'),
    ):
        assert expected in (error := fail(*command)), error
    assert not server.requests and not manifest()
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    error = fail(*publish())
    assert 'hf auth login' in error and 'hf_wrong' not in error and not manifest()


def test_full_disk(server, manifest, run, fail, tmp_path):
    """Before the upload nothing is left; after it, the same command finishes the work."""
    for limit in (0, 300_000):
        with full_disk(limit):
            assert 'File too large' in fail(*publish())
    assert not server.requests and not manifest()
    file = tmp_path / 'manifest.yaml'
    text = file.read_text() + '# a long comment\n' * 30_000
    file.write_text(text)
    with full_disk(400_000):
        assert 'cannot be read or written (File too large)' in fail(*publish())
    assert not server.requests and file.read_text() == text
    assert not [*tmp_path.glob('.unfinished-*')]
    run(*publish())
    assert [*manifest()] == [('test_mlfm_resnet', 'mine', True)]


def test_publishing_again_finishes_the_work(server, manifest, run, fail, tmp_path):
    """After an upload that broke off, and after one that was stopped before the manifest was written."""
    server.cut_uploads = True
    assert 'was not published' in fail(*publish())
    assert not manifest() and 'model.safetensors' not in server.files(REPO)
    server.cut_uploads = False
    empty, entries = (tmp_path / 'manifest.yaml').read_text(), []
    for _ in range(2):
        run(*publish())
        entries.append(manifest())
        (tmp_path / 'manifest.yaml').write_text(empty)
    assert entries[0] == entries[1]
    published = load(server.files(REPO)['model.safetensors'])
    assert published.keys() == (weights := load_file(WEIGHTS)).keys()
    assert all(torch.equal(published[k], v) for k, v in weights.items())


def test_all_runs_of_a_folder(server, manifest, run, fail, digits, tmp_path):
    """The finished runs with memory, one a network, verified, evaluated and resumed; what is left out is said."""
    weights = load_file(WEIGHTS)
    runs = tmp_path / 'runs'
    for seed in (2, 1):
        write_run(runs / f'memory{seed}', [99.8, 100.0], seed=seed, weights=lambda m: m.load_state_dict(weights))
    write_run(runs / 'baseline', [60.0, 70.0], model_kwargs={'memory': False})
    write_run(runs / 'other', [1.0, 2.0], model_kwargs={'memory_update': 'cat'})
    write_run(runs / 'unfinished', [1.0, 2.0], epochs=3)
    other = 'mlfm_mobilenetv2_010'
    write_run(runs / 'wrong', [1.0, 99.0], model=other, crop_pct=0.5)
    command = ['publish', '--all', runs, '--namespace', 'org', '--tag', 'digits_seen', '--data', digits]
    error = fail(*command, '--dry-run')
    assert f'1 of 2 were not published, {other}.digits_seen' in error and not server.requests and not manifest()
    fail(*command)
    [entry] = manifest().values()
    assert entry.name == 'test_mlfm_resnet.digits_seen' and entry.kind == 'trained'
    assert entry.measured == {'top-1 of 60 images': 100.0, 'top-5 of 60 images': 100.0}
    assert 'seed 1, epoch 2 of 2' in entry.origin
    shutil.rmtree(runs / 'wrong')
    server.clear()
    printed = run(*command)
    for text in ('unfinished is not finished', 'other has arguments of its own', 'digits_seen is published already',
                 '0 were published'):
        assert text in printed, printed
    assert not server.requests


def test_figure_of_a_part_of_imagenet100(server, manifest, run, tmp_path, monkeypatch):
    """The accuracy on a hundred images is not ImageNet100's, unless these are all of its validation images."""
    torch.save(timm.create_model('test_mlfm_resnet', num_classes=100).state_dict(), tmp_path / 'weights.pth')
    for i, wnid in enumerate(SYNSETS):
        (tmp_path / 'val' / wnid).mkdir(parents=True)
        Image.new('RGB', (32, 32), (2 * i, 0, 0)).save(tmp_path / 'val' / wnid / '0.png')
    name = 'test_mlfm_resnet.in100'
    command = publish('--data', tmp_path / 'val', name=name, weights=tmp_path / 'weights.pth')
    run(*command)
    assert set(manifest()['test_mlfm_resnet', 'in100', True].measured) == {
        f'top-{k} of 100 images of ImageNet100 (ambityga/imagenet100)' for k in (1, 5)}
    monkeypatch.setitem(NUM_IMAGES, 'val', 1)
    run(*command)
    assert set(manifest()['test_mlfm_resnet', 'in100', True].measured) == {'top-1', 'top-5'}


def test_manifest_is_kept_around_a_new_entry(tmp_path):
    file = tmp_path / 'manifest.yaml'
    for tag in ('a', 'b', 'a'):
        write_manifest_entry(dataclasses.replace(DIGITS, tag=tag), file)
        file.write_text(file.read_text().replace('  - model', '  # kept\n  - model', 1))
    assert list(read_manifest(file).checkpoints) == [('test_mlfm_resnet', 'a', True), ('test_mlfm_resnet', 'b', True)]
    assert file.read_text().count('# kept') == 3
    tags = [f'tag{i}' for i in range(8)]  # at once, none of which may be lost
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tag: write_manifest_entry(dataclasses.replace(DIGITS, tag=tag), file), tags))
    assert {tag for _, tag, _ in read_manifest(file).checkpoints} == {'a', 'b', *tags}


def test_timms_own_hub_functions(server):
    model = timm.create_model('test_mlfm_resnet', pretrained=True)
    timm.models.push_to_hf_hub(model, 'org/pushed', safe_serialization=True)
    cfg, name, _ = timm.models.load_model_config_from_hf('org/pushed')
    assert (name, cfg['num_classes']) == ('test_mlfm_resnet', 10)
    again = timm.create_model('hf-hub:org/pushed', pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@needs_reference
def test_the_authors_own(server, manifest, run, fail, tmp_path, monkeypatch):
    """Fetched, verified, converted, published with their provenance, resumed, and loaded with the source gone."""
    known = load_manifest()['mlfm_mobilenetv2_010', 'paper_in100', True]
    source = tmp_path / 'clone' / known.source_path
    source.parent.mkdir(parents=True)
    shutil.copy(REFERENCE / 'authors' / 'mobilenetv2_0.1_mlfm.pth.tar', source)
    monkeypatch.setenv('MLFM_ZOO_PAPER_MIRROR', str(tmp_path / 'clone'))
    command = ['publish', '--authors', '--namespace', 'org']
    assert '4 of 5 were not published' in fail(*command, '--dry-run') and not server.requests
    assert '4 of 5 were not published' in fail(*command)  # whose files are not here
    entry = manifest()[known.key]
    assert entry.places == ('hub', 'authors') and entry.commit and entry.sha256
    assert (entry.source_blob, entry.origin, entry.reported) == (known.source_blob, known.origin, known.reported)
    files = server.files(f'org/{known.name}')
    card = files['README.md'].decode()
    for text in (
        known.source_blob, known.source_commit, 'Fuzhi Wu', 'license: apache-2.0', "62.86 % | the authors' README, not",
    ):
        assert text in card, text
    config = json.loads(files['config.json'])
    assert config['label_names'] == list(SYNSETS)
    assert config['label_descriptions']['n01440764'].startswith('tench')
    assert '4 of 4 were not published' in fail(*command)

    shutil.rmtree(tmp_path / 'clone')
    shutil.rmtree(tmp_path / 'HF_ASSETS_CACHE')
    server.clear()
    model = timm.create_model('mlfm_mobilenetv2_010', pretrained=True, cache_dir=str(tmp_path / 'empty')).eval()
    image = torch.from_numpy(load_fill().image('input', (2, 3, 224, 224)))
    golden = load_file(REFERENCE / 'golden' / 'mobilenetv2_0.1_mlfm_authors_224.safetensors')['logits']
    with torch.inference_mode():
        assert (model(image) - golden).abs().max() / golden.abs().max() < 1e-4
    assert server.requests


@pytest.mark.slow
def test_round_trip_of_each_kind_of_network(server, run, tmp_path):
    """Loaded by name in another process, from an empty cache."""
    user = User(server, tmp_path)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for name, kwargs in {**SMALL, **SMALL_GSSDNET}.items():
        torch.manual_seed(0)
        model = timm.create_model(name, **kwargs).eval()
        save_file(model.state_dict(), tmp_path / 'weights.safetensors')
        options = ['--model-kwargs', *(f'{k}={v}' for k, v in kwargs.items())]
        run(*publish(*options, name=f'{name}.in100', weights=tmp_path / 'weights.safetensors'))
        logits = user.code(f'''
image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    print(json.dumps(timm.create_model({name!r}, pretrained=True, **{kwargs!r}).eval()(image).tolist()))
''')
        with torch.inference_mode():
            torch.testing.assert_close(torch.tensor(logits), model(image), rtol=1e-4, atol=1e-4)
