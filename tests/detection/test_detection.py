"""Detectors against torchvision's own and pycocotools used literally; what is frozen, what learns, what is refused."""

import contextlib
import io
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pycocotools import mask as coder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_model, save_file, save_model
from scipy import ndimage
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms import v2

from helpers.networks import SMALL, SMALL_GSSDNET
from mlfm_zoo.dct import DCTStem
from mlfm_zoo.dct.stem import released_statistics
from mlfm_zoo.detection import CocoImages, collate, create_model, draw_predictions, evaluate
from mlfm_zoo.detection.coco import make_coco, read_coco
from real_instances import coins, write

ROOT = Path(__file__).parents[2]
# few regions, of which each goes through the heads
FEW = dict(
    box_batch_size_per_image=16, box_detections_per_img=6, rpn_post_nms_top_n_train=50, rpn_post_nms_top_n_test=20)
TINY = dict(num_classes=4, fpn_channels=16, min_size=64, max_size=96, **FEW)
SMALL_DCT = dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))
NETWORKS = {
    **SMALL, **SMALL_GSSDNET,
    **{f'dct_resnet50_{chosen}': SMALL_DCT for chosen in ('24s', '48s', '64s', '192_gate')},
    'dct_resnet50_ycbcr': SMALL_DCT, 'dct_mobilenetv2_100_6s': {},
    'resnet18': {}, 'convnext_atto': {}, 'regnetx_002': {},
}


def samples(in_chans=3):
    """Two images of odd and different sizes, one of them with nothing in it."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(in_chans, *size, generator=generator) for size in ((67, 91), (101, 75))]
    masks = torch.zeros(2, 67, 91, dtype=torch.uint8)
    masks[0, 10:40, 5:50] = masks[1, 30:60, 40:80] = 1
    boxes = torch.tensor([[5., 10, 50, 40], [40, 30, 80, 60]])
    found = dict(boxes=boxes, labels=torch.tensor([1, 3]), masks=masks)
    nothing = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64),
                   masks=torch.zeros(0, 101, 75, dtype=torch.uint8))
    return images, [found, nothing]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Real coins in the form of COCO."""
    folder = tmp_path_factory.mktemp('coins')
    write(folder, ['coin'], coins())
    return folder


@pytest.fixture(scope='module')
def warm_start(tmp_path_factory):
    """A pretrained ResNet18 whose memory is at identity."""
    torch.manual_seed(0)
    model = timm.create_model('mlfm_resnet18', zero_init_last=False)
    model.memory.init_identity()
    file = tmp_path_factory.mktemp('weights') / 'model.safetensors'
    save_file(model.state_dict(), file)
    return dict(pretrained_cfg_overlay=dict(file=str(file)))


@pytest.mark.parametrize('detector, theirs', [
    ('mask_rcnn', maskrcnn_resnet50_fpn), ('faster_rcnn', fasterrcnn_resnet50_fpn)])
def test_plain_resnet50_is_torchvisions(detector, theirs):
    """The same parameters; with the same weights the same losses and detections."""
    torch.manual_seed(0)
    expected = theirs(weights=None, weights_backbone=None, num_classes=5, min_size=64, max_size=96, **FEW)
    for tensor in expected.backbone.body.state_dict().values():
        if tensor.ndim == 1:
            tensor.add_(0.1 * torch.rand_like(tensor))
    actual = create_model(detector, 'resnet50', 5, min_size=64, max_size=96, **FEW)
    weights = {re.sub(r'^backbone\.body\.', 'backbone.body.model.', k): v for k, v in expected.state_dict().items()}
    assert {k: v.shape for k, v in actual.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    assert [p.requires_grad for p in actual.parameters()] == [p.requires_grad for p in expected.parameters()]
    actual.load_state_dict(weights)

    images, targets = samples()
    losses = []
    for model in (expected, actual):
        torch.manual_seed(1)
        losses.append(model.train()(images, targets))
    torch.testing.assert_close(losses[1], losses[0])
    with torch.inference_mode():
        predictions = [model.eval()(images) for model in (expected, actual)]
    assert len(predictions[0][0]['boxes']) > 5
    torch.testing.assert_close(predictions[1], predictions[0])


@pytest.mark.parametrize('name', NETWORKS)
def test_networks(name):
    """Strides of the pyramid, a training step on padded images of odd sizes, and predictions."""
    torch.manual_seed(0)
    model = create_model('mask_rcnn', name, backbone_kwargs=NETWORKS[name], **TINY)
    with torch.no_grad():
        maps = model.backbone.eval()(torch.rand(1, 3, 64, 96))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(16, *size) for size in sizes]
    images, targets = samples()
    losses = model.train()(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    # a batch norm takes a bias before it away again
    silent = [n for n, p in model.named_parameters()
              if (p.grad is None or not torch.isfinite(p.grad).all()) and not n.endswith('conv.bias')]
    assert not silent
    with torch.inference_mode():
        predictions = model.eval()(images)
    assert [p['masks'].shape[-2:] for p in predictions] == [image.shape[-2:] for image in images]


@pytest.mark.parametrize('name, enlarge', [('dct_resnet50_24s', 2), ('dct_mobilenetv2_100_6s', 4)])
def test_dct_sees_the_enlarged_image(name, enlarge):
    """Coefficients of the resized, normalised image, enlarged by Pillow, whatever it is normalised with."""
    outputs = []
    pixels = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    for options in ({}, dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])):
        model = create_model('faster_rcnn', name, backbone_kwargs=NETWORKS[name], **dict(TINY, **options)).eval()
        stem = next(m for m in model.modules() if isinstance(m, DCTStem))
        stem.register_forward_hook(lambda _, __, output: outputs.append(output))
        with torch.inference_mode():
            model([pixels])
    expected = torch.stack([
        torch.from_numpy(np.array(Image.fromarray(plane.numpy()).resize((96 * enlarge, 64 * enlarge), 2)))
        for plane in pixels])
    plain = DCTStem(stem.channels, mean=(0, 0, 0), std=(1, 1, 1))(expected[None])
    assert outputs[0].shape[2:] == (64 * enlarge // 8, 96 * enlarge // 8)
    for output in outputs:
        torch.testing.assert_close(output, plain, rtol=1e-3, atol=1e-3)


def test_ycbcr_sees_the_image_as_it_is():
    """Pillow's YCbCr of the image, whatever it is normalised with, into a ResNet's own strides."""
    outputs = []
    pixels = torch.randint(256, (3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for options in ({}, dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])):
        model = create_model(
            'faster_rcnn', 'dct_resnet50_ycbcr', backbone_kwargs=SMALL_DCT, **dict(TINY, **options)).eval()
        assert model.backbone.enlarge == 1 and model.backbone.body.feature_info.reduction() == [4, 8, 16, 32]
        model.backbone.body.model.conv1.stem.register_forward_hook(lambda _, __, output: outputs.append(output))
        with torch.inference_mode():
            model([pixels / 255])
    planes = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert('YCbCr')
    # a block filled with a pixel has the constant coefficient of 8 times it
    constant = 8 * (torch.from_numpy(np.array(planes)).permute(2, 0, 1).double() - 128)
    mean, std = (torch.tensor(values).double()[[0, 64, 128], None, None] for values in released_statistics())
    for output in outputs:  # Pillow cuts off to whole numbers what it sums of three tables in 64ths
        torch.testing.assert_close(output[0].double() * std + mean, constant, rtol=0, atol=8 * (1 + 1.5 / 64))


def test_dct_resnet_has_the_strides_of_the_paper():
    model = create_model('mask_rcnn', 'dct_resnet50_24s', fpn_channels=16)
    body = model.backbone.body.model
    strides = [math.prod(b.conv2.stride[0] for b in getattr(body, f'layer{i}')) for i in (1, 2, 3, 4)]
    assert strides == [1, 2, 2, 2] and model.transform.min_size == (800,) and model.transform.max_size == 1333
    with pytest.raises(ValueError, match=r'divided by 8, 8, 16, 32, expected by 4, 8, 16, 32'):
        create_model(backbone='dct_resnet50_24s', backbone_kwargs=dict(SMALL_DCT, layer2_stride=1))


@pytest.mark.parametrize('name', ['mlfm_mobilenetv2_010', 'dct_resnet50_24s', 'resnet18'])
def test_grey_images(name):
    model = create_model('mask_rcnn', name, in_chans=1, backbone_kwargs=NETWORKS[name], **TINY)
    images, targets = samples(1)
    sum(model(images, targets).values()).backward()
    assert len(model.transform.image_mean) == 1
    with torch.inference_mode():
        assert len(model.eval()(images)) == 2


def train_a_little(model, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.train()(*samples()).values()).backward()
        optimizer.step()


def test_what_is_frozen(warm_start):
    """As in torchvision stem, first stage and all norms; not the gates of a memory at identity, which all learn."""
    model = create_model('mask_rcnn', 'mlfm_resnet18', pretrained=True, backbone_kwargs=warm_start, **TINY)
    body = model.backbone.body.model
    before = {k: v.clone() for k, v in body.state_dict().items()}
    train_a_little(model)
    moved = {k for k, v in body.state_dict().items() if not torch.equal(v, before[k])}
    gates = {k for k in before if '_gate' in k and 'output_gate' not in k and 'conv.bias' not in k}
    convs = {k for k in before if re.match(r'layer[234]\..*(conv\d|downsample\.0)', k)}
    assert {k for k in moved if not k.endswith('conv.bias')} == gates | convs
    norms = [m for n, m in body.named_modules() if 'bn' in n or 'downsample.1' in n or 'output_gate' in n]
    assert norms and all(isinstance(m, FrozenBatchNorm2d) for m in norms)
    resumed = create_model('mask_rcnn', 'mlfm_resnet18', pretrained=True, backbone_kwargs=warm_start, **TINY)
    resumed.load_state_dict(model.state_dict())
    assert [p.requires_grad for p in resumed.parameters()] == [p.requires_grad for p in model.parameters()]
    # trained gates are frozen with the rest: these have left the identity
    trained = {k.removeprefix('backbone.body.model.'): v for k, v in model.state_dict().items()}
    again = create_model('mask_rcnn', 'mlfm_resnet18', freeze_norms=True, trainable_stages=3, **TINY)
    again.backbone.body.model.load_state_dict({k: trained[k] for k in again.backbone.body.model.state_dict()})
    assert not [m for m in again.backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = {n for n, p in again.backbone.body.model.named_parameters() if not p.requires_grad}
    assert frozen == {k for k in again.backbone.body.model.state_dict()
                      if re.match(r'(memory\.(stem|pool|layer1).*conv\.|conv1|layer1.*conv)', k)}


def test_memory_at_identity_leaves_the_trunk_alone(warm_start):
    """Frozen, a warm start detects what its trunk does, in training mode too."""
    with_memory = create_model('faster_rcnn', 'mlfm_resnet18', pretrained=True, backbone_kwargs=warm_start, **TINY)
    plain = create_model('faster_rcnn', 'resnet18', freeze_norms=True, **TINY)
    weights = {k: v for k, v in with_memory.state_dict().items() if '.memory.' not in k}
    plain.load_state_dict(weights)
    x = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(
        dict(with_memory.train().backbone(x)), dict(plain.train().backbone(x)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('trainable, frozen', [
    (5, ''), (4, 'stem|bn|conv_stem|blocks.0'), (2, 'bn|conv_stem|blocks.[012]'), (0, '.*')])
def test_trainable_stages(trainable, frozen):
    model = create_model('faster_rcnn', 'mobilenetv2_035', trainable_stages=trainable, freeze_norms=False, **TINY)
    for name, parameter in model.backbone.body.model.named_parameters():
        assert parameter.requires_grad != bool(frozen and re.match(frozen, name)), name
    assert all(p.requires_grad for n, p in model.named_parameters() if '.body.' not in n)


@pytest.mark.parametrize('name', ['mlfm_resnet18', 'dct_resnet50_24s'])
def test_saved_weights(name, tmp_path):
    """Safetensors of a detector, into one whose norms are frozen too."""
    torch.manual_seed(0)
    model, frozen = (
        create_model('mask_rcnn', name, freeze_norms=freeze, backbone_kwargs=NETWORKS[name], **TINY)
        for freeze in (False, True))
    train_a_little(model, 1)
    save_model(model, tmp_path / 'model.safetensors')
    missing, unexpected = load_model(frozen, tmp_path / 'model.safetensors', strict=False)
    assert not missing and all(k.endswith('num_batches_tracked') for k in unexpected)
    images, _ = samples()
    with torch.inference_mode():
        torch.testing.assert_close(frozen.eval()(images), model.eval()(images), rtol=1e-3, atol=1e-3)


def test_torchscript():
    torch.manual_seed(0)
    model = create_model('mask_rcnn', 'mlfm_resnet18', backbone_kwargs=SMALL['mlfm_resnet18'], **TINY).eval()
    images = [torch.rand(3, 64, 96)]  # torchvision rounds sizes that it has to change in other ways when scripted
    with torch.inference_mode():
        _, scripted = torch.jit.script(model)(images)
        torch.testing.assert_close(scripted, model(images))


@pytest.mark.parametrize('arguments, error', [
    (dict(detector='yolo'), "detector is 'yolo', expected 'faster_rcnn' or 'mask_rcnn'"),
    (dict(backbone='resnet_50'), 'timm knows no model named resnet_50'),
    (dict(backbone='vit_tiny_patch16_224'), 'features of vit_tiny_patch16_224 are the image divided by 16'),
    (dict(backbone='test_vit', backbone_kwargs=dict(depth=2)), 'no four features|divided by 16'),
    (dict(num_classes=1), 'num_classes is 1, expected 2 or more'),
    (dict(trainable_stages=6), 'trainable_stages is 6, expected 0 or 1 or 2'),
    (dict(backbone='dct_resnet50_24s', backbone_kwargs=dict(SMALL_DCT, dct_input='coefficients'), in_chans=3),
     'which takes images and whose strides are its own'),
    (dict(minimal_size=3), "minimal_size is no argument of torchvision's MaskRCNN"),
])
def test_refused_arguments(arguments, error):
    with pytest.raises((ValueError, TypeError), match=error) as raised:
        create_model(**dict(dict(backbone='resnet18'), **arguments))
    assert str(raised.value).count('. ') == 0


def test_weights_that_do_not_exist():
    with pytest.raises(Exception, match='dct_resnet50_24s'):
        create_model(backbone='dct_resnet50_24s', pretrained=True)


def test_images_against_torchvision(photos):
    """CocoDetection, wrapped for transforms, and without one."""
    theirs = wrap_dataset_for_transforms_v2(
        CocoDetection(photos / 'images', photos / 'annotations.json'), ('boxes', 'labels', 'masks', 'image_id'))
    ours = CocoImages(photos / 'images', photos / 'annotations.json')
    assert len(ours) == len(theirs) == 6 and ours.names == {1: 'coin'} and ours.num_classes == 2
    for (image, target), (expected, expected_target) in zip(ours, theirs):
        torch.testing.assert_close(torch.as_tensor(image), v2.functional.to_dtype(
            v2.functional.pil_to_tensor(expected.convert('RGB')), torch.float32, scale=True))
        assert {k: type(v) for k, v in target.items()} == {k: type(v) for k, v in expected_target.items()}
        for key in ('boxes', 'labels', 'masks'):
            assert torch.equal(target[key], expected_target[key])
    flipped = CocoImages(photos / 'images', photos / 'annotations.json', v2.RandomHorizontalFlip(1), in_chans=1)
    assert flipped[0][0].shape[0] == 1 and torch.equal(flipped[0][1]['masks'], ours[0][1]['masks'].flip(-1))


class Guess(nn.Module):
    """Predicts the truth, shifted and grown, with false alarms and misses, or nothing at all."""

    def __init__(self, dataset, blind=False, mask_head=None):
        super().__init__()
        if blind:
            self.roi_heads = nn.Module()
            self.roi_heads.mask_head = mask_head  # None as torchvision's Faster R-CNN has it
        self.scale = nn.Parameter(torch.ones(()))
        self.targets = [target for _, target in dataset]
        self.blind = blind

    def forward(self, images):
        rng = np.random.default_rng(0)
        predictions = []
        for image, target in zip(images, self.targets):
            masks, labels = [], []
            for i, mask in enumerate(target['masks'].numpy()):
                if self.blind or i == 1:
                    continue
                moved = ndimage.shift(ndimage.binary_dilation(mask, iterations=i), rng.integers(-4, 5, 2), order=0)
                masks.append(moved), labels.append(1)
            if not self.blind:
                masks.append(np.eye(*image.shape[-2:]) > 0), labels.append(2)
            masks = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *image.shape[-2:])
            spans = [(m.any(0).nonzero()[:, 0], m.any(1).nonzero()[:, 0]) for m in masks]
            boxes = [[float(v) for v in (x[0], y[0], x[-1] + 1, y[-1] + 1)] for x, y in spans]
            predictions.append(dict(
                boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64),
                scores=torch.from_numpy(rng.random(len(labels))).float(), masks=masks[:, None].float()))
        self.targets = self.targets[len(images):] + self.targets[:len(images)]
        return predictions


@pytest.fixture
def crowded(photos, tmp_path):
    """The coins with a crowd, a second class and polygons, as annotations for a folder of its own."""
    content = json.loads((photos / 'annotations.json').read_text())
    content['categories'].append(dict(id=2, name='note'))
    content['annotations'][3]['iscrowd'] = 1
    content['annotations'][5]['category_id'] = 2
    content['annotations'][6]['segmentation'] = [[10.0, 10.0, 60.0, 12.0, 50.0, 70.0]]
    content['annotations'][6]['area'] = 1500.0
    file = tmp_path / 'crowded.json'
    file.write_text(json.dumps(content))
    return file


def literally(file, model, dataset, kind):
    """COCOeval from files, as its own demo uses it."""
    results = []
    for index in range(0, len(dataset), 2):
        images, targets = zip(*[dataset[i] for i in range(index, min(index + 2, len(dataset)))])
        for target, prediction in zip(targets, model(images)):
            for box, label, score, mask in zip(*(prediction[k].tolist() for k in ('boxes', 'labels', 'scores')),
                                               prediction['masks'][:, 0].numpy()):
                code = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
                what = dict(bbox=[box[0], box[1], box[2] - box[0], box[3] - box[1]]) if kind == 'bbox' else dict(
                    segmentation=dict(size=code['size'], counts=code['counts'].decode()))
                results.append(dict(image_id=target['image_id'], category_id=label, score=score, **what))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        judge = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), kind)
        judge.evaluate(), judge.accumulate(), judge.summarize()
    return judge.stats[:6]


def test_evaluate_against_pycocotools(photos, crowded):
    dataset = CocoImages(photos / 'images', crowded)
    assert sum(len(target['labels']) for _, target in dataset) == 23
    loader = DataLoader(dataset, 2, collate_fn=collate)
    model = Guess(dataset).train()
    measured = evaluate(model, loader, crowded)
    assert model.training and measured == evaluate(model, loader, dataset.coco)
    for name, kind in (('box', 'bbox'), ('mask', 'segm')):
        assert list(measured[name]) == ['AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large']
        np.testing.assert_allclose(list(measured[name].values()), literally(crowded, model, dataset, kind))
        assert 0 < measured[name]['AP'] < 0.9
    assert measured['box']['AP'] != measured['mask']['AP']


@pytest.mark.parametrize('blind', [False, True])
@pytest.mark.parametrize('truth_has', [False, True])
@pytest.mark.parametrize('model_has', [False, True])
def test_masks_are_measured_where_both_have_them(photos, blind, truth_has, model_has):
    """In a file and in targets, with detections and without any."""
    dataset = CocoImages(photos / 'images', photos / 'annotations.json')
    model = Guess(dataset, blind, mask_head=nn.Identity() if model_has else None)
    forward = model.forward
    if not model_has:
        model.forward = lambda images: [{k: v for k, v in p.items() if k != 'masks'} for p in forward(images)]
    without = json.loads((photos / 'annotations.json').read_text())
    for entry in without['annotations']:
        del entry['segmentation']
    samples = [(image, {k: v for k, v in t.items() if truth_has or k != 'masks'}) for image, t in dataset]
    loader = DataLoader(samples, 2, collate_fn=collate)
    for truth in (None, dataset.coco if truth_has else make_coco(without)):
        measured = evaluate(model, loader, truth)
        assert list(measured) == (['box', 'mask'] if truth_has and model_has else ['box'])
        assert all((scores['AP'] == 0) == blind for scores in measured.values())


def test_evaluate_by_the_targets(photos):
    """Without crowds the targets are the truth of the file."""
    dataset = CocoImages(photos / 'images', photos / 'annotations.json')
    loader = DataLoader(dataset, 2, collate_fn=collate)
    by_targets, by_file = (evaluate(Guess(dataset), loader, truth) for truth in (None, photos / 'annotations.json'))
    for kind in ('box', 'mask'):
        assert by_targets[kind] == pytest.approx(by_file[kind])
    with pytest.raises(ValueError, match='The loader is empty'):
        evaluate(Guess(dataset), [])


def test_draw_predictions(tmp_path):
    images, targets = samples()
    prediction = dict(targets[0], scores=torch.tensor([0.9, 0.1]), masks=targets[0]['masks'][:, None].float())
    file = draw_predictions(images[0], prediction, tmp_path / 'new' / 'a.png', {1: 'cat'})
    drawn = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    changed = (drawn - images[0]).abs().amax(0) > 0.1
    assert drawn.shape == images[0].shape and changed[12:38, 7:48].float().mean() > 0.5 and not changed[:, 60:].any()
    grey = draw_predictions(images[0][:1], targets[0], tmp_path / 'b.png')  # a target, and names of numbers
    assert np.array(Image.open(grey)).shape == (67, 91, 3)
    empty = draw_predictions(images[1], targets[1], tmp_path / 'c.png')
    np.testing.assert_allclose(np.array(Image.open(empty)), (images[1] * 255).round().permute(1, 2, 0), atol=1)
    assert sorted(f.name for f in tmp_path.rglob('*') if f.is_file()) == ['a.png', 'b.png', 'c.png']
    with_alpha = draw_predictions(torch.cat((images[0], images[0][:1])), prediction, tmp_path / 'd.png', {1: 'cat'})
    assert with_alpha.read_bytes() == file.read_bytes()
    for shape in ((2, 8, 8), (5, 8, 8), (8, 8)):
        with pytest.raises(ValueError, match=re.escape(f'The image is of shape {shape}, expected (3, H, W)')):
            draw_predictions(torch.zeros(shape), prediction, tmp_path / 'e.png')


def damage(content, change):
    exec(change, dict(c=content, a=content['annotations'][0]))
    return content


@pytest.mark.parametrize('change, error', [
    ('c.pop("categories")', 'has no list of categories'),
    ('c["images"] = 3', 'has no list of images'),
    ('c["categories"] = []', 'of an image or a category that the file does not list'),
    ('c["categories"][0]["id"] = 0', 'id of entry 0 of categories is 0, expected a whole number, 1 or more'),
    ('a.pop("bbox")', 'entry 0 of annotations has no bbox'),
    ('a["bbox"] = [1, 2, 3]', r'bbox of entry 0 of annotations is \[1, 2, 3\], expected x, y, width and height'),
    ('a["bbox"][2] = float("nan")', 'bbox of entry 0 of annotations is .*nan'),
    ('a["image_id"] = 99', 'of an image or a category that the file does not list'),
    ('a.pop("segmentation")', 'annotation 1 has no segmentation'),
    ('c["images"][0]["file_name"] = "none.png"', 'There is no image .*none.png'),
    ('c["images"][0].pop("height")', 'entry 0 of images has no height'),
    ('a["segmentation"] = [[1, 1, 9, 1, 9, 9]]; c["annotations"] = [a]; c["images"][0]["width"] = 17',
     'coins-0-0.png is 135 x 155 pixels, and 17 x 155'),
    ('a["bbox"][2] = 10 ** 400', 'bbox of entry 0 of annotations is'),
    ('a["bbox"][2] = True', 'bbox of entry 0 of annotations is'),
    ('a["category_id"] = [1]', r'category_id of entry 0 of annotations is \[1\], expected the id of a category'),
    ('a["image_id"] = [1]', r'image_id of entry 0 of annotations is \[1\], expected the id of an image'),
    ('c["images"][0]["id"] = [1]', r'id of entry 0 of images is \[1\], expected a whole number or a string'),
    ('c["images"][1]["id"] = "x"', 'some ids of images are numbers and some strings'),
    ('c["images"][1]["id"] = 1', 'several images have the id 1'),
    ('c["images"][0]["file_name"] = 5', 'file_name of entry 0 of images is 5, expected a string'),
    ('c["images"][0]["height"] = "155"', "height of entry 0 of images is '155', expected a whole number"),
    ('c["categories"].append(dict(c["categories"][0]))', 'several categories have the id 1'),
    ('c["categories"][0]["id"] = True', 'id of entry 0 of categories is True'),
    ('c["categories"][0]["name"] = None', 'name of entry 0 of categories is None'),
    ('c["annotations"][1]["id"] = 1', 'several annotations have the id 1'),
    ('a["id"] = 0', 'id of entry 0 of annotations is 0, expected .*COCOeval takes 0 for none'),
    ('a["iscrowd"] = "no"', "iscrowd of entry 0 of annotations is 'no', expected 0 or 1"),
    ('a["area"] = "x"', "area of entry 0 of annotations is 'x', expected a number"),
    *((f'a["segmentation"] = {value}', 'the segmentation of annotation 1 is neither .* of 135 x 155 pixels')
      for value in (
          '"a cat"', '5', '[1, 2, 3, 4, 5, 6]', '[[1, 2, 3, 4, 5, "6"]]', '[[1, 2]]', '[[1, 2, 3, 4, 5, float("nan")]]',
          'dict(counts=[135 * 155])',
          'dict(size=[155., 135.], counts=[135 * 155])',
          'dict(size=[135, 155], counts=[135 * 155])', 'dict(size=[155, 135], counts=[135 * 155 - 1])',
          'dict(size=[155, 135], counts=[-1, 135 * 155 + 1])', 'dict(size=[155, 135], counts="a cat")',
          'dict(a["segmentation"], counts=a["segmentation"]["counts"][:-1])',
          'dict(a["segmentation"], counts=a["segmentation"]["counts"] + "1")')),
])
def test_damaged_annotations(photos, tmp_path, change, error):
    file = tmp_path / 'annotations.json'
    file.write_text(json.dumps(damage(json.loads((photos / 'annotations.json').read_text()), change)))
    with pytest.raises((ValueError, FileNotFoundError), match=error) as raised:
        CocoImages(photos / 'images', file)[0]
    assert str(file) in str(raised.value) and '\n' not in str(raised.value)


def test_annotations_as_coco_has_them(tmp_path):
    """Polygons, run lengths in numbers and compressed by pycocotools, more fields, ids that are strings."""
    rng = np.random.default_rng(0)
    masks = [rng.random((40, 1 + 30 * i)) < density for i, density in enumerate((0, 1, 0.5, 0.01, 0.99))]
    masks += [np.arange(h * w).reshape(h, w) // n % 2 == 1 for h, w, n in ((400, 300, 4321), (7, 9, 1), (1, 1, 1))]
    content = dict(info={}, licenses=[], categories=[dict(id=7, name='cat', supercategory='animal')])
    content['images'] = [
        dict(id=f'image {i}', file_name=f'{i}.jpg', height=mask.shape[0], width=mask.shape[1], license=1)
        for i, mask in enumerate(masks)]
    forms = []
    for i, mask in enumerate(masks):
        code = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
        runs = [(value, len(list(run))) for value, run in itertools.groupby(mask.ravel(order='F').tolist())]
        forms += [
            (i, dict(size=list(mask.shape), counts=code['counts'].decode()), int(mask.sum())),
            (i, dict(size=list(mask.shape), counts=[0] * runs[0][0] + [n for _, n in runs]), int(mask.sum()))]
    polygons = [[10, 10.5, 20, 10, 20, 30.25], [50, 50, 60, 50, 60, 60, 50, 60]]
    forms += [(5, polygons, None), (5, [], None), (5, [[]], None)]
    content['annotations'] = [
        dict(id=900100000000 + n, image_id=f'image {i}', category_id=7, bbox=[0.5, 0, 2, 3], segmentation=form, note='')
        for n, (i, form, _) in enumerate(forms)]
    content['annotations'][0].update(iscrowd=1, area=7.25)
    file = tmp_path / 'annotations.json'
    file.write_text(json.dumps(content))
    coco = read_coco(file)
    assert [a['area'] for a in coco.dataset['annotations']] == [7.25] + [6] * (len(forms) - 1)
    for entry, (_, form, area) in zip(coco.dataset['annotations'], forms):
        if area is not None:
            assert coco.annToMask(entry).sum() == area
        assert bool(entry['segmentation']) == (form not in ([], [[]]))


def test_damaged_files(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'There is no file .*none.json'):
        CocoImages(photos / 'images', tmp_path / 'none.json')
    with pytest.raises(FileNotFoundError, match='There is no folder .*none'):
        CocoImages(tmp_path / 'none', photos / 'annotations.json')
    whole = (photos / 'annotations.json').read_text()
    for text in (whole[:-50], '', '\0'):
        (tmp_path / 'cut.json').write_text(text)
        with pytest.raises(ValueError, match='cut.json cannot be read as JSON'):
            CocoImages(photos / 'images', tmp_path / 'cut.json')
    for file in (photos / 'images').iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match='coins-0-0.png cannot be decoded as an image'):
        CocoImages(tmp_path, photos / 'annotations.json')[0]


def test_boxes_without_area(photos, tmp_path):
    """COCO itself has some: left out, with a warning; and images without targets, if they are not wanted."""
    content = json.loads((photos / 'annotations.json').read_text())
    for entry in content['annotations'][:4]:
        entry['bbox'][3] = 0
    file = tmp_path / 'annotations.json'
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r'4 boxes in .*annotations.json have no area'):
        dataset = CocoImages(photos / 'images', file)
    with pytest.warns(UserWarning, match='no area'):
        assert len(CocoImages(photos / 'images', file, keep_empty=False)) == 5
    assert len(dataset) == 6 and dataset[0][1]['boxes'].shape == (0, 4) and dataset[0][1]['masks'].shape[0] == 0
    model = create_model('mask_rcnn', 'mlfm_mobilenetv2_010', **TINY)
    sum(model(*collate([dataset[0], dataset[1]])).values()).backward()


def test_without_pycocotools(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycocotools', None)
    with pytest.raises(RuntimeError, match=r"pip install 'mlfm-zoo\[detection\]'"):
        CocoImages(photos / 'images', photos / 'annotations.json')


def data_of(folder):
    return '--images', folder / 'images', '--annotations', folder / 'annotations.json'


LIGHT = ('--model-kwargs', 'fpn_channels=16', *(f'{name}={value}' for name, value in FEW.items()))


def test_example(photos, tmp_path, capsys, monkeypatch):
    """Training that goes on where it stopped, evaluation, pictures, and what it says of a broken file."""
    monkeypatch.syspath_prepend(ROOT / 'examples')
    from detect import main

    def detect(*arguments):
        main([*map(str, arguments), '--device', 'cpu', '--workers', '0'])
        return capsys.readouterr().out

    output = tmp_path / 'out'
    options = ('train', output, *data_of(photos), '--backbone', 'test_mlfm_resnet', '--min-size', '64',
               '--max-size', '96', '--batch-size', '2', '--warmup', '1', '--eval-every', '1', '--steps', '2', *LIGHT)
    detect(*options)
    with pytest.raises(SystemExit, match='is of a run with other arguments'):
        detect(*options, '--lr', '0.1')
    state = torch.load(output / 'last.pt', weights_only=True)
    torch.save(dict(state, step=1), output / 'last.pt')
    assert 'goes on after step 1' in detect(*options)
    rows = (output / 'log.csv').read_text().splitlines()
    assert rows[0].startswith('step,lr,seconds,loss_classifier')
    assert [row.split(',')[0] for row in rows[1:]] == ['1', '2', '2']
    assert sorted(f.name for f in output.iterdir()) == ['args.json', 'best.safetensors', 'last.pt', 'log.csv']
    assert set(json.loads(detect('evaluate', output, *data_of(photos)))) == {'box', 'mask'}
    image = next((photos / 'images').iterdir())
    detect('predict', output, image, '--pictures', tmp_path / 'pictures', '--min-score', '0')
    assert (tmp_path / 'pictures' / image.name).is_file()
    with pytest.raises(SystemExit, match=r'c.jpg and .*c.png would both be drawn into .*c.png: give them in two calls'):
        detect('predict', output, tmp_path / 'c.jpg', tmp_path / 'c.png', '--pictures', tmp_path / 'pictures')
    with pytest.raises(SystemExit, match='would replace .*: give another folder for --pictures'):
        detect('predict', output, image, '--pictures', image.parent)
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match='has more than 2000 pixels'):
        patch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
        detect('predict', output, image, '--pictures', tmp_path / 'pictures')
    (tmp_path / 'broken.json').write_text('{')
    for file, error in (('broken.json', 'cannot be read as JSON'), ('none.json', 'There is no file')):
        with pytest.raises(SystemExit, match=error):
            detect('evaluate', output, '--images', photos / 'images', '--annotations', tmp_path / file)
    for option in ('--eval-every', '--log-every', '--batch-size'):
        with pytest.raises(SystemExit):
            detect(*options, option, '0')
        assert f"{option}: '0' is not a whole number above 0" in capsys.readouterr().err
    for name, content, error in (
            ('best.safetensors', b'cut', 'best.safetensors does not hold the weights of the detector in .*args.json'),
            ('best.safetensors', None, 'There is no .*best.safetensors: let the training get to its first evaluation'),
            ('args.json', b'{"a', 'args.json does not hold the arguments of a training'),
            ('args.json', b'[]', 'args.json does not hold the arguments of a training'),
            ('args.json', None, 'There is no .*args.json')):
        (output / name).write_bytes(content) if content else (output / name).unlink()
        with pytest.raises(SystemExit, match=error):
            detect('evaluate', output, *data_of(photos))

    # boxes alone, validated where nothing is to be found
    empty = json.loads((photos / 'annotations.json').read_text())
    empty['annotations'] = []
    (tmp_path / 'empty.json').write_text(json.dumps(empty))
    boxes = tmp_path / 'boxes'
    detect(options[0], boxes, *options[2:], '--detector', 'faster_rcnn', '--steps', '1',
           '--val-images', photos / 'images', '--val-annotations', tmp_path / 'empty.json')
    row = dict(zip(*(line.split(',') for line in (boxes / 'log.csv').read_text().splitlines())))
    assert row['box_AP'] == '-1.0' and row['mask_AP'] == 'nan' and (boxes / 'best.safetensors').is_file()


def run(*arguments):
    command = [sys.executable, *map(str, arguments), '--device', 'cpu', '--workers', '0']
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize('backbone, options', [
    ('mlfm_mobilenetv2_035', ()),
    ('dct_resnet50_24s', ('--backbone-kwargs', 'layers=(1,1,1,1)', 'channels=(32,64,128,256)')),
    ('resnet18', ()),
])
def test_overfits_real_images(photos, tmp_path, backbone, options):
    """Mask R-CNN from nothing on six photographs of coins, in minutes."""
    script = ROOT / 'examples' / 'detect.py'
    result = run(
        script, 'train', tmp_path, *data_of(photos), '--backbone', backbone, *options, '--min-size', '160',
        '--max-size', '256', '--batch-size', '2', '--steps', '150', '--milestones', '120', '--warmup', '50',
        '--lr', '0.01', '--eval-every', '150',
        '--model-kwargs', 'fpn_channels=64', 'box_batch_size_per_image=32', 'rpn_post_nms_top_n_train=200')
    assert result.returncode == 0, result.stderr
    measured = json.loads(run(script, 'evaluate', tmp_path, *data_of(photos)).stdout)
    assert measured['box']['AP'] > 0.5 and measured['mask']['AP'] > 0.5, measured


@pytest.mark.slow
def test_two_processes(photos, tmp_path):
    """Each trains on its half of a step, and both measure the same."""
    result = run(
        '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', ROOT / 'examples' / 'detect.py',
        'train', tmp_path, *data_of(photos), '--backbone', 'mlfm_mobilenetv2_010', '--min-size', '64',
        '--max-size', '96', '--batch-size', '4', '--steps', '2', '--eval-every', '2', *LIGHT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('mask_AP75') == 1, result.stdout
