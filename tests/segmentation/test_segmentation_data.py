"""Folders of images and masks: layouts, palettes, faults, augmentation."""

import json
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from helpers.shape_folders import LABELS as SHAPES
from helpers.shape_folders import shapes, write_shapes
from mlfm_zoo.segmentation import TrainSettings
from mlfm_zoo.segmentation.data import (
    IGNORE_INDEX,
    LABELS,
    Labels,
    SegmentationDataset,
    eval_transform,
    find_samples,
    load_labels,
    read_image,
    read_labels,
    train_transform,
    voc_colors,
)
from mlfm_zoo.segmentation.pictures import color_labels, mask_of

PLAIN = eval_transform([0.5] * 3, [0.5] * 3)


def put(file, array, mode=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if mode == 'P':
        image.putpalette([*range(256)] * 3)
    image.save(file)


@pytest.mark.parametrize('images, masks, labels', [
    ('val', 'valannot', 'camvid'), ('JPEGImages', 'SegmentationClass', 'voc'),
    ('images/validation', 'annotations/validation', 'ade20k'), ('images/val', 'masks/val', 'camvid'),
    ('val/images', 'val/masks', 'camvid')])
def test_layouts(tmp_path, images, masks, labels):
    mask = np.arange(24).reshape(4, 6) % 12
    for name in ('a', 'b'):
        put(tmp_path / images / f'{name}.jpg', np.zeros((4, 6, 3)))
        put(tmp_path / masks / f'{name}.png', mask, 'P' if labels == 'voc' else None)
    (tmp_path / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    (tmp_path / 'ImageSets' / 'Segmentation' / 'val.txt').write_text('a\nb\n')
    assert [(s.image.stem, s.mask.stem) for s in find_samples(tmp_path, 'val')] == [('a', 'a'), ('b', 'b')]
    image, truth = SegmentationDataset(tmp_path, 'val', LABELS[labels], PLAIN)[0]
    assert image.shape == (3, 4, 6) and image.dtype == torch.float32 and type(image) is torch.Tensor
    classes = {'camvid': [*range(11), IGNORE_INDEX], 'voc': range(12), 'ade20k': [IGNORE_INDEX, *range(11)]}[labels]
    assert torch.equal(truth, torch.tensor(classes)[torch.from_numpy(mask)])


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
    file.write_text(json.dumps(SHAPES), encoding='utf-8-sig')
    labels = load_labels(str(file))
    assert labels == Labels.from_json(SHAPES)
    assert labels.names == ('ground', 'disc', 'square') and labels.void_colors == ((255, 255, 255),)


@pytest.mark.parametrize('text, message', [
    ('{"names": ["a"], "values": [0, 1]}', 'There are 1 names, 2 values and 1 colors'),
    ('{"names": ["a"], "values": [65536]}', 'A value of the labels is 65536, expected'),
    ('{"names": ["a"], "values": [-1]}', 'A value of the labels is -1, expected'),
    ('{"names": ["a"], "values": [255.5]}', r'values is \[255.5\], expected Tuple\[int, ...\]'),
    ('{"names": ["a"], "colors": [[0, 0, 256]]}', 'A part of a color of the labels is 256, expected'),
    ('{"names": ["a"], "color": 1}', "unexpected keyword argument 'color'"),
    ('[]', 'cannot be used'),
    ('[' * 100_000, 'cannot be used'),
])
def test_faults_of_labels(tmp_path, text, message):
    (tmp_path / 'labels.json').write_text(text)
    with pytest.raises(ValueError, match=f'labels.json .*{message}') as error:
        load_labels(str(tmp_path / 'labels.json'))
    assert '\n' not in str(error.value)


def tiff(array):
    """A gray TIFF of any type of numbers, byte by byte."""
    height, width = array.shape
    sample_format = {'u': 1, 'i': 2, 'f': 3}[array.dtype.kind]
    fields = [(256, width), (257, height), (258, 8 * array.itemsize), (259, 1), (262, 1), (273, 122), (277, 1),
              (279, array.nbytes), (339, sample_format)]
    head = b'II*\0' + struct.pack('<IH', 8, len(fields))
    return head + b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in fields) + bytes(4) + array.tobytes()


def test_masks_of_any_numbers(tmp_path):
    """A value is read as it is, whatever its type, or named."""
    file = tmp_path / 'mask.tif'
    labels = Labels(('a', 'b', 'c', 'd'), values=(0, 1, 4464, 254), void=(255,))
    for kind in ('u1', 'i1', 'u2', 'i2', 'i4', 'f4'):
        file.write_bytes(tiff(np.array([[0, 1, 1]], kind)))
        assert read_labels(file, labels).tolist() == [[0, 1, 1]], kind
        assert read_labels(file, Labels(('a', 'b'), (3, 4), void=(0, 1))).eq(IGNORE_INDEX).all(), kind
    for kind, value in (('i1', -1), ('i1', -2), ('i2', -1), ('i4', -1), ('i4', 70000), ('i4', 65536), ('f4', 255.5),
                        ('f4', 0.5), ('f4', np.nan), ('u2', 4465)):
        file.write_bytes(tiff(np.array([[0, value]], kind)))
        with pytest.raises(ValueError, match=f'mask.tif has pixels of value {value}, expected those of the 4 classes'):
            read_labels(file, labels)


def test_photographs_are_upright(tmp_path):
    """As their mask, which was drawn on what a viewer shows."""
    stored = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / 'images' / 'train').mkdir(parents=True)
    Image.fromarray(stored).save(tmp_path / 'images' / 'train' / 'a.png', exif=exif)
    upright = np.rot90(stored, -1)
    mask = upright[..., 0] % 11
    put(tmp_path / 'masks' / 'train' / 'a.png', mask)
    image, truth = SegmentationDataset(tmp_path, 'train', LABELS['camvid'], eval_transform([0.] * 3, [1.] * 3))[0]
    assert np.array_equal((255 * image).round().byte().permute(1, 2, 0), upright) and np.array_equal(truth, mask)


def test_lists_of_names(tmp_path):
    """VOC's, with blanks in names, names that are not UTF-8 and a byte order mark; two files of a name are refused."""
    latin = os.fsdecode(b'caf\xe9')
    for name in ('a b', 'c', latin):
        for folder in ('JPEGImages', 'SegmentationClass'):
            put(tmp_path / folder / f'{name}.png', np.zeros((4, 6)))
    names = tmp_path / 'ImageSets' / 'Segmentation' / 'val.txt'
    names.parent.mkdir(parents=True)
    names.write_bytes('\ufeffa b\r\n\n  c \n'.encode() + b'caf\xe9')
    assert [sample.mask.stem for sample in find_samples(tmp_path, 'val')] == ['a b', 'c', latin]
    names.write_text('a b', encoding='utf-16')
    with pytest.raises(ValueError, match='is missing, expected an image and a mask'):
        find_samples(tmp_path, 'val')
    names.write_text('\n \n')
    with pytest.raises(ValueError, match='val.txt is empty, expected images or their names'):
        find_samples(tmp_path, 'val')
    put(tmp_path / 'JPEGImages' / 'c.jpg', np.zeros((4, 6, 3)))
    with pytest.raises(ValueError, match='c.png and c.jpg have one name'):
        find_samples(tmp_path, 'val')


@pytest.mark.parametrize('fault, message', [
    (lambda folder: put(folder / 'valannot' / '000.png', np.zeros((48, 60))),
     '000.png is 60 x 48 pixels and its image .*000.png 64 x 48'),
    (lambda folder: put(folder / 'valannot' / '000.png', np.full((48, 64), 7)),
     '000.png has pixels of value 7, expected those of the 3 classes'),
    (lambda folder: put(folder / 'valannot' / '000.png', np.full((48, 64, 3), 7)),
     '000.png has pixels of color #070707'),
    (lambda folder: (folder / 'valannot' / '001.png').unlink(), 'valannot/001 is missing'),
    (lambda folder: (folder / 'valannot' / '000.png').write_bytes(b'no picture'), 'valannot/000.png cannot be decoded'),
    (lambda folder: (folder / 'val').rename(folder / 'other'), 'has no images and masks of val, expected'),
    (lambda folder: [file.unlink() for file in (folder / 'val').iterdir()], 'val is empty, expected images or'),
])
def test_faults_name_the_file(tmp_path, fault, message):
    write_shapes(tmp_path, {'val': 2})
    fault(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        SegmentationDataset(tmp_path, 'val', Labels.from_json(SHAPES), PLAIN)[0]
    assert '\n' not in str(error.value)


def test_images_of_16_bits(tmp_path):
    Image.fromarray(np.array([[0, 1000, 65535]], np.uint16)).save(tmp_path / 'deep.png')
    assert read_image(tmp_path / 'deep.png', 1).tolist() == [[[0, 4, 255]]]  # of 255, 1000 / 65535 are 3.9
    with pytest.raises(ValueError, match='in_chans is 2, expected 1, 3 or 4'):
        read_image(tmp_path / 'deep.png', 2)


@pytest.mark.parametrize('in_chans', [1, 3, 4])
def test_augmentation(in_chans):
    """Image and mask move together, and what is filled in is void."""
    torch.manual_seed(0)
    _, mask = shapes(0)
    labels = torch.from_numpy(np.array(mask)).long().clamp(max=2)
    image = (labels * 100).to(torch.uint8).expand(in_chans, -1, -1)
    settings = TrainSettings('', crop_size=(40, 56), img_size=(48, 64), scale=(0.6, 1.5), vflip=0.5, color_jitter=0)
    transform = train_transform(settings, [0.5] * in_chans, [0.5] * in_chans)
    for _ in range(8):
        x, y = transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
        assert x.shape == (in_chans, 40, 56) and y.shape == (40, 56)
        levels = torch.stack([x[0][y == label].median() for label in range(3) if (y == label).sum() > 20])
        assert (levels.diff() > 0.5).all()
        inside = y != IGNORE_INDEX
        assert not inside.all() or x.std() > 0


@pytest.mark.parametrize('size, img_size, scaled', [
    ((48, 64), (48, 64), (48, 64)),  # scale 1 of an image of that size is the image
    ((48, 64), (24, 96), (24, 32)), ((48, 64), (96, 32), (24, 32)), ((64, 48), (32, 96), (32, 24))])
def test_scale_fits_height_and_width(size, img_size, scaled):
    """The image becomes as large as fits into height and width, times the scale; what is left of the crop is void."""
    settings = TrainSettings('', crop_size=(100, 200), img_size=img_size, scale=(1, 1), color_jitter=0)
    transform = train_transform(settings, [0.], [1.])
    _, mask = transform(tv_tensors.Image(torch.zeros(1, *size, dtype=torch.uint8)),
                        tv_tensors.Mask(torch.zeros(size, dtype=torch.long)))
    inside = mask != IGNORE_INDEX
    assert (inside.any(1).sum(), inside.any(0).sum()) == scaled
