"""Folders of images and masks: layouts, palettes, faults, augmentation."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from helpers.shape_folders import LABELS as SHAPES
from helpers.shape_folders import shapes, write_shapes
from mlfm_zoo.segmentation.data import (
    IGNORE_INDEX,
    LABELS,
    Labels,
    SegmentationDataset,
    find_samples,
    load_labels,
    read_image,
    read_labels,
    train_transform,
    voc_colors,
)
from mlfm_zoo.segmentation.pictures import color_labels, mask_of


def put(file, array, mode=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if mode == 'P':
        image.putpalette(np.arange(768) % 256)
    image.save(file)


def test_layouts(tmp_path):
    image, mask = np.zeros((4, 6, 3)), np.arange(24).reshape(4, 6) % 12
    for name in ('a', 'b'):
        put(tmp_path / 'camvid' / 'val' / f'{name}.png', image)
        put(tmp_path / 'camvid' / 'valannot' / f'{name}.png', mask)
        put(tmp_path / 'voc' / 'JPEGImages' / f'{name}.jpg', image)
        put(tmp_path / 'voc' / 'SegmentationClass' / f'{name}.png', mask, 'P')
        put(tmp_path / 'ade' / 'images' / 'validation' / f'{name}.jpg', image)
        put(tmp_path / 'ade' / 'annotations' / 'validation' / f'{name}.png', mask)
        put(tmp_path / 'own' / 'images' / 'val' / f'{name}.jpg', image)
        put(tmp_path / 'own' / 'masks' / 'val' / f'{name}.png', mask)
        put(tmp_path / 'other' / 'val' / 'images' / f'{name}.jpg', image)
        put(tmp_path / 'other' / 'val' / 'masks' / f'{name}.png', mask)
    sets = tmp_path / 'voc' / 'ImageSets' / 'Segmentation'
    sets.mkdir(parents=True)
    (sets / 'val.txt').write_text('b\n')
    for folder, labels, count in (('camvid', 'camvid', 2), ('voc', 'voc', 1), ('ade', 'ade20k', 2),
                                  ('own', 'camvid', 2), ('other', 'camvid', 2)):
        samples = find_samples(tmp_path / folder, 'val')
        assert len(samples) == count and all(s.image.stem == s.mask.stem for s in samples), folder
        image_, labels_ = SegmentationDataset(tmp_path / folder, 'val', LABELS[labels])[0]
        assert image_.shape == (3, 4, 6) and image_.dtype == torch.float32 and type(image_) is torch.Tensor
        expected = torch.from_numpy(mask)
        if labels == 'camvid':
            expected = torch.where(expected == 11, IGNORE_INDEX, expected)
        elif labels == 'ade20k':
            expected = torch.where(expected == 0, IGNORE_INDEX, expected - 1)
        assert torch.equal(labels_, expected), folder


def test_palettes(tmp_path):
    assert voc_colors(22)[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert voc_colors(22)[15] == (192, 128, 128) and voc_colors(22)[20] == (0, 64, 128)
    assert {name: len(labels.names) for name, labels in LABELS.items()} == {
        'camvid': 11, 'voc': 21, 'ade20k': 150, 'membrane': 2}
    for name in ('camvid', 'voc', 'membrane'):
        labels = LABELS[name]
        truth = torch.randint(len(labels.names), (9, 7))
        put(tmp_path / 'rgb.png', color_labels(truth, labels))
        assert torch.equal(read_labels(tmp_path / 'rgb.png', labels), truth)
    for labels in (*LABELS.values(), Labels(('a', 'b'), values=(0, 300))):
        truth = torch.randint(len(labels.names), (9, 7))
        mask_of(truth, labels).save(tmp_path / 'mask.png')
        assert torch.equal(read_labels(tmp_path / 'mask.png', labels), truth)
    with pytest.raises(ValueError, match='rgb.png cannot be read: a color of the labels stands for two classes'):
        read_labels(tmp_path / 'rgb.png', LABELS['ade20k'])
    Image.fromarray(np.array([[True, False]])).save(tmp_path / 'bits.png')
    assert read_labels(tmp_path / 'bits.png', Labels(('no', 'yes'))).tolist() == [[1, 0]]


def test_labels_of_a_file(tmp_path):
    file = tmp_path / 'labels.json'
    file.write_text(json.dumps(SHAPES))
    labels = load_labels(str(file))
    assert labels.names == ('ground', 'disc', 'square') and labels.void_colors == ((255, 255, 255),)
    file.write_text('{"names": ["a"], "values": [0, 1]}')
    with pytest.raises(ValueError, match='There are 1 names, 2 values and 1 colors, expected one of each'):
        load_labels(str(file))
    with pytest.raises(ValueError, match='nothing names no labels: give camvid, voc, ade20k, membrane or a JSON'):
        load_labels('nothing')


@pytest.mark.parametrize('fault, message', [
    (lambda folder: put(folder / 'valannot' / '000.png', np.zeros((48, 60))),
     '000.png is 60 x 48 pixels and its image .*000.png 64 x 48'),
    (lambda folder: put(folder / 'valannot' / '000.png', np.full((48, 64), 7)),
     '000.png has pixels of value 7, expected those of the 3 classes'),
    (lambda folder: put(folder / 'valannot' / '000.png', np.full((48, 64, 3), 7)),
     '000.png has pixels of color #070707'),
    (lambda folder: (folder / 'valannot' / '001.png').unlink(), 'valannot/001 is missing'),
    (lambda folder: (folder / 'val' / '000.png').write_bytes(b'no picture'), 'val/000.png cannot be decoded'),
    (lambda folder: (folder / 'valannot' / '000.png').write_bytes(b''), 'valannot/000.png cannot be decoded'),
    (lambda folder: (folder / 'val').rename(folder / 'other'), 'has no images and masks of val, expected'),
    (lambda folder: [file.unlink() for file in (folder / 'val').iterdir()], 'val is empty, expected images'),
])
def test_faults_name_the_file(tmp_path, fault, message):
    write_shapes(tmp_path, {'val': 2})
    fault(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        SegmentationDataset(tmp_path, 'val', Labels.from_json(SHAPES))[0]
    assert '\n' not in str(error.value)


def test_unfit_images(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / 'deep.png')
    with pytest.raises(ValueError, match='deep.png is of mode I;16, expected 8 bits'):
        read_image(tmp_path / 'deep.png', 1)
    with pytest.raises(ValueError, match='in_chans is 2, expected 1, 3 or 4'):
        read_image(tmp_path / 'deep.png', 2)


@pytest.mark.parametrize('in_chans', [1, 3, 4])
def test_augmentation(in_chans):
    """Image and mask move together, and what is filled in is void."""
    torch.manual_seed(0)
    _, mask = shapes(0)
    labels = torch.from_numpy(np.array(mask)).long().clamp(max=2)
    image = (labels * 100).to(torch.uint8).expand(in_chans, -1, -1)
    transform = train_transform((40, 56), in_chans, (48, 64), (0.6, 1.5), vflip=0.5, color_jitter=0)
    for _ in range(8):
        x, y = transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
        assert x.shape == (in_chans, 40, 56) and y.shape == (40, 56)
        levels = torch.stack([x[0][y == label].median() for label in range(3) if (y == label).sum() > 20])
        assert (levels.diff() > 0.5).all()
        inside = y != IGNORE_INDEX
        assert not inside.all() or x.std() > 0
