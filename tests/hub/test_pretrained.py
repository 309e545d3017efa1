"""Pretrained weights through timm: the embedded model, the Hub's, and files that are not what they should be."""

import hashlib
import json
import logging

import pytest
import timm
import torch
from safetensors.torch import load_file, save, save_file
from timm.data import ImageNetInfo

from digits import load_split, to_batch
from helpers.hub_server import HubServer, point_client_at
from helpers.networks import WEIGHTS, lived_in
from helpers.user import User
from mlfm_zoo.data.imagenet100 import SYNSETS
from mlfm_zoo.dct import to_dct
from mlfm_zoo.models._network import image_convs


def test_embedded_model_classifies_held_out_digits():
    model = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    _, test = load_split()
    with torch.inference_mode():
        assert (model(to_batch(test.images, model)).argmax(1) == test.labels).float().mean() >= 0.97


@pytest.mark.parametrize('in_chans', [1, 4, 8])
def test_every_conv_that_sees_the_image_adapts(in_chans, caplog):
    weights = load_file(WEIGHTS)
    with caplog.at_level(logging.WARNING):
        model = timm.create_model('test_mlfm_resnet', pretrained=True, in_chans=in_chans)
    assert not caplog.records
    convs = image_convs(model)
    seen = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels == in_chans]
    assert set(convs) == {n for n in seen if weights[f'{n}.weight'].shape[1] == 3}
    assert len(convs) == 1 + 1 + sum('supplement_gate.conv' in n for n in seen)
    for name in convs:
        expected = timm.models.adapt_input_conv(in_chans, weights[f'{name}.weight'])
        torch.testing.assert_close(model.get_submodule(name).weight, expected)
    if in_chans == 1:  # a gray image is one whose three channels are equal
        three = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
        gray = torch.randn(4, 1, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(model.eval()(gray), three(gray.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-3)


def create_from(file, **kwargs):
    overlay = dict(file=str(file), num_classes=10)
    return timm.create_model('test_mlfm_resnet', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


@pytest.mark.parametrize('kwargs, sentence', [
    (dict(memory_update='cat'), 'the file has memory.* of shape'),
    (dict(memory_supplement='none'), 'has memory.*, which the model lacks'),
    (dict(memory=False), 'has memory.*, which the model lacks'),
])
def test_weights_of_another_memory(kwargs, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        create_from(WEIGHTS, **kwargs)


def test_other_files(tmp_path):
    weights = load_file(WEIGHTS)
    weights['layer2.0.bn1.running_var'][3] = torch.nan
    (tmp_path / 'config.json').write_text('{"architecture": "test_mlfm_resnet", "num_classes": 10}')
    for content, sentence in (
        (WEIGHTS.read_bytes()[:200_000], 'is damaged'), (b'', 'is damaged'),
        (save(timm.create_model('test_resnet', num_classes=10).state_dict()), 'the file .* weights of this network'),
        (save(weights), 'values in layer2.0.bn1.running_var that are not finite'),
    ):
        (tmp_path / 'model.safetensors').write_bytes(content)
        with pytest.raises(RuntimeError, match=sentence) as error:
            create_from(tmp_path / 'model.safetensors')
        assert '\n' not in str(error.value)
    with pytest.raises(RuntimeError, match='not finite'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True)


def test_configs_without_a_classifier(tmp_path):
    """timm takes a config that says nothing but where the weights are."""
    for cfg in (dict(file=str(WEIGHTS), num_classes=10), dict(state_dict=load_file(WEIGHTS), num_classes=10)):
        timm.create_model('test_mlfm_resnet', pretrained=True, pretrained_cfg=cfg)
    (tmp_path / 'model.safetensors').write_bytes(WEIGHTS.read_bytes())
    (tmp_path / 'config.json').write_text('{"architecture": "test_mlfm_resnet", "num_classes": 10}')
    timm.create_model(f'local-dir:{tmp_path}', pretrained=True)


@pytest.fixture
def folder(tmp_path):
    """A function that saves the embedded network with entries of config.json and tensors changed."""
    def save_changed(config=(), lost='', **model_args):
        model = timm.create_model('test_mlfm_resnet', pretrained=True)
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        written = json.loads((tmp_path / 'config.json').read_text())
        written.update(config)
        written['pretrained_cfg'].update(dict(config).get('cfg', {}))
        written['model_args'].update(model_args)
        (tmp_path / 'config.json').write_text(json.dumps(written))
        if lost:
            weights = load_file(tmp_path / 'model.safetensors')
            save_file({k: v for k, v in weights.items() if not k.startswith(lost)}, tmp_path / 'model.safetensors')
        return f'local-dir:{tmp_path}'
    return save_changed


@pytest.mark.parametrize('steering', [
    dict(pretrained_strict=False), dict(kwargs_filter=['memory_update']), dict(features_only=True), dict(pruned=True),
    dict(pretrained_filter_fn='x'), dict(imagenet100_head=True), dict(num_classes=10, config={'num_classes': 1000}),
    dict(config={'cfg': {'classifier': 'layer1'}}), dict(config={'cfg': {'custom_load': True, 'file': '/none'}}),
])
def test_a_config_steers_no_loader(folder, steering):
    """What config.json says of the loader changes nothing: the whole network is loaded, or nothing."""
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        loaded = timm.create_model(folder(**steering), pretrained=True).eval()
        assert torch.equal(loaded(image), timm.create_model('test_mlfm_resnet', pretrained=True).eval()(image))
    for num_classes in ({}, {'num_classes': 10}, {'num_classes': 7}):
        with pytest.raises(RuntimeError, match='do not fit test_mlfm_resnet: the file lacks layer1.0.conv1.weight'):
            timm.create_model(folder(lost='layer1.', **steering), pretrained=True, **num_classes)


def test_the_caller_steers_the_loader(folder):
    name = folder(lost='layer1.', pretrained_strict=True)
    weights = load_file(WEIGHTS)
    model = timm.create_model(name, pretrained=True, pretrained_strict=False)
    assert torch.equal(model.state_dict()['layer2.0.conv1.weight'], weights['layer2.0.conv1.weight'])


def test_a_classifier_that_fits_is_loaded(folder):
    """timm leaves it out where the config gives another number of classes, which here is wrong."""
    bias = load_file(WEIGHTS)['fc.bias']
    model = timm.create_model(folder({'num_classes': 1000}), pretrained=True, num_classes=10)
    assert torch.equal(model.fc.bias, bias) and model.pretrained_cfg['num_classes'] == 10
    overlay = dict(file=str(WEIGHTS))
    assert timm.create_model(folder(), pretrained=True, num_classes=7).fc.bias.shape == (7,)
    model = timm.create_model('test_mlfm_resnet', pretrained=True, num_classes=10, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.fc.bias, bias)


def test_checkpoint_path(tmp_path):
    """Weights that timm loads into the finished model: right ones, other ones, and the authors'."""
    timm.create_model('test_mlfm_resnet', checkpoint_path=str(WEIGHTS))
    with pytest.raises(RuntimeError, match='do not fit test_mlfm_resnet: the file has memory'):
        timm.create_model('test_mlfm_resnet', memory_update='cat', checkpoint_path=str(WEIGHTS))
    save_file({'wavelet_conv.convinput.weight': torch.zeros(4, 3, 1, 1)}, tmp_path / 'authors.safetensors')
    with pytest.raises(RuntimeError, match='mlfm-zoo convert'):
        timm.create_model('mlfm_mobilenetv2_010', checkpoint_path=str(tmp_path / 'authors.safetensors'))


def test_weights_of_a_manifest_of_ones_own(tmp_path):
    """Tags of the second manifest: weights, the default of a network, and a warm start that timm knows nothing of."""
    torch.manual_seed(0)
    with HubServer() as server:
        user, entries = User(server, tmp_path), []
        for tag in ('mine', 'digits', 'trunk'):
            model = timm.create_model('test_mlfm_resnet', num_classes=10, memory=tag != 'trunk')
            content = save(lived_in(model).state_dict())
            commit = server.add_repo(f'org/{tag}', {'model.safetensors': content, 'config.json': b'{}'})
            entry = dict(model='test_mlfm_resnet', tag=tag, kind='trained', places=['hub'], repo=f'org/{tag}',
                         commit=commit, file='model.safetensors', sha256=hashlib.sha256(content).hexdigest(),
                         size=len(content), num_classes=10, input_size=[3, 64, 64], license='mit', origin='a test')
            entries.append(entry | (dict(kind='warm_start', commit=None, sha256=None) if tag == 'trunk' else {}))
            (tmp_path / f'{tag}.safetensors').write_bytes(content)
        user.manifest.write_text(json.dumps({'version': 2, 'checkpoints': entries}))
        result = user.code('''
from safetensors.torch import load_file
image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
def create(tag, **kwargs):
    return timm.create_model(f'test_mlfm_resnet{tag}', pretrained=True, **kwargs).eval()
def same(model, tag):
    given = load_file(f'{tag}.safetensors')
    return all(torch.equal(v, given[k]) for k, v in model.state_dict().items() if not k.startswith('fc.'))
mine, five = create('.mine'), create('.mine', num_classes=5, pretrained_cfg_overlay={'crop_pct': 0.5})
warm, trunk = create('.trunk'), create('.trunk', memory=False)
with torch.inference_mode():
    print(json.dumps(dict(
        same=[same(mine, 'mine'), same(five, 'mine'), same(create(''), 'digits'), same(trunk, 'trunk')],
        five=list(five(image).shape), crop=five.pretrained_cfg['crop_pct'],
        warm=(warm(image) - trunk(image)).abs().max().item(), cfg=mine.pretrained_cfg)))
''')
    assert result['same'] == [True] * 4 and result['five'] == [2, 5] and result['crop'] == 0.5 and result['warm'] < 1e-5
    cfg = result['cfg']
    assert cfg.get('file') is None and cfg['hf_hub_id'] == f'org/mine@{entries[0]["commit"]}'
    assert (cfg['hf_hub_filename'], cfg['tag'], cfg['num_classes']) == ('model.safetensors', 'mine', 10)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that gets timm's repositories by their names, each with a network of new weights."""
    with HubServer() as server:
        point_client_at(monkeypatch, server.endpoint)

        def add(name):
            torch.manual_seed(0)
            timm.models.save_for_hf(lived_in(timm.create_model(name)), tmp_path / name, safe_serialization=True)
            server.add_repo(f'timm/{name}', {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
            return lambda name, **kwargs: timm.create_model(
                name, pretrained=True, cache_dir=str(tmp_path / 'cache'), **kwargs).eval()
        yield add


def assert_close(actual, expected):
    assert actual.shape == expected.shape and (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize('name', [
    'mobilenetv2_050.lamb_in1k', *(pytest.param(name, marks=pytest.mark.slow) for name in (
        'resnet18.a1_in1k', 'regnetx_002.pycls_in1k', 'convnext_tiny.fb_in1k', 'inception_next_tiny.sail_in1k'))])
@torch.inference_mode()
def test_warm_start(hub, name):
    create = hub(name)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs, ours = create(name), create(f'mlfm_{name}')
    logits = theirs(image)
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max()  # the images do matter
    assert len(list(ours.memory.parameters())) and ours.pretrained_cfg.get('file') is None
    for key in ('hf_hub_id', 'mean', 'crop_pct'):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key]
    assert_close(ours(image), logits)
    assert_close(create(f'mlfm_{name}', in_chans=1)(image[:, :1]), theirs(image[:, :1].repeat(1, 3, 1, 1)))
    head = create(f'mlfm_{name}', imagenet100_head=True)
    rows = [sorted(ImageNetInfo('imagenet-1k').label_names()).index(synset) for synset in sorted(SYNSETS)]
    assert_close(head(image), logits[:, rows])
    assert head.num_classes == head.pretrained_cfg['num_classes'] == 100
    ten = create(f'mlfm_{name}', num_classes=10)
    assert ten(image).shape == (2, 10) and torch.equal(ten.forward_features(image), ours.forward_features(image))


@pytest.mark.parametrize('name, trunk', [
    ('dct_resnet50_24s', 'resnet50.tv_in1k'), ('dct_resnet50_ycbcr', 'resnet50.tv_in1k'),
    ('dct_mobilenetv2_100_192_gate', 'mobilenetv2_100.ra_in1k')])
def test_initialisation(hub, name, trunk):
    """What a network on DCT coefficients starts from is what `to_dct` makes of timm's pretrained network."""
    create = hub(trunk)
    channels, gate = name.removesuffix('_gate').split('_')[-1], name.endswith('_gate')
    full_name = f'{name}.init_{trunk.split(".")[1]}'
    ours, ten, theirs = create(full_name), create(full_name, num_classes=10), create(trunk)
    if channels != 'ycbcr':
        theirs = to_dct(theirs, channels, gate=gate)
    given = theirs.state_dict()
    new = {'blocks.0.0.conv_dw.weight', 'conv_stem.1.conv1.weight', 'conv_stem.1.conv2.weight'} if gate else set()
    assert {k for k, v in ours.state_dict().items() if not torch.equal(v, given[k])} == new
    assert given.keys() == ours.state_dict().keys() and ours.default_cfg['tag'].startswith('init_')
    assert all(k.startswith(('fc.', 'classifier.')) for k, v in ten.state_dict().items() if v.shape != given[k].shape)


@pytest.mark.parametrize('name, kwargs', [
    ('mlfm_resnet50', {}), ('mlfm_resnet50.a1_in1k', {}), ('test_mlfm_resnet', {'pretrained': True})])
def test_imagenet100_head_needs_a_warm_start(name, kwargs):
    with pytest.raises(ValueError, match='imagenet100_head cuts the classifier of a warm start'):
        timm.create_model(name, imagenet100_head=True, **kwargs)
