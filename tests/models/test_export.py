"""Networks outside of Python: ONNX in onnxruntime, torch.export, AOTInductor, int8."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch.export import Dim

from helpers.networks import SMALL, SMALL_GSSDNET, lived_in
from int8 import QUANTISED, export_onnx, quantise

EVERY = {**SMALL, **SMALL_GSSDNET}
# networks whose graph is of another kind: two units in a stage, larger kernels, no squeeze-and-excitation
MORE = {
    'mlfm_resnet34': dict(channels=(8, 16, 24, 32)),
    'mlfm_convnext_tiny': dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40)),
    'mlfm_regnetx_002': {},
    'gssdnet_o1_050': dict(channel_multiplier=0.3),
}
AT_ONCE = ('test_mlfm_resnet', 'gssdnet_o2_050')
SIZES = ((1, 64, 64), (3, 65, 97), (2, 128, 96))


@pytest.mark.parametrize('name', [
    name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in EVERY | MORE])
def test_onnx(name, tmp_path):
    """One graph for any batch and size, odd ones too, to 1e-4 of the largest logit."""
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, **(EVERY | MORE)[name]))
    file = tmp_path / 'model.onnx'
    export_onnx(model, file, 64)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    for batch, *sides in SIZES:
        image = torch.randn(batch, 3, *sides)
        with torch.inference_mode():
            expected = model(image).numpy()
        actual, = session.run(None, {'image': image.numpy()})
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mlfm_mobilenetv2_010', 'mlfm_convnext_tiny_k3_par1_4', *AT_ONCE])
def test_aot_inductor_package(name, tmp_path):
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, **EVERY[name]))
    dynamic = {0: Dim('batch', min=1, max=16)}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(dynamic,))
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / 'model.pt2'))
    loaded = torch._inductor.aoti_load_package(file)
    for batch in (1, 5):
        image = torch.randn(batch, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(loaded(image), model(image), rtol=1e-3, atol=1e-4)


def test_int8_keeps_the_digits(tmp_path):
    """The embedded network, quantised: on the held-out digits it is right nearly as often."""
    from digits import load_split, to_batch
    model = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    train, test = load_split()
    export_onnx(model, tmp_path / 'float.onnx', 64)
    quantise(tmp_path / 'float.onnx', tmp_path / 'int8.onnx', to_batch(train.images[:128], model).numpy())
    images = to_batch(test.images, model).numpy()
    right = {}
    for name in ('float', 'int8'):
        session = onnxruntime.InferenceSession(tmp_path / f'{name}.onnx', providers=['CPUExecutionProvider'])
        logits = np.concatenate([session.run(None, {'image': batch})[0] for batch in np.split(images, 9)])
        right[name] = int((logits.argmax(1) == test.labels.numpy()).sum())
    assert right['float'] == 360 and right['int8'] >= 350
    assert (tmp_path / 'int8.onnx').stat().st_size < (tmp_path / 'float.onnx').stat().st_size
    assert {name for name, *_ in QUANTISED} == {
        'mlfm_resnet10', 'mlfm_seresnet10', 'mlfm_mobilenetv2_035', 'mlfm_regnety_002', 'mlfm_efficientnet_b0',
        'mlfm_convnext_tiny_k3_par1_4', 'mlfm_inception_next_tiny'}
