"""Networks as files of ONNX, OpenVINO, TorchScript and AOTInductor: answers, sizes, int8, and what is refused."""

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
import torch.nn as nn
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from digits import load_split, to_batch
from helpers.disks import full_disk
from helpers.networks import SMALL, SMALL_GSSDNET, lived_in
from mlfm_zoo.workflow.export import ENDINGS, ExportedNetwork, export_network, read_photos

EVERY = {
    **SMALL, **SMALL_GSSDNET,
    # networks whose graph is of another kind: two units in a stage, larger kernels, no squeeze-and-excitation
    'mlfm_resnet34': dict(channels=(8, 16, 24, 32)),
    'mlfm_convnext_tiny': dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40)),
    'mlfm_regnetx_002': {},
    'gssdnet_o1_050': dict(channel_multiplier=0.3),
}
SIZES = ((1, 64, 64), (3, 65, 97), (2, 128, 96))


def answers(file, image):
    """Logits of a file from its engine's own interface."""
    if file.suffix == '.onnx':
        session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
        return torch.from_numpy(session.run(['logits'], {'image': image.numpy()})[0])
    if file.suffix == '.xml':
        engine = openvino.compile_model(file, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        return torch.from_numpy(engine({'image': image.numpy()})['logits'])
    if file.suffix == '.pt':
        return torch.jit.load(file)(image)
    return torch._inductor.aoti_load_package(str(file))(image)


def assert_same(model, file, shapes):
    for batch, *sides in shapes:
        image = torch.randn(batch, 3, *sides)
        with torch.inference_mode():
            expected, actual = model(image), answers(file, image)
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize('form, name, fuse', [
    ('onnx', 'test_mlfm_resnet', False), ('openvino', 'test_mlfm_resnet', True),
    ('torchscript', 'test_mlfm_resnet', True), pytest.param('onnx', 'test_mlfm_resnet', True, marks=pytest.mark.slow),
    *(pytest.param('onnx', name, False, marks=pytest.mark.slow) for name in EVERY if name != 'test_mlfm_resnet')])
def test_any_batch_and_size(form, name, fuse, tmp_path):
    """One graph for all, odd sizes too, to 1e-4 of the largest logit; the network stays as it is."""
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, **EVERY[name]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file = tmp_path / f'model{ENDINGS[form]}'
    check = export_network(model, file, form, img_size=64, dynamic='all', fuse=fuse)
    assert check.randoms == check.same == 4 and check.photos == 0 and check.difference <= 1e-4
    assert_same(model, file, SIZES)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize('name, fuse', [
    ('mlfm_mobilenetv2_010', True),
    *((name, False) for name in ('mlfm_convnext_tiny_k3_par1_4', 'test_mlfm_resnet', 'gssdnet_o2_050'))])
def test_aot_inductor(name, fuse, tmp_path):
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, **EVERY[name]))
    export_network(model, tmp_path / 'model.pt2', 'aoti', img_size=64, dynamic='batch', fuse=fuse)
    assert_same(model, tmp_path / 'model.pt2', [(1, 64, 64), (5, 64, 64)])


@pytest.mark.parametrize('form', ['onnx', pytest.param('openvino', marks=pytest.mark.slow)])
def test_a_fixed_batch(form, tmp_path):
    """The file takes its own batch alone; as a module it takes any."""
    torch.manual_seed(0)
    model = lived_in(timm.create_model('test_mlfm_resnet'))
    file = tmp_path / f'model{ENDINGS[form]}'
    assert export_network(model, file, form, batch_size=2).randoms == 2
    assert_same(model, file, [(2, 64, 64)])
    with pytest.raises(Exception, match='(?i)dim|shape'):
        answers(file, torch.randn(3, 3, 64, 64))
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ExportedNetwork(file, model, 2)(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('form', ['onnx', 'torchscript', pytest.param('openvino', marks=pytest.mark.slow)])
def test_full_disk(form, tmp_path):
    model = timm.create_model('test_mlfm_resnet')
    with full_disk(10_000), pytest.raises(ValueError, match='test_mlfm_resnet cannot be exported'):
        export_network(model, tmp_path / f'model{ENDINGS[form]}', form)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize('name, form', [('test_convnext', 'onnx'), ('test_vit', 'torchscript')])
def test_networks_of_timm(name, form, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    file = tmp_path / f'model{ENDINGS[form]}'
    export_network(model, file, form, dynamic='batch')
    size = model.pretrained_cfg['input_size'][-1]
    assert_same(model, file, [(1, size, size), (3, size, size)])


def digits_right(file, images, labels):
    return int(sum((answers(file, i).argmax(1) == t).sum() for i, t in zip(images.split(40), labels.split(40))))


@pytest.mark.slow
@pytest.mark.parametrize('form', ['onnx', 'openvino'])
def test_int8(form, tmp_path):
    """The embedded network, quantized: nearly all held-out digits right, in about a quarter of the bytes."""
    model = timm.create_model('test_mlfm_resnet', pretrained=True)
    train, test = load_split()
    images, labels = to_batch(test.images, model), test.labels
    calibration = to_batch(train.images[:128], model)
    files = [tmp_path / f'{name}{ENDINGS[form]}' for name in ('float', 'int8')]
    export_network(model, files[0], form, dynamic='batch')
    check = export_network(model, files[1], form, dynamic='batch', calibration=calibration, photos=images[:100])
    assert check.photos == 100 and check.same >= 98 and 0 < check.error < 0.1
    assert digits_right(files[0], images, labels) == 360
    assert digits_right(files[1], images, labels) >= 355
    if form == 'onnx':
        weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(files[1]).graph.initializer]
    else:
        graph = openvino.Core().read_model(files[1])
        weights = [node.data for node in graph.get_ops() if node.get_type_name() == 'Constant']
    kernels = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert sum(w.size for w in weights if w.dtype == np.int8) >= 0.95 * kernels


def test_photographs_are_prepared_by_timms_own_transform(tmp_path):
    model = timm.create_model('test_mlfm_resnet')
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(256, size=(90, 70, 3), dtype=np.uint8)).save(tmp_path / f'{i}.png')
    photos = read_photos(tmp_path, model, 3)
    transform = create_transform(**resolve_model_data_config(model))
    expected = [transform(Image.open(tmp_path / f'{i}.png')) for i in range(4)]
    assert photos.shape == (3, 3, 64, 64)
    assert all(any(torch.equal(photo, image) for image in expected) for photo in photos)
    assert torch.equal(read_photos(tmp_path, model, 3), photos)
    assert read_photos(tmp_path, model, 9, img_size=32).shape == (4, 3, 32, 32)


class ScriptedDifferently(nn.Module):
    """A network with another answer once it is compiled."""

    def forward(self, x):
        return x.mean(dim=(2, 3)) + (1. if torch.jit.is_scripting() else 0.)


class BeyondInt8(nn.Module):
    """A network whose answer hangs on values of 1 beside one of 1e5, between which 256 steps are too coarse."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        with torch.no_grad():
            self.conv1.bias[0] = 1e5
            self.conv2.weight[:, 0] = 0

    def forward(self, x):
        return self.conv2(self.conv1(x)).mean(dim=(2, 3))


@pytest.mark.parametrize('form, network, calibrated, said', [
    ('torchscript', ScriptedDifferently, False, 'is wrong by .* of the largest logit'),
    ('onnx', BeyondInt8, True, 'is wrong by .* of the norm of the logits'),
])
def test_a_wrong_file_is_not_written(form, network, calibrated, said, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / f'model{ENDINGS[form]}'
    file.write_text('as it was')
    images = torch.rand(20, 3, 16, 16)
    with pytest.raises(RuntimeError, match=said):
        export_network(network(), file, form, img_size=16, calibration=images if calibrated else None, photos=images)
    assert [f.name for f in tmp_path.iterdir()] == [file.name] and file.read_text() == 'as it was'
