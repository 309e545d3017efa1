"""Damages JPEG files in many ways, reads each, and compares what was read with Pillow's decoding.

    python tests/helpers/jpeg_mutations.py FIRST COUNT

Mutation i is made by the seed i alone. It is printed before it is read, so that a crash has a number. Every file is
refused in one sentence, or its luma is that of Pillow within rounding; one that Pillow refuses is not read.
"""

import io
import random
import resource
import sys
import time
import warnings

import numpy as np
from PIL import Image
from scipy.fft import idctn

from mlfm_zoo.dct import read_coefficients
from mlfm_zoo.dct.jpeg_file import parse_jpeg

MEMORY = 6 << 30  # address space; torch takes half of it
LONGEST = 20  # seconds for a file


def photo(height, width, seed):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (3 + height // 12, 3 + width // 12, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), int)
    return Image.fromarray(np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8))


def as_jpeg(image, **kwargs):
    file = io.BytesIO()
    image.save(file, 'JPEG', **kwargs)
    return file.getvalue()


def make_files():
    """Valid files of all kinds, as bytes."""
    kinds = [
        dict(quality=75), dict(quality=100, subsampling=0), dict(quality=10, subsampling=1),
        dict(quality=90, progressive=True), dict(quality=60, progressive=True, subsampling=0),
        dict(quality=80, restart_marker_blocks=2), dict(quality=50, restart_marker_rows=1, progressive=True),
        dict(quality=85, optimize=True, subsampling=1), dict(quality=95, keep_rgb=True), dict(quality=80, mode='L'),
        dict(quality=80, mode='L', progressive=True), dict(quality=80, mode='CMYK'),
        dict(quality=70, exif=b'Exif\0\0II'), dict(quality=70, icc_profile=bytes(range(256)))]
    files = []
    for i, kind in enumerate(kinds):
        image = photo(*((24, 40), (65, 43), (33, 70))[i % 3], i).convert(kind.pop('mode', 'RGB'))
        files.append(as_jpeg(image, **kind))
    return files


def write_jpegs(root, sizes, **kwargs):
    """A folder of two classes of files."""
    for i, size in enumerate(sizes):
        folder = root / f'class{i % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{i}.jpg').write_bytes(as_jpeg(photo(*size, i), **kwargs))
    return root


def segments(content):
    """Where the segments of a file start, those of the first marker after each scan too."""
    places, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xff and content[at + 1] != 0xd9:
        places.append(at)
        at += 2 + int.from_bytes(content[at + 2:at + 4], 'big')
        if content[places[-1] + 1] == 0xda:
            while content[at] != 0xff or content[at + 1] == 0 or 0xd0 <= content[at + 1] <= 0xd7:
                at += 1
    return [*places, at]


def mutate(seed, files):
    rng = random.Random(seed)
    content = bytearray(rng.choice(files))
    places = segments(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.randrange(7)
        at = rng.randrange(len(content)) if content else 0
        if kind == 0:  # one bit anywhere
            content[at:at + 1] = bytes([content[at] ^ 1 << rng.randrange(8)]) if content else b'\0'
        elif kind == 1:  # a field of a segment
            at = rng.choice(places) + rng.randrange(2, 20)
            fields = (0, 1, 2, 3, 4, 8, 16, 0x11, 0x22, 0x41, 63, 64, 255, rng.randrange(256))
            content[at:at + 1] = bytes([rng.choice(fields)])
        elif kind == 2:  # truncated, with an end marker or without
            del content[at:]
            content += rng.choice((b'', b'\xff\xd9'))
        elif kind == 3:  # a piece or a segment is missing
            i = rng.randrange(len(places) - 1)
            start, end = rng.choice(((at, at + rng.choice((1, 2, 16, 200))), (places[i], places[i + 1])))
            del content[start:end]
        elif kind == 4:  # a piece twice, or of another file
            other = rng.choice((bytes(content), rng.choice(files)))
            start = rng.randrange(max(1, len(other)))
            content[at:at] = other[start:start + rng.choice((1, 8, 100, 1000))]
        elif kind == 5:  # a segment of this or another file in another place
            original, at = rng.choice(files), rng.choice(places)
            cuts = segments(original)
            i = rng.randrange(len(cuts) - 1)
            content[at:at] = original[cuts[i]:cuts[i + 1]]
        else:  # a large size
            for p in places:
                if p + 9 < len(content) and content[p + 1] in (0xc0, 0xc1, 0xc2):
                    content[p + 5:p + 9] = rng.randbytes(4)
    return bytes(content)


def pixels_of(coefficients):
    """Planes (p, H, W) from 0 to 255 of coefficients (64 p, H / 8, W / 8), not clipped."""
    height, width = coefficients.shape[1:]
    blocks = coefficients.double().numpy().reshape(-1, 8, 8, height, width)
    pixels = idctn(blocks, axes=(1, 2), norm='ortho').transpose(0, 3, 1, 4, 2)
    return pixels.reshape(-1, 8 * height, 8 * width) + 128


def by_pillow(content, is_rgb):
    """Luma (H, W); R, G and B (H, W, 3) if a file has these, since they are clipped first; None if it is refused."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format != 'JPEG':
                return None
            if not is_rgb:
                image.draft('L', image.size)
            return np.asarray(image.convert('RGB' if is_rgb else 'L'), float)
    except (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, Image.DecompressionBombError):
        return None


def check(content, name):
    """Refuse a wrong answer, and say whether there was one."""
    start = time.perf_counter()
    try:
        coefficients = read_coefficients(content)
    except ValueError as error:
        text = str(error)
        assert '\n' not in text and text.endswith('.') and 'cannot be read as JPEG coefficients' in text, text
        return False
    finally:
        seconds = time.perf_counter() - start
        assert seconds < LONGEST, f'{name} took {seconds:.0f} s'
    parsed = parse_jpeg(content)
    expected = by_pillow(content, parsed.is_rgb)
    assert expected is not None, f'{name} was read, but Pillow refuses it'
    luma, blue, red = pixels_of(coefficients)
    actual, expected = luma[..., None], expected.reshape(*expected.shape[:2], -1)
    if parsed.is_rgb:
        blue, red = blue - 128, red - 128
        actual = np.stack([
            luma + 1.402 * red, luma - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587, luma + 1.772 * blue], 2)
    actual = actual[:expected.shape[0], :expected.shape[1]]
    assert actual.shape == expected.shape, f'{name} has {actual.shape} pixels, {expected.shape} of Pillow'
    # libjpeg's table for clipping has 10 bits: pixels of damaged blocks beyond come out as others; and a plane of a
    # lower resolution is smoothed by Pillow
    right = np.abs(actual - 128) < 500
    samplings = np.array([component.sampling for component in parsed.components])
    right &= (samplings == samplings.max(0)).all(1)[:3 if parsed.is_rgb else 1]
    # half for rounding, and as much for the whole numbers that libjpeg calculates with
    difference = np.abs(np.clip(actual, 0, 255) - expected)[right].max(initial=0)
    assert difference < 1.01, f'{name} differs from Pillow by {difference:.2f}'
    return True


def main():
    warnings.simplefilter('ignore')
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    first, count = map(int, sys.argv[1:])
    files, read = make_files(), 0
    for number in range(first, first + count):
        print(number, flush=True)
        read += check(mutate(number, files), f'mutation {number}')
    print(f'{count} mutations, {read} read, {count - read} refused')


if __name__ == '__main__':
    main()
