"""The networks of segmentation_models.pytorch on backbones with memory."""

import itertools

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from helpers.networks import SMALL, SMALL_GSSDNET
from mlfm_zoo.segmentation import create_model, segmentation_loss
from mlfm_zoo.segmentation.smp import DECODERS

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
@pytest.mark.parametrize('decoder, name', [*zip(DECODERS, itertools.cycle(EVERY))])
def test_every_decoder_and_every_family(decoder, name):
    """A decoder knows an encoder by the sizes and channels of its features alone: not all pairs are needed."""
    assert len(DECODERS) >= len(EVERY)
    check_smp(decoder, name)


def test_depths_and_strides_of_segmentation_models():
    for kwargs in (dict(encoder_depth=3, decoder_channels=(32, 16, 8)), dict(output_stride=16)):
        model = create_model('unet', 'test_mlfm_resnet', 2, 1, **kwargs).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 1, 50, 60)).shape == (1, 2, 50, 60)
        assert model.stride == (8 if 'encoder_depth' in kwargs else 16)


def test_encoder_weights_by_tag():
    """Weights that the name's tag stands for, in the library itself and in networks of our own."""
    expected = timm.create_model('test_mlfm_resnet.digits', pretrained=True).state_dict()
    for encoder in (
            smp.Unet('tu-test_mlfm_resnet.digits', encoder_weights=True, classes=2).encoder.model.model,
            create_model('unet', 'test_mlfm_resnet.digits', 2, pretrained=True).network.encoder.model.model,
            create_model('fcn8s', 'test_mlfm_resnet', 2, pretrained=True).encoder.model):
        assert all(torch.equal(expected[name], weight) for name, weight in encoder.state_dict().items())
    adapted = create_model('unet', 'test_mlfm_resnet.digits', 2, 4, pretrained=True).eval()
    assert adapted(torch.randn(1, 4, 50, 60)).shape == (1, 2, 50, 60)
