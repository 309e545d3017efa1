"""FCN against torchvision's, the paper's layers, and its sum of scores written out."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.segmentation import fcn_resnet50

from helpers.networks import SMALL, SMALL_GSSDNET
from helpers.segmentation import create
from mlfm_zoo.segmentation import LearntUpsample, create_model, segmentation_loss

EVERY = {**SMALL, **SMALL_GSSDNET}


@pytest.mark.parametrize('factor', [2, 8, 32])
@pytest.mark.parametrize('depthwise', [False, True])
def test_upsampling_starts_bilinear(factor, depthwise):
    x = torch.randn(2, 3, 5, 4)
    expected = F.interpolate(x, scale_factor=factor, mode='bilinear', align_corners=False)
    torch.testing.assert_close(LearntUpsample(3, factor, depthwise)(x), expected)


def test_fcn_is_torchvisions():
    """With its head, fixed upsampling and its dilated ResNet50: the same parameters and outputs."""
    torch.manual_seed(0)
    theirs = fcn_resnet50(weights=None, weights_backbone=None, num_classes=7, aux_loss=True)
    ours = create_model('fcn32s', 'resnet50', 7, output_stride=8, head='torchvision', upsample='bilinear', aux=True)
    names = {'backbone.': 'encoder.', 'classifier.': 'score.', 'aux_classifier.': 'aux_head.'}
    weights = {}
    for key, value in theirs.state_dict().items():
        prefix = next(p for p in names if key.startswith(p))
        weights[names[prefix] + key[len(prefix):]] = value
    ours.load_state_dict(weights)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), theirs.eval()(image)['out'], rtol=1e-4, atol=1e-5)
        for model in (ours, theirs):
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.eval()
        (logits, aux), expected = ours(image), theirs(image)
        torch.testing.assert_close(logits, expected['out'], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(aux, expected['aux'], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name, upsampled, skips', [
    ('fcn32s', [64], []), ('fcn16s', [4, 32], [512]), ('fcn8s', [4, 4, 16], [512, 512])])
def test_fcn_is_the_papers(name, upsampled, skips):
    """VGG16 made convolutional, its score layers and its deconvolutions, as the paper has them for 21 classes.

    One thing is timm's: its features of VGG are those before the pooling, so that the skip at stride 8 reads conv4_3,
    of 512 channels, where the paper's reads pool3, of 256.
    """
    with torch.device('meta'):
        model = create_model(name, 'vgg16', head='fc')
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    expected = [s for i, o in zip(widths, widths[1:]) for s in ((o, i, 3, 3), (o,))]
    expected += [(4096, 512, 7, 7), (4096,), (4096, 4096, 1, 1), (4096,), (21, 4096, 1, 1), (21,)]
    expected += [s for chs in skips for s in ((21, chs, 1, 1), (21,))]
    expected += [(21, 21, k, k) for k in upsampled]
    assert sorted(map(tuple, (p.shape for p in model.parameters()))) == sorted(expected)
    if name == 'fcn32s':
        # VGG16's convolutions, fc6, fc7, score, deconvolution
        count = 14_714_688 + 102_764_544 + 16_781_312 + 86_037 + 1_806_336
        assert sum(p.numel() for p in model.parameters()) == count


def test_fcn8s_adds_scores_as_the_paper():
    model = create('fcn', 4).eval()
    for parameter in model.skips.parameters():
        torch.nn.init.normal_(parameter)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        f8, f16, f32 = model.encoder(image)
        x = F.interpolate(model.score(f32), scale_factor=2, mode='bilinear') + model.skips[0](f16)
        x = F.interpolate(x, scale_factor=2, mode='bilinear') + model.skips[1](f8)
        expected = F.interpolate(x, scale_factor=8, mode='bilinear')
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*EVERY, 'dct_resnet50_24s', 'vgg11', 'mobilenetv3_small_050', 'swin_s3_tiny_224'])
def test_fcn_on_every_family(name):
    kwargs = dict(img_size=96) if 'swin' in name else EVERY.get(name, {})
    model = create_model('fcn8s', name, 3, **kwargs)
    size = (96, 96) if 'swin' in name else (75, 90)
    segmentation_loss(model(torch.randn(2, 3, *size)), torch.randint(3, (2, *size))).backward()
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 3, *size)
