"""CocoImages against torchvision and pycocotools; damaged files."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coder
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from helpers.detectors import TINY
from mlfm_zoo.detection import CocoImages, collate, create_model, evaluate


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


@pytest.mark.parametrize('change, error', [
    ('c.pop("categories")', 'annotation 1 is damaged .the file does not list its image or its category'),
    ('c["images"] = 3', 'is not a JSON file in the form of COCO'),
    ('c["categories"].append(dict(id=0, name="background"))', 'one of id 0, the background: number them from 1'),
    ('a.pop("bbox")', "annotation 1 is damaged .KeyError: 'bbox'"),
    ('a["bbox"][2] = float("nan")', 'annotation 1 is damaged .its bbox or area is not finite'),
    ('a["bbox"][2] = 1e300', 'annotation 1 is damaged .its bbox or area is not finite or far too large'),
    ('c["images"][0].pop("file_name")', "lacks a name of a file or class .KeyError: 'file_name'"),
    ('c["images"][0]["file_name"] = 5', 'lacks a name of a file or class .TypeError'),
    ('c["categories"][0].pop("name")', "lacks a name of a file or class .KeyError: 'name'"),
    ('c["images"][0]["height"] = "155"', 'image 1 is damaged .its height or width is no number of pixels'),
    ('a["image_id"] = 99', 'annotation 1 is damaged .the file does not list its image or its category'),
    ('c["annotations"][1]["id"] = 1', 'annotation 1 is damaged .its id is 0 or given twice'),
    ('a["id"] = 0', 'annotation 0 is damaged .its id is 0 or given twice'),
    ('a.pop("segmentation")', 'annotation 1 has no segmentation: add it, or ask for masks=False'),
    *((f'a["segmentation"] = {value}', 'annotation 1 is damaged') for value in (
        '"a cat"', '5', '[1, 2, 3, 4, 5, 6]', '[[1, 2, 3, 4]]', '[[1, 2, 3, 4, 5, "6"]]',
        '[[1, 2, 3, 4, 5, float("nan")]]', '[[1, 2, 3, 4, 5, 1000]]', '[[1, 2, 3, 4, 5, 6, 7]]',
        'dict(size=[135, 155], counts=[135 * 155])', 'dict(size=[155, 135], counts=[-1, 135 * 155 + 1])',
        'dict(size=[155, 135], counts="a cat")', 'dict(size=[155, 135], counts="")',
        'dict(size=[155, 135], counts="zzzzzzzzzzz")', 'dict(size=[155, 135], counts="o`U2")')),
])
def test_damaged_annotations(photos, changed, change, error):
    file = changed(lambda content: exec(change, dict(c=content, a=content['annotations'][0])))
    with pytest.raises(ValueError, match=error) as raised:
        CocoImages(photos / 'images', file)[0]
    assert str(file) in str(raised.value) and '\n' not in str(raised.value)


@pytest.mark.parametrize('crowd', [
    [[1, 2, 3, 4, 5, 1e9]], [[1, 2, 3, 4]], dict(size=[155, 135], counts=[-1, 135 * 155 + 1])])
def test_damaged_truth(changed, crowd):
    """A `COCO` of the caller: what would end the interpreter is an error here too."""
    coco = COCO(changed(lambda content: content['annotations'][0].update(segmentation=crowd, iscrowd=1)))
    with pytest.raises(ValueError, match='^The truth: annotation 1 is damaged'):
        evaluate(torch.nn.Linear(1, 1), [], coco)


@pytest.mark.parametrize('orientation, turned', [
    (1, np.array([[9, 0, 0], [0, 0, 0]])), (3, np.array([[0, 0, 0], [0, 0, 9]]))])
def test_orientation(tmp_path, orientation, turned):
    """A box is where the annotator saw it, in the upright image; with a byte order mark before the annotations."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.array([[9, 0, 0], [0, 0, 0]], np.uint8)).save(tmp_path / 'a.png', exif=exif)
    y, x = map(int, np.argwhere(turned)[0])
    (tmp_path / 'a.json').write_text(json.dumps(dict(
        images=[dict(id=1, file_name='a.png', height=2, width=3)], categories=[dict(id=1, name='dot')],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[x, y, 1, 1])])), encoding='utf-8-sig')
    image, target = CocoImages(tmp_path, tmp_path / 'a.json', masks=False, in_chans=1)[0]
    np.testing.assert_allclose(255 * image[0], turned, rtol=1e-6)
    left, top, right, bottom = target['boxes'][0].int().tolist()
    assert image[0, top:bottom, left:right].item() == image.max()


def test_forms_of_annotations(tmp_path):
    """Masks as polygons and as run lengths in numbers and compressed; more fields, ids that are strings, no area."""
    mask = np.zeros((40, 31), dtype=np.uint8)
    mask[10:30, 5:20] = 1
    noise = np.random.default_rng(0).random(mask.shape) < np.linspace(0, 1, 31)  # runs of all lengths
    runs = [len(list(run)) for _, run in itertools.groupby(mask.ravel(order='F').tolist())]
    compressed, of_noise = (
        coder.encode(np.asfortranarray(m, dtype=np.uint8))['counts'].decode() for m in (mask, noise))
    forms = [dict(size=[40, 31], counts=runs), dict(size=[40, 31], counts=compressed),
             [[5, 10, 20, 10, 20, 30, 5, 30]], dict(size=[40, 31], counts=of_noise), [[]]]
    entry = dict(image_id='a', category_id=7, bbox=[5, 10, 15, 20], note='')
    annotations = [dict(entry, id=900100000000 + n, segmentation=form) for n, form in enumerate(forms)]
    annotations[4].update(iscrowd=1, area=7.25)
    file = tmp_path / 'annotations.json'
    file.write_text(json.dumps(dict(
        info={}, images=[dict(id='a', file_name='a.png', height=40, width=31, license=1)], annotations=annotations,
        categories=[dict(id=7, name='cat', supercategory='animal')])))
    Image.new('L', (31, 40)).save(tmp_path / 'a.png')
    data = CocoImages(tmp_path, file)
    image, target = data[0]
    assert image.shape == (3, 40, 31) and target['image_id'] == 'a' and target['labels'].tolist() == [7] * 4
    assert target['boxes'].dtype == torch.float32 and target['boxes'].tolist() == [[5, 10, 20, 30]] * 4
    assert all(np.array_equal(found, m) for found, m in zip(target['masks'], (mask, mask, mask, noise), strict=True))
    assert [entry['area'] for entry in data.coco.anns.values()] == [300, 300, 300, 300, 7.25]
    assert not data.coco.anns[900100000004]['segmentation']


def test_damaged_files(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none.json'):
        CocoImages(photos / 'images', tmp_path / 'none.json')
    whole = (photos / 'annotations.json').read_text()
    for text in (whole[:-50], '5'):
        (tmp_path / 'cut.json').write_text(text)
        with pytest.raises(ValueError, match='cut.json is not a JSON file in the form of COCO'):
            CocoImages(photos / 'images', tmp_path / 'cut.json')
    with pytest.raises(ValueError, match='There is no image at .*coins-0-0.png'):
        CocoImages(tmp_path, photos / 'annotations.json')[0]
    Image.new('L', (17, 155)).save(tmp_path / 'coins-0-0.png')
    with pytest.raises(ValueError, match='coins-0-0.png is 17 x 155 pixels, .* and 135 x 155 in .*annotations.json'):
        CocoImages(tmp_path, photos / 'annotations.json')[0]


def test_boxes_without_area(photos, changed):
    """COCO itself has some: left out, with a warning; and images without targets, if they are not wanted."""
    file = changed(lambda content: [entry.update(bbox=[5, 5, 9, 0]) for entry in content['annotations'][:4]])
    with pytest.warns(UserWarning, match=r'4 boxes in .*changed.json have no area'):
        dataset = CocoImages(photos / 'images', file)
    with pytest.warns(UserWarning, match='no area'):
        assert len(CocoImages(photos / 'images', file, keep_empty=False)) == 5
    assert len(dataset) == 6 and dataset[0][1]['boxes'].shape == (0, 4) and dataset[0][1]['masks'].shape[0] == 0
    model = create_model('mask_rcnn', 'mlfm_mobilenetv2_010', **TINY)
    sum(model(*collate([dataset[0], dataset[1]])).values()).backward()
