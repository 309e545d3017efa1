"""Folders of images written again as JPEG files."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.jpeg_mutations import photo, write_jpegs
from mlfm_zoo.dct import JPEGCoefficients, read_coefficients, store_jpegs


def test_store(tmp_path):
    source, target = write_jpegs(tmp_path / 'source', [(30, 50), (80, 41)]), tmp_path / 'a'
    photo(20, 20, 0).convert('CMYK').save(source / 'class0' / 'cmyk.jpg')
    photo(20, 31, 0).convert('L').save(source / 'class1' / 'gray.PNG')
    assert store_jpegs(source, target, size=32) == 4
    assert store_jpegs(source, target, size=32) == 0
    (target / 'class0' / 'cmyk.jpg').unlink()
    assert store_jpegs(source, target, size=32, crop=True) == 1
    sizes = {}
    for path in target.rglob('*.jpg'):
        with Image.open(path) as image:
            sizes[path.name] = (*image.size, image.mode)
        read_coefficients(path)
    assert sizes == {'0.jpg': (53, 32, 'RGB'), '1.jpg': (32, 62, 'RGB'), 'cmyk.jpg': (32, 32, 'RGB'),
                     'gray.jpg': (50, 32, 'L')}


def test_refused(tmp_path):
    source, target = write_jpegs(tmp_path / 'source', [(30, 50)]), tmp_path / 'b'
    for kwargs in (dict(size=100), dict(size=0), dict(quality=0), dict(subsampling=3)):
        with pytest.raises(ValueError, match='expected'):
            store_jpegs(source, target, **kwargs)
    with pytest.raises(ValueError, match='outside'):
        store_jpegs(source, source / 'stored')
    (source / 'class0' / '0.png').write_bytes(b'')
    with pytest.raises(ValueError, match='the name of another'):
        store_jpegs(source, target)
    (source / 'class0' / '0.jpg').unlink()
    with pytest.raises(ValueError, match='0.png cannot be decoded'):
        store_jpegs(source, target)
    (source / 'class0' / '0.png').unlink()
    with pytest.raises(FileNotFoundError, match='has no images'):
        store_jpegs(source, target)
    assert not target.exists()


def test_what_a_walk_finds_is_stored(tmp_path):
    """Linked class folders are stored as the others; what a killed run leaves is no image; 16 bits become 8."""
    source = tmp_path / 'source'
    (source / 'real').mkdir(parents=True)
    values = np.repeat(np.arange(32, dtype=np.uint16) * 2000, 32).reshape(32, 32)
    Image.fromarray(values).save(source / 'real' / 'deep.png')
    (tmp_path / 'elsewhere').mkdir()
    photo(32, 32, 0).save(tmp_path / 'elsewhere' / 'a.png')
    (source / 'linked').symlink_to(tmp_path / 'elsewhere')
    (source / 'real' / '.unfinished-1-b.jpg').write_bytes(b'half')
    assert store_jpegs(source, tmp_path / 'target', size=32) == 2
    (tmp_path / 'target' / 'same').symlink_to(tmp_path / 'target' / 'real')
    dataset = JPEGCoefficients(tmp_path / 'target', size=32)
    assert [dataset.filename(i) for i in range(3)] == ['linked/a.jpg', 'real/deep.jpg', 'same/deep.jpg']
    assert [target for _, target in dataset] == [0, 1, 2] and torch.equal(dataset[1][0], dataset[2][0])
    with Image.open(tmp_path / 'target' / 'real' / 'deep.jpg') as image:
        assert image.mode == 'L' and np.abs(np.asarray(image, dtype=float) - values / 65535 * 255).max() < 6
