"""What all segmentation networks share: memory, sizes, padding, saving, fusing and export."""

import copy
import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from helpers.hub_server import HubServer
from helpers.networks import lived_in
from helpers.segmentation import KINDS, create
from helpers.user import User
from mlfm_zoo.memory import LowFrequencyMemory
from mlfm_zoo.segmentation import SegmentationNetwork, create_model, segmentation_loss
from mlfm_zoo.workflow.export import write_graph


@pytest.mark.parametrize('kind', KINDS)
def test_memory_at_identity_changes_nothing(kind):
    name, encoder, options = KINDS[kind]
    options = {k: v for k, v in options.items() if not k.startswith('memory_')}
    plain = lived_in(create_model(name, encoder, num_classes=5, **dict(options, memory=False)))
    model = create(kind).eval()
    trunk = {k: v for k, v in model.state_dict().items() if 'memory.' not in k}
    weights = plain.state_dict()
    assert len(trunk) == len(weights) < len(model.state_dict())
    for value, expected in zip(trunk.values(), weights.values()):  # names of an attached trunk are one level deeper
        value.copy_(expected)
    image = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        expected = plain(image)
        assert not torch.allclose(model(image), expected, atol=1e-3) or 'attached' in kind
        model.init_identity()
        assert (model(image) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize('kind', KINDS)
def test_training_outputs_and_gradients(kind):
    """Logits, those of an auxiliary head too if there is one, and gradients that reach the whole memory."""
    model = create(kind)
    for parameter in (p for n, p in model.named_parameters() if n.startswith('skips.')):
        torch.nn.init.normal_(parameter)
    labels = torch.randint(5, (3, 70, 66))
    labels[:, :5] = 255
    output = model(torch.randn(3, 3, 70, 66))
    assert isinstance(output, tuple) == bool(KINDS[kind][2].get('aux'))
    assert all(x.shape == (3, 5, 70, 66) for x in (output if isinstance(output, tuple) else (output,)))
    segmentation_loss(output, labels).backward()
    [memory] = [m for m in model.modules() if isinstance(m, LowFrequencyMemory)]
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or name.endswith('conv.bias') or 'attached' in kind, name  # that is at identity


@pytest.mark.parametrize('kind', KINDS)
def test_any_size_channels_and_classes(kind):
    for in_chans, num_classes, size in ((1, 1, (33, 47)), (4, 150, (33, 47)), (3, 2, (227, 333))):
        model = create(kind, num_classes, in_chans=in_chans).eval()
        with torch.no_grad():
            logits = model(torch.randn(1, in_chans, *size))
        assert logits.shape == (1, num_classes, *size) and logits.isfinite().all()


def test_padding_repeats_the_edge():
    model = create('fcn').eval()
    image = torch.randn(1, 3, 50, 60)
    expected = model(F.pad(image, (0, 4, 0, 14), mode='replicate'))[..., :50, :60]
    torch.testing.assert_close(model(image), expected)


@pytest.mark.parametrize('kind', KINDS)
def test_fused_half_and_saved(kind, tmp_path):
    model = lived_in(create(kind))
    image = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        expected = model(image)
        largest = expected.abs().max()
        model.save_pretrained(tmp_path)
        for cls in (SegmentationNetwork, type(model)):
            again = cls.from_pretrained(tmp_path)
            assert type(again) is type(model) and torch.equal(again(image), expected)
        again = again.to(memory_format=torch.channels_last)
        close = 1e-4 * largest
        assert (again(image.to(memory_format=torch.channels_last)) - expected).abs().max() <= close
        with torch.autocast('cpu', torch.bfloat16):
            assert (model(image) - expected).abs().max() <= 0.1 * largest
        assert (copy.deepcopy(model).bfloat16()(image.bfloat16()) - expected).abs().max() <= 0.1 * largest
        fused = timm.models.reparameterize_model(model)
        assert (fused(image) - expected).abs().max() <= close
        assert (model.fuse()(image) - expected).abs().max() <= close
    with pytest.raises(RuntimeError, match='fused for inference'):
        model.train()
    assert not model.training


@pytest.mark.parametrize('kind', KINDS)
def test_gradient_checkpointing(kind):
    model = create(kind)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    image, labels = torch.randn(2, 3, 64, 64), torch.randint(5, (2, 64, 64))
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        segmentation_loss(model(image), labels).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['fcn', 'unet decoder', 'smp', 'attached smp'])
def test_export(kind, tmp_path):
    """One ONNX graph for all sizes, and compiled."""
    model = lived_in(create(kind))
    write_graph(model, tmp_path / 'model.onnx', 'onnx', (3, 64, 64), dynamic='all')
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    for batch, *sides in ((1, 64, 64), (3, 65, 97), (2, 33, 47)):
        image = torch.randn(batch, 3, *sides)
        with torch.no_grad():
            expected = model(image).numpy()
        actual, = session.run(None, {'image': image.numpy()})
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    compiled = torch.compile(model, backend='aot_eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_hub(tmp_path):
    """Pushed to a Hub, and loaded from there without the encoder's own weights."""
    with HubServer() as server:
        user = User(server, tmp_path)
        network, same, pretrained = user.code('''
import contextlib, io
from mlfm_zoo.segmentation import FCN, SegmentationNetwork, create_model
with contextlib.redirect_stdout(io.StringIO()):
    model = create_model('fcn8s', 'test_mlfm_resnet', num_classes=3, pretrained=True).eval()
    model.push_to_hub('org/seg')
    again = SegmentationNetwork.from_pretrained('org/seg')
image = torch.randn(1, 3, 64, 64)
print(json.dumps([type(again).__name__, torch.equal(again(image), model(image)),
                  again._hub_mixin_config['pretrained']]))
''')
    assert network == 'FCN' and same and not pretrained


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match='has no config.json of a segmentation network'):
        SegmentationNetwork.from_pretrained(tmp_path)
    create('unet').save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='is of a UNet, expected one that FCN'):
        type(create('fcn')).from_pretrained(tmp_path)
    file = tmp_path / 'model.safetensors'
    weights = load_file(file)
    save_file(dict(weights, **{'head.bias': torch.full((5,), torch.nan)}), file)
    with pytest.raises(ValueError, match='model.safetensors holds values in head.bias that are not finite'):
        SegmentationNetwork.from_pretrained(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match='model.safetensors is damaged, or of another network'):
        SegmentationNetwork.from_pretrained(tmp_path)


def test_config_of_a_folder(tmp_path):
    """It steers the network and its normalization, and nothing else; what is wrong in it is one sentence."""
    network = create('unet', in_chans=1)
    network.save_pretrained(tmp_path)
    file = tmp_path / 'config.json'
    config = json.loads(file.read_text())
    file.write_text(json.dumps(dict(
        config, mean=[0.25], std=[0.125], checkpoint_path='/none.pth', pretrained=True, pretrained_strict=False)))
    loaded = SegmentationNetwork.from_pretrained(tmp_path)
    assert (loaded.mean, loaded.std) == ([0.25], [0.125]) and loaded.state_dict().keys() == network.state_dict().keys()
    loaded.save_pretrained(tmp_path / 'again')
    assert json.loads((tmp_path / 'again' / 'config.json').read_text())['mean'] == [0.25]
    for change in (dict(network=[]), dict(num_classes='x'), dict(num_classes=4), dict(mean='a'), dict(mean=[0.5, 0.5]),
                   dict(std=[0]), dict(std=[float('nan')]), dict(base_width=2.5), dict(unknown=1)):
        file.write_text(json.dumps(dict(config, **change)))
        with pytest.raises(ValueError) as error:
            SegmentationNetwork.from_pretrained(tmp_path)
        assert '\n' not in str(error.value)
    for text in ('[]', '[' * 100_000):
        file.write_text(text)
        with pytest.raises(ValueError, match='config.json does not describe a segmentation network'):
            SegmentationNetwork.from_pretrained(tmp_path)


@pytest.mark.parametrize('in_chans, mean', [(1, [0.449]), (4, [0.485, 0.456, 0.406, 0.485])])
def test_normalization_fits_the_first_convolution(in_chans, mean):
    """timm sums its weights for gray and repeats them for more channels, and so do mean and deviation follow."""
    assert create_model('fcn8s', 'resnet10t', num_classes=2, in_chans=in_chans).mean == pytest.approx(mean)
