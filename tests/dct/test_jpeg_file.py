"""All kinds of JPEG files against Pillow, and damaged ones."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import jpeg_mutations
from helpers.jpeg_mutations import as_jpeg, check, make_files, photo, pixels_of
from mlfm_zoo.dct import read_coefficients


@pytest.mark.parametrize('size', [(64, 48), (57, 43), (1, 1), (9, 16), (130, 75), (8, 200)])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_kinds_of_files(size, mode):
    """Luma is Pillow's within rounding, and so is chroma that is not subsampled."""
    image = photo(size[1], size[0], 0).convert(mode)
    for quality in (1, 30, 75, 100):
        for more in (dict(), dict(progressive=True), dict(optimize=True), dict(restart_marker_blocks=1),
                     dict(restart_marker_rows=1, progressive=True), dict(exif=b'Exif\0\0II*\0'),
                     dict(icc_profile=bytes(70000)), dict(comment=b'\xff\xda')):
            for subsampling in (0, 1, 2) if mode == 'RGB' else (0,):
                content = as_jpeg(image, quality=quality, subsampling=subsampling, **more)
                assert check(content, f'{quality} {more} {subsampling}')
                coefficients = read_coefficients(content)
                assert coefficients.shape == (192, -(-size[1] // 8), -(-size[0] // 8))
                if mode == 'L':
                    assert not coefficients[64:].any()
                elif subsampling == 0:
                    with Image.open(io.BytesIO(content)) as file:
                        file.draft('YCbCr', file.size)
                        expected = np.moveaxis(np.asarray(file, float), 2, 0)
                    actual = pixels_of(coefficients)[:, :size[1], :size[0]]
                    assert np.abs(np.clip(actual, 0, 255) - expected).max() < 1.01


def test_refused(tmp_path):
    image = photo(24, 24, 0)
    good = as_jpeg(image)
    frame = good.index(b'\xff\xc0')
    for content, sentence in (
            (b'', 'does not start'), (b'GIF89a', 'does not start'), (good[:-2], 'middle of a scan'),
            (good[:100], 'segment'), (as_jpeg(image.convert('CMYK')), 'as CMYK has'),
            (good[:frame + 1] + b'\xc9' + good[frame + 2:], 'arithmetic'),
            (good[:frame + 1] + b'\xc3' + good[frame + 2:], 'lossless'),
            (good[:frame + 4] + b'\x0c' + good[frame + 5:], '12 bits'),
            (good[:frame + 5] + b'\0\0' + good[frame + 7:], '24 x 0'),
            (good[:frame + 5] + b'\xff\xff\xff\xff' + good[frame + 9:], 'at most'),
            (good[:frame + 5] + b'\x03\xff\x03\xff' + good[frame + 9:], 'too short'),
            (good[:2] + b'\xff\xd9', 'no frame')):
        file = tmp_path / 'bad.jpg'
        file.write_bytes(content)
        for source, name in ((content, 'The JPEG file'), (file, str(file))):
            with pytest.raises(ValueError, match=sentence) as error:
                read_coefficients(source)
            assert str(error.value).startswith(name) and '\n' not in str(error.value)
    file = tmp_path / os.fsdecode(b'\xff\x1b[31m\n.jpg')  # a name that a terminal would act on, and no UTF-8
    file.write_bytes(b'')
    with pytest.raises(ValueError) as error:
        read_coefficients(file)
    assert str(error.value).startswith(f'{tmp_path}/\\udcff\\x1b[31m\\n.jpg cannot be read')


def test_undamaged_files():
    assert [check(content, 'a valid file') for content in make_files()] == [i != 11 for i in range(14)]  # CMYK


@pytest.mark.parametrize('count', [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files(count, tmp_path):
    """In a process of its own: a crash or an exit of the interpreter is seen, with the number of the last file."""
    ran = subprocess.run(
        [sys.executable, jpeg_mutations.__file__, '0', str(count)], capture_output=True, text=True,
        timeout=60 + count / 20, env={**os.environ, 'TMPDIR': str(tmp_path)})
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, f'{ran.returncode} after {lines[-30:]} {ran.stderr[-2000:]}'
    assert lines[-1].startswith(f'{count} mutations') and not list(tmp_path.iterdir())
