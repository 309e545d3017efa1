"""The networks of segmentation_models.pytorch on backbones with memory."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from helpers.networks import SMALL, SMALL_GSSDNET
from helpers.reference import REFERENCE, needs_reference
from helpers.user import IMPORTS
from mlfm_zoo.hub.manifest import load_manifest
from mlfm_zoo.segmentation import NAMES, create_model, segmentation_loss

EVERY = {**SMALL, **SMALL_GSSDNET}


def check_smp(decoder, name):
    torch.manual_seed(0)
    model = create_model(decoder, name, 3, 4, **EVERY[name])
    optimizer = torch.optim.AdamW(model.parameters())
    image, labels = torch.randn(2, 4, 70, 100), torch.randint(3, (2, 70, 100))
    segmentation_loss(model(image), labels).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if 'memory.' in n)
    optimizer.step()
    with torch.no_grad():
        assert model.eval()(image).shape == (2, 3, 70, 100)


@pytest.mark.parametrize('decoder, name', [
    ('unet', 'mlfm_efficientnet_b0'), ('unetplusplus', 'mlfm_convnext_tiny_k3_par1_4'),
    ('deeplabv3plus', 'mlfm_mobilenetv2_010'), ('fpn', 'gssdnet_o2_050'), ('upernet', 'mlfm_regnety_002')])
def test_segmentation_models(decoder, name):
    check_smp(decoder, name)


@pytest.mark.slow
@pytest.mark.parametrize('decoder', NAMES[3:])
@pytest.mark.parametrize('name', EVERY)
def test_segmentation_models_on_every_family(decoder, name):
    check_smp(decoder, name)


def test_depths_and_strides_of_segmentation_models():
    for kwargs in (dict(encoder_depth=3, decoder_channels=(32, 16, 8)), dict(output_stride=16)):
        model = create_model('unet', 'test_mlfm_resnet', 2, 1, **kwargs).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 1, 50, 60)).shape == (1, 2, 50, 60)
        assert model.stride == (8 if 'encoder_depth' in kwargs else 16)


@needs_reference
def test_encoder_weights_by_tag(tmp_path):
    """The authors' ImageNet100 weights, in segmentation_models.pytorch itself and in networks of our own."""
    known = load_manifest()['mlfm_mobilenetv2_010', 'paper_in100', True]
    source = tmp_path / 'clone' / known.source_path
    source.parent.mkdir(parents=True)
    shutil.copy(REFERENCE / 'authors' / 'mobilenetv2_0.1_mlfm.pth.tar', source)
    env = dict(
        os.environ, HF_HOME=str(tmp_path / 'home'), MLFM_ZOO_PAPER_MIRROR=str(tmp_path / 'clone'), HF_HUB_OFFLINE='1',
        PYTHONPATH=os.pathsep.join(IMPORTS))
    code = '''
import timm, torch, mlfm_zoo, segmentation_models_pytorch as smp
from mlfm_zoo.segmentation import create_model
torch.manual_seed(0)
image = torch.randn(1, 3, 64, 64)
expected = timm.create_model('mlfm_mobilenetv2_010', pretrained=True, features_only=True).eval()(image)
for name in ('mlfm_mobilenetv2_010', 'mlfm_mobilenetv2_010.paper_in100'):
    encoders = [
        smp.Unet(f'tu-{name}', encoder_weights=True, classes=2).encoder.model,
        create_model('unet', name, 2, pretrained=True).network.encoder.model,
        create_model('fcn8s', name, 2, pretrained=True).encoder]
    for encoder in encoders:
        for x, y in zip(reversed(encoder.eval()(image)), reversed(expected)):
            torch.testing.assert_close(x, y)
for in_chans in (1, 4):
    model = create_model('unet', 'mlfm_mobilenetv2_010.paper_in100', 2, in_chans, pretrained=True).eval()
    assert model(torch.randn(1, in_chans, 50, 60)).shape == (1, 2, 50, 60)
'''
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
