"""open_image: whole files decode as Pillow decodes them; all others are one kind of error."""

import io

import numpy as np
import pytest
from PIL import Image

from mlfm_zoo.data.images import UnreadableImage, open_image


def encoded(kind):
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(256, size=(48, 64, 3), dtype=np.uint8)).save(file, kind)
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


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'ICO', 'TGA'])
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
            assert isinstance(open_image(path), Image.Image)
        except UnreadableImage as error:
            unreadable += 1
            assert str(error) == f'{path} cannot be decoded as an image: repair or remove it.'
            assert error.__cause__ is not None
    assert unreadable > 10


def test_what_is_no_image(tmp_path, monkeypatch):
    with pytest.raises(UnreadableImage, match='There is no image at .*none.png'):
        open_image(tmp_path / 'none.png')
    with pytest.raises(UnreadableImage, match='cannot be decoded'):
        open_image(tmp_path)
    with pytest.raises(UnreadableImage, match='^a name cannot be decoded'):
        open_image(io.BytesIO(b'<html>'), name='a name')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(UnreadableImage, match='^The file cannot be decoded'):
        open_image(io.BytesIO(encoded('PNG')))
