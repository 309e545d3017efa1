"""Coefficients of JPEG files against the stem and Pillow, the dataset, and loaders."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_dataset, create_loader, resolve_model_data_config

from helpers.jpeg_mutations import as_jpeg, check, photo, pixels_of, write_jpegs
from mlfm_zoo.dct import DCTStem, JPEGCoefficients, read_coefficients, select_channels, store_jpegs
from mlfm_zoo.dct.jpeg_file import parse_jpeg, read_jpeg

PLAIN = ([0.0] * 192, [1.0] * 192)


def sampled(factors, units=3):
    """A file of other sampling factors, for units of blocks in one row.

    It has the entropy-coded data of an RGB image without subsampling, whose planes share their tables, so that the same
    blocks are there in another order; and little contrast, since levels are counted from another block then.
    """
    blocks = sum(h * v for h, v in factors)
    image = Image.blend(photo(8, 8 * units * blocks, 2), Image.new('RGB', (8 * units * blocks, 8), 'gray'), 0.9)
    content = bytearray(as_jpeg(image, quality=95, keep_rgb=True))
    content[content.index(b'Adobe') + 11] = 1
    at = content.index(b'\xff\xc0')
    height = 8 * max(v for _, v in factors) - 3
    width = 8 * max(h for h, _ in factors) * units - 5
    content[at + 5:at + 9] = height.to_bytes(2, 'big') + width.to_bytes(2, 'big')
    for i, (h, v) in enumerate(factors):
        content[at + 11 + 3 * i] = h << 4 | v
    return bytes(content)


def stem_of(image):
    """Coefficients of the stem, not normalized, of an RGB image."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double() / 255
    stem = DCTStem('192', mean=(0.,) * 3, std=(1.,) * 3, statistics=PLAIN).double()
    return stem(x)[0]


def assert_stem_agrees(image):
    """The stem makes the coefficients that libjpeg writes at quality 100 without subsampling.

    All tables are 1. Besides rounding to whole numbers, by at most 0.5, libjpeg rounds Y, Cb and Cr to whole numbers
    (by 0.5 and a little for its fixed point, so that a coefficient moves by at most 8 * 0.5 = 4, where all pixels of a
    block are rounded alike), and its integer DCT is exact to about 0.1. Roundings have a variance of 1/12, and the DCT
    keeps their sum.
    """
    file = read_coefficients(as_jpeg(image, quality=100, subsampling=0)).double()
    difference = (stem_of(image) - file).abs()
    assert difference.max() < 0.5 + 4 + 0.1
    if difference[0].numel() > 60:  # enough for an average
        assert difference.square().unflatten(0, (3, 64)).mean(dim=(1, 2, 3)).max() < 1.3 * 2 / 12


@pytest.mark.parametrize('size', [(640, 427), (97, 55)])
def test_stem_against_files(size):
    for image in load_sample_images().images:
        assert_stem_agrees(Image.fromarray(image).crop((0, 0, *size)))


def test_rgb_files():
    image = photo(40, 50, 1)
    for progressive in (False, True):
        content = as_jpeg(image, quality=90, keep_rgb=True, progressive=progressive)
        assert parse_jpeg(content).is_rgb and check(content, 'RGB')
    exact = read_coefficients(as_jpeg(image, quality=100, keep_rgb=True)).double()
    assert (exact - stem_of(image)).abs().max() < 1.1  # three roundings, mixed


@pytest.mark.parametrize('factors', [
    [(2, 2), (1, 1), (1, 1)], [(1, 2), (1, 1), (1, 1)], [(1, 1), (2, 2), (2, 2)], [(2, 1), (1, 2), (1, 1)],
    [(3, 1), (1, 1), (1, 1)], [(1, 1), (4, 1), (1, 1)], [(1, 4), (1, 1), (1, 2)]])
def test_any_subsampling(factors):
    """Planes at full resolution are those that a literal repetition of pixels gives."""
    h, v = max(f[0] for f in factors), max(f[1] for f in factors)
    content = sampled(factors)
    height, width = 8 * v - 3, 24 * h - 5
    assert check(content, str(factors))
    file = read_jpeg(content)
    assert [plane.ratio for plane in file.components] == [(v // b, h // a) for a, b in factors]
    actual = read_coefficients(content).double()
    shown = pixels_of(actual)[:, :height, :width]
    for plane, pixels in zip(file.components, shown):
        own = pixels_of(torch.from_numpy(plane.blocks * plane.table).permute(2, 0, 1))[0]
        expected = own.repeat(plane.ratio[0], 0).repeat(plane.ratio[1], 1)[:height, :width]
        np.testing.assert_allclose(pixels, expected, atol=2e-3)


def test_fractional_subsampling_is_refused():
    with pytest.raises(ValueError, match='not a whole multiple'):
        read_coefficients(sampled([(3, 1), (2, 1), (1, 1)]))


def test_dataset(tmp_path):
    """Crops and flips of blocks are those of the file's pixels, with its edges repeated."""
    root = write_jpegs(tmp_path, [(64, 64), (80, 67), (70, 120), (43, 90)], quality=90)
    dataset = JPEGCoefficients(root, '24d', size=64)
    whole_files, crops = (JPEGCoefficients(root, '192', size, statistics=PLAIN) for size in (None, 64))
    chosen = list(select_channels('24d'))
    mean, std = (torch.tensor(values)[chosen, None, None] for values in dataset.statistics)
    assert dataset.reader.class_to_idx == create_dataset('', str(root)).reader.class_to_idx
    assert [dataset[i][1] for i in range(4)] == [0, 0, 1, 1]
    for i, (top, left) in enumerate([(0, 0), (0, 24), (8, 0), (0, 8)]):
        whole, crop = whole_files[i][0], crops[i][0]
        assert torch.equal(whole, read_coefficients(dataset.filename(i, absolute=True)))
        padded = np.pad(pixels_of(whole), ((0, 0), (0, 64), (0, 64)), 'edge')
        np.testing.assert_allclose(pixels_of(crop), padded[:, top:top + 64, left:left + 64], atol=2e-3)
        torch.testing.assert_close(dataset[i][0], (crop[chosen] - mean) / std, rtol=1e-5, atol=1e-4)
    training = JPEGCoefficients(root, '192', size=(24, 32), statistics=PLAIN, is_training=True)
    whole = pixels_of(whole_files[1][0])
    # whole blocks only: the image ends within the last ones
    parts = {(y, x, flip): whole[:, y:y + 24, x:x + 32][:, :, ::-1 if flip else 1]
             for y in range(0, 41, 8) for x in range(0, 89, 8) for flip in (False, True)}
    torch.manual_seed(0)
    seen = [[place for place, part in parts.items() if np.abs(part - crop).max() < 1e-2]
            for crop in (pixels_of(training[1][0]) for _ in range(60))]
    assert all(len(places) == 1 for places in seen) and {flip for [(_, _, flip)] in seen} == {False, True}
    assert len({place for [place] in seen}) > 30
    assert JPEGCoefficients(root, hflip=1, size=72, is_training=True)[0][0].shape == (24, 9, 9)


def test_loaders_and_network(tmp_path):
    """timm's loader with its prefetcher and without, and the network on images against that on files."""
    for i, image in enumerate(load_sample_images().images):
        (tmp_path / f'photos/class{i}').mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / f'photos/class{i}/photo.png')
    assert store_jpegs(tmp_path / 'photos', tmp_path / 'stored', size=256, crop=True, quality=100) == 2

    def batch_of(dataset, **kwargs):
        return next(iter(create_loader(dataset, batch_size=2, device=torch.device('cpu'), **kwargs)))

    torch.manual_seed(0)
    model = timm.create_model('dct_resnet50_24s', num_classes=2, dct_input='coefficients').eval()
    dataset = JPEGCoefficients(tmp_path / 'stored', size=224)
    plain, target = batch_of(dataset, use_prefetcher=False, num_workers=0, **resolve_model_data_config(model))
    assert plain.shape == (2, 24, 28, 28) and target.tolist() == [0, 1]
    for normalize, tolerance in ((True, 1e-6), (False, 1e-4)):
        dataset = JPEGCoefficients(tmp_path / 'stored', size=224, normalize=normalize)
        assert dataset[0][0].dtype == (torch.float32 if normalize else torch.int16)
        prefetched, same = batch_of(dataset, num_workers=0, **dataset.loader_config())
        assert torch.equal(same, target) and prefetched.dtype == torch.float32
        torch.testing.assert_close(prefetched, plain, rtol=1e-4, atol=tolerance * plain.abs().max().item())
    training = JPEGCoefficients(tmp_path / 'stored', size=128, is_training=True)
    assert batch_of(training, is_training=True, num_workers=1, **training.loader_config())[0].shape == (2, 24, 16, 16)
    rgb = timm.create_model('dct_resnet50_24s', num_classes=2).eval()
    rgb.load_state_dict(model.state_dict())
    # stored at 256 and cropped to 224, as timm's transform does by crop_pct
    images, _ = batch_of(
        create_dataset('', str(tmp_path / 'stored')), use_prefetcher=False, num_workers=0,
        **{**resolve_model_data_config(rgb), 'input_size': (3, 224, 224)})
    with torch.inference_mode():
        expected, actual = rgb(images), model(plain)
    assert (actual - expected).abs().max() < 0.02 * expected.abs().max()


def test_dataset_refuses(tmp_path):
    (tmp_path / 'a').mkdir()
    with pytest.raises(FileNotFoundError, match='holds no images'):
        JPEGCoefficients(tmp_path)
    (tmp_path / 'a' / 'bad.jpg').write_bytes(as_jpeg(photo(24, 24, 0))[:-2])
    with pytest.raises(ValueError, match='bad.jpg cannot be read'):
        JPEGCoefficients(tmp_path)[0]
    for kwargs in (dict(size=100), dict(size=0), dict(size=(8, 4)), dict(hflip=2)):
        with pytest.raises(ValueError, match='expected multiples of 8'):
            JPEGCoefficients(tmp_path, **kwargs)
