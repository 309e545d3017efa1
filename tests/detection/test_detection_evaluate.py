"""Average precision against pycocotools used literally."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from torch import nn
from torch.utils.data import DataLoader
from torchvision.ops import masks_to_boxes

from mlfm_zoo.detection import CocoImages, collate, evaluate


class Guess(nn.Module):
    """Predicts the truth, moved, with a false alarm and a miss, or nothing at all."""

    def __init__(self, dataset, blind=False):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.targets = [target for _, target in dataset]
        self.blind = blind

    def forward(self, images):
        rng = np.random.default_rng(0)
        predictions = []
        for image, target in zip(images, self.targets):
            masks = [ndimage.shift(mask, rng.integers(-4, 5, 2), order=0) for mask in target['masks'].numpy()[1:]]
            masks = torch.from_numpy(np.stack([*masks, np.eye(*image.shape[-2:], dtype=np.uint8)]))
            prediction = dict(
                boxes=masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]), masks=masks[:, None].float(),
                labels=torch.tensor([1] * (len(masks) - 1) + [2]), scores=torch.from_numpy(rng.random(len(masks))))
            predictions.append({k: v[:0] if self.blind else v for k, v in prediction.items()})
        self.targets = self.targets[len(images):] + self.targets[:len(images)]
        return predictions


def crowd(content):
    """Adds a crowd, a second class and a polygon to annotations."""
    content['categories'].append(dict(id=2, name='note'))
    content['annotations'][3]['iscrowd'] = 1
    content['annotations'][5]['category_id'] = 2
    content['annotations'][6].update(segmentation=[[10.0, 10.0, 60.0, 12.0, 50.0, 70.0]], area=1500.0)


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


def test_evaluate_against_pycocotools(photos, changed):
    crowded = changed(crowd)
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
def test_masks_are_measured_where_both_have_them(photos, changed, blind, truth_has, model_has):
    """In a file and in targets, with detections and without any."""
    dataset = CocoImages(photos / 'images', photos / 'annotations.json')
    model = Guess(dataset, blind)
    forward = model.forward
    if not model_has:
        model.forward = lambda images: [{k: v for k, v in p.items() if k != 'masks'} for p in forward(images)]
    without = changed(lambda content: [entry.pop('segmentation') for entry in content['annotations']])
    samples = [(image, {k: v for k, v in t.items() if truth_has or k != 'masks'}) for image, t in dataset]
    loader = DataLoader(samples, 2, collate_fn=collate)
    by_targets, by_file = (evaluate(model, loader, truth) for truth in (None, dataset.coco if truth_has else without))
    for measured in (by_targets, by_file):
        assert list(measured) == (['box', 'mask'] if truth_has and model_has else ['box'])
        assert all((scores['AP'] == 0) == blind for scores in measured.values())
    if truth_has:  # without crowds the targets are the truth of the file
        assert all(by_targets[kind] == pytest.approx(by_file[kind]) for kind in by_file)
    with pytest.raises(ValueError, match='The loader is empty'):
        evaluate(model, [])
