"""The networks on DCT coefficients in ONNX, against onnxruntime."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from helpers.networks import DCT, lived_in
from int8 import export_onnx


@pytest.mark.parametrize('name', [
    name if name in ('dct_resnet50_24s', 'dct_mobilenetv2_100_192_gate') else pytest.param(name, marks=pytest.mark.slow)
    for name in DCT])
def test_onnx(name, tmp_path):
    """One graph for any batch and size, also sizes that are no multiples of 8."""
    torch.manual_seed(0)
    model = lived_in(timm.create_model(name, num_classes=5))
    export_onnx(model, tmp_path / 'model.onnx', 64)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    for batch, *sides in ((1, 64, 64), (3, 65, 97), (2, 128, 96)):
        image = torch.randn(batch, 3, *sides)
        with torch.inference_mode():
            expected = model(image).numpy()
        actual, = session.run(None, {'image': image.numpy()})
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
