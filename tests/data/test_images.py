"""open_image: whole files decode as Pillow decodes them, or as numpy computes it; all others are one kind of error."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mlfm_zoo.data.images import UnreadableImage, open_image

RGB = np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def encoded(kind, image=RGB, **options):
    """An image, or an array of one, in a format of Pillow."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', None])
def test_modes(mode, tmp_path):
    path = tmp_path / 'image.png'
    path.write_bytes(encoded('PNG'))
    with Image.open(path) as expected:
        expected = expected.convert(mode) if mode else expected.copy()
    for file in (path, str(path), io.BytesIO(path.read_bytes())):
        image = open_image(file, mode)
        assert image.mode == expected.mode and np.array_equal(image, expected)


@pytest.mark.parametrize('mode', ['P', 'PA', 'LA', '1', 'RGBA', 'CMYK', 'YCbCr'])
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'JPEG', 'WEBP'])
def test_other_modes_are_pillows(mode, kind):
    image = Image.fromarray(RGB).convert('P' if mode == 'PA' else mode)
    if mode == 'PA':
        image.info['transparency'] = 0
    try:
        content = encoded(kind, image)
        expected = Image.open(io.BytesIO(content)).convert('RGB')
    except OSError:  # the format has no such mode, or this Pillow cannot read what it wrote
        return
    np.testing.assert_array_equal(open_image(io.BytesIO(content)), expected)


@pytest.mark.parametrize('kind', ['PNG', 'PPM', 'TIFF', 'JPEG2000'])
def test_gray_of_16_bits(kind):
    """Values are scaled to 8 bits and rounded, as in numpy."""
    values = np.array([0, 1, 128, 129, 255, 256, 32767, 32768, 65406, 65407, 65535], np.uint16)[None].repeat(16, 0)
    file = io.BytesIO(encoded(kind, values))
    expected = np.round(values / 257)
    np.testing.assert_array_equal(open_image(file, 'L'), expected)
    np.testing.assert_array_equal(open_image(file), np.stack([expected] * 3, -1))
    np.testing.assert_array_equal(open_image(file, mode=None), values)


@pytest.mark.parametrize('content, what', [
    (encoded('TIFF', GRAY.astype(np.int32) * 1000), 'has pixels of mode I, whose range is unknown'),
    (encoded('TIFF', GRAY.astype(np.float32) / 255), 'has pixels of mode F, whose range is unknown'),
    (encoded('PPM', GRAY.astype(np.float32) / 255), 'has pixels of mode F, whose range is unknown'),
    (encoded('TIFF', GRAY.astype(np.uint16) * 257, tiffinfo={262: 0}), 'has pixels of mode I;16'),  # white is 0
    (encoded('TIFF', GRAY, tiffinfo={339: 2}), 'has pixels of mode L, whose range is unknown'),  # signed
    (encoded('PNG', Image.new('L', (1, 200_000))), 'is 1 x 200000 pixels, expected sides that differ by a factor'),
])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA'])
def test_what_cannot_be_converted(content, what, mode):
    with pytest.raises(UnreadableImage, match=f'^a.tif {what}'):
        open_image(io.BytesIO(content), mode, 'a.tif')
    assert open_image(io.BytesIO(content), mode=None)
    with pytest.raises(UnreadableImage, match='has pixels of mode LAB, expected gray or RGB'):
        open_image(io.BytesIO(encoded('TIFF', Image.new('LAB', (8, 8)))), 'L')


@pytest.mark.parametrize('orientation, turned', [*enumerate([
    RGB, RGB[:, ::-1], RGB[::-1, ::-1], RGB[::-1], RGB.swapaxes(0, 1), RGB.swapaxes(0, 1)[:, ::-1],
    RGB[::-1, ::-1].swapaxes(0, 1), RGB.swapaxes(0, 1)[::-1]], start=1)])
def test_orientation(orientation, turned):
    """EXIF's eight, by its standard: 6, for instance, means that the first row is the right side of the scene."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO(encoded('PNG', exif=exif))
    np.testing.assert_array_equal(open_image(file), RGB)
    np.testing.assert_array_equal(open_image(file, upright=True), turned)


@pytest.mark.parametrize('kind', [
    'PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'ICO', 'TGA', 'AVIF', 'DDS', 'JPEG2000'])
def test_damaged_files(kind, tmp_path):
    """Cut anywhere, and with bytes changed: an image of some kind, or UnreadableImage with the file's name."""
    content = encoded(kind)
    rng = np.random.default_rng(1)
    damaged = [content[:length] for length in np.linspace(0, len(content) - 1, 40, dtype=int)]
    for _ in range(60):
        changed = bytearray(content)
        for place in rng.integers(min(200, len(content)), size=4):
            changed[place] = rng.integers(256)
        damaged.append(bytes(changed))
    path = tmp_path / 'image'
    unreadable = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            assert isinstance(open_image(path, mode=None), Image.Image)
        except UnreadableImage as error:
            unreadable += 1
            assert str(error) in (f'{path} cannot be decoded as an image: repair or remove it.',
                                  f'{path} has more than 178,956,970 pixels: make it smaller, or repair it.')
            assert error.__cause__ is not None
    assert unreadable > 10


def test_what_is_no_image(tmp_path, monkeypatch):
    with pytest.raises(UnreadableImage, match='There is no image at .*none.png'):
        open_image(tmp_path / 'none.png')
    with pytest.raises(UnreadableImage, match=r' cannot be read \(Is a directory\): check the file'):
        open_image(tmp_path)
    blp = b'BLP1' + struct.pack('<iIIIiI', 9, 0, 8, 8, 0, 0) + bytes(2000)  # a compression that does not exist
    with pytest.raises(UnreadableImage, match='cannot be decoded'):
        open_image(io.BytesIO(blp))
    with pytest.raises(UnreadableImage, match='^a name cannot be decoded'):
        open_image(io.BytesIO(b'<html>'), name='a name')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(UnreadableImage, match='^The file has more than 200 pixels: make it smaller, or repair it'):
        open_image(io.BytesIO(encoded('PNG')))
