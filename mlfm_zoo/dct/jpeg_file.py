"""The quantized coefficients of a JPEG file, without decoding it to pixels.

jpeglib decodes the Huffman codes, with its libjpeg-turbo 2.1. It is not safe for damaged files: an error in the header
crashes the interpreter, and missing parts of a scan become zeros. So this module first checks the segments by the JPEG
standard, ITU-T T.81, and passes on only those that decoding needs.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Set, Tuple

import numpy as np

from .._extras import require_extra

__all__ = ['Component', 'Damaged', 'JPEGFile', 'parse_jpeg', 'read_jpeg']

LIBRARY = 'turbo210'  # the newest in jpeglib
MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above
MAX_SCANS = 100  # each costs time for all blocks, however few bytes it has
BLOCKS_PER_MCU = 10  # the most in the standard
MAX_SHIFT = 13  # of a progressive scan

# Natural place, 8 u + v, of each value of a table in a file.
ZIGZAG = np.array(sorted(range(64), key=lambda i: (
    i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)))

MARKER = re.compile(rb'\xff+([^\x00\xff])')
AFTER_SCAN = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
RESTART = re.compile(rb'\xff[\xd0-\xd7]')

EOI, SOS, DQT, DHT, DRI, JFIF, ADOBE = 0xd9, 0xda, 0xdb, 0xc4, 0xdd, 0xe0, 0xee
SEQUENTIAL, PROGRESSIVE = (0xc0, 0xc1), (0xc2,)


class Damaged(ValueError):
    """A file is damaged or of another kind; the message lacks its name."""


@dataclass
class Component:
    """One plane, and the bits of it that the scans so far contain."""
    identifier: int
    sampling: Tuple[int, int]
    table_index: int
    ratio: Tuple[int, int] = (1, 1)  # of the image's resolution to this one
    size: Tuple[int, int] = (0, 0)  # in blocks
    table: Any = None  # (64,)
    blocks: Any = None  # quantized (h, w, 64)
    shifts: np.ndarray = field(default_factory=lambda: np.full(64, -1))  # missing low bits; -1 before the first scan


@dataclass
class JPEGFile:
    """A file: size in pixels, one component or three, whether these are R, G and B.

    `content` is the file without the segments that decoding does not need.
    """
    height: int = 0
    width: int = 0
    progressive: bool = False
    components: List[Component] = field(default_factory=list)
    is_rgb: bool = False
    content: bytes = b''
    quantization: Dict[int, np.ndarray] = field(default_factory=dict)
    huffman: Set[int] = field(default_factory=set)  # 16 class + index
    interval: int = 0  # of restarts, in units


def read_jpeg(content: bytes) -> JPEGFile:
    """Read the quantized coefficients of a file, without padding blocks.

    Raises `Damaged` if the file is damaged or has no coefficients of Y, Cb and Cr.
    """
    jpeglib = require_extra('jpeglib', 'jpeg', 'Reading coefficients of JPEG files')
    file = parse_jpeg(content)
    decoder = jpeglib.DCTJPEG(
        path='', content=file.content, height=file.height, width=file.width,
        block_dims=np.array([component.size for component in file.components]), samp_factor=None,
        jpeg_color_space=jpeglib.JCS_GRAYSCALE if len(file.components) == 1 else jpeglib.JCS_YCbCr,
        markers=None, huffmans=None, num_scans=1, progressive_mode=file.progressive,
        Y=None, Cb=None, Cr=None, K=None, qt=None, quant_tbl_no=None)
    try:
        if jpeglib.version.get() != LIBRARY:  # once for the process: it takes as long as reading a small file
            jpeglib.version.set(LIBRARY)
        first, others, _ = decoder.load()
    except OSError as error:
        if error.errno is not None:  # of jpeglib's temporary file, not of this one
            raise
        raise Damaged('its scans cannot be decoded') from error
    for component, blocks in zip(file.components, (first, *others)):
        component.blocks = blocks.reshape(*component.size, 64)
    return file


def parse_jpeg(content: bytes) -> JPEGFile:
    """Check the segments of a file and return their content, or raise `Damaged`."""
    if content[:2] != b'\xff\xd8':
        raise Damaged('it does not start as a JPEG does')
    file, kept, scans, jfif, adobe = JPEGFile(), [content[:2]], 0, False, None
    for marker, segment, data in _segments(content):
        if marker in (DQT, DHT, DRI, SOS, *SEQUENTIAL, *PROGRESSIVE):
            kept.append(bytes([0xff, marker]) + (len(segment) + 2).to_bytes(2, 'big') + segment + data)
        if marker == DQT:
            file.quantization.update(_quantization(segment))
        elif marker == DHT:
            file.huffman.update(_huffman(segment))
        elif marker == DRI:
            if len(segment) != 2:
                raise Damaged('the length of its restart interval is wrong')
            file.interval = int.from_bytes(segment, 'big')
        elif marker in (*SEQUENTIAL, *PROGRESSIVE):
            if file.components:
                raise Damaged('it has more than one frame')
            file.progressive = marker in PROGRESSIVE
            _frame(file, segment)
        elif marker == SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise Damaged(f'it has more than {MAX_SCANS} scans')
            _scan(file, segment, data)
        elif marker == JFIF:
            jfif = jfif or (not scans and len(segment) >= 14 and segment[:5] == b'JFIF\0')
        elif marker == ADOBE:
            if not scans and len(segment) >= 12 and segment[:5] == b'Adobe':
                adobe = segment[11]
        elif marker < 0xe0 or 0xf0 <= marker < 0xfe:
            raise Damaged(
                f'it has a segment of marker {marker:#x}, as lossless, hierarchical and arithmetic-coded files have, '
                'expected a sequential or progressive file')
    if any((component.shifts != 0).any() for component in file.components) or not scans:
        raise Damaged('it has no frame, or scans are missing')
    file.content = b''.join([*kept, b'\xff\xd9'])
    # as libjpeg decides
    if len(file.components) == 3 and not jfif:
        file.is_rgb = adobe == 0 if adobe is not None else bytes(c.identifier for c in file.components) == b'RGB'
    return file


def _segments(content: bytes) -> Iterator[Tuple[int, bytes, bytes]]:
    """Marker and content of each segment, and the data that follow those of scans."""
    at = 2
    while True:
        match = MARKER.match(content, at)  # after any number of fill bytes
        if match is None:
            raise Damaged('it ends before its end marker' if at >= len(content) else f'there is no marker at byte {at}')
        marker, start = match[1][0], match.end() + 2
        if marker == EOI:
            return
        length = int.from_bytes(content[start - 2:start], 'big')
        at = end = start - 2 + length
        if length < 2 or end > len(content):
            raise Damaged('it ends in the middle of a segment')
        if marker == SOS:
            after = AFTER_SCAN.search(content, end)
            if after is None:
                raise Damaged('it ends in the middle of a scan')
            at = after.start()
        yield marker, content[start:end], content[end:at]


def _quantization(segment: bytes) -> Dict[int, np.ndarray]:
    tables = {}
    while segment:
        wide, index = segment[0] >> 4, segment[0] & 15
        size = 64 << wide if wide < 2 else 0
        if index > 3 or not size or len(segment) < 1 + size:
            raise Damaged('a quantization table is damaged')
        tables[index] = np.zeros(64, np.float32)
        tables[index][ZIGZAG] = np.frombuffer(segment, '>u2' if wide else 'u1', 64, 1)
        segment = segment[1 + size:]
    return tables


def _huffman(segment: bytes) -> Set[int]:
    tables = set()
    while segment:
        kind, counts = segment[0], segment[1:17]
        end = 17 + sum(counts)
        codes = sum(count << (16 - length) for length, count in enumerate(counts, 1))  # of 16 bits; none is all ones
        if kind & 15 > 3 or kind >> 4 > 1 or end > min(len(segment), 17 + 256) or codes >= 1 << 16 or (
                kind < 16 and max(segment[17:end], default=0) > 15):
            raise Damaged('a Huffman table is damaged')
        tables.add(kind)
        segment = segment[end:]
    return tables


def _frame(file: JPEGFile, segment: bytes) -> None:
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        raise Damaged('the length of its frame header is wrong')
    file.height, file.width = int.from_bytes(segment[1:3], 'big'), int.from_bytes(segment[3:5], 'big')
    precision, count = segment[0], segment[5]
    if precision != 8:
        raise Damaged(f'it has {precision} bits, expected 8')
    if count not in (1, 3):
        raise Damaged(f'it has {count} components, as CMYK has 4, expected YCbCr, RGB or gray')
    if not 0 < file.height * file.width <= MAX_PIXELS:
        raise Damaged(f'it is {file.width} x {file.height}, expected at least 1 and at most {MAX_PIXELS} pixels')
    for i in range(count):
        identifier, sampling, table_index = segment[6 + 3 * i:9 + 3 * i]
        file.components.append(Component(identifier, (sampling & 15, sampling >> 4), table_index))
    factors = np.array([component.sampling for component in file.components])
    if factors.min() < 1 or factors.max() > 4 or max(c.table_index for c in file.components) > 3 or len(
            {component.identifier for component in file.components}) < count:
        raise Damaged('its frame header is damaged')
    most = factors.max(0)
    if (most % factors).any():
        raise Damaged('the resolution of one plane is not a whole multiple of another')
    for component, (tall, wide) in zip(file.components, (most // factors).tolist()):
        component.ratio = tall, wide
        component.size = -(-file.height // (8 * tall)), -(-file.width // (8 * wide))


def _scan(file: JPEGFile, segment: bytes, data: bytes) -> None:
    """Check a scan: its header, and whether its data can hold all of its blocks."""
    count = segment[0] if segment else 0
    if not 1 <= count <= len(file.components) or len(segment) != 4 + 2 * count:
        raise Damaged('the header of a scan is damaged, or precedes its frame')
    identifiers, tables = segment[1:1 + 2 * count:2], segment[2:2 + 2 * count:2]
    chosen = [component for component in file.components if component.identifier in identifiers]
    if len(chosen) < count:
        raise Damaged('a scan has components that the frame lacks')
    blocks = sum(tall * wide for tall, wide in (c.sampling for c in chosen)) if count > 1 else 1
    if blocks > BLOCKS_PER_MCU:
        raise Damaged(f'a unit has more than {BLOCKS_PER_MCU} blocks')
    first, last, high, low = *segment[-3:-1], segment[-1] >> 4, segment[-1] & 15
    if not file.progressive:
        bits, right = 2, (first, last, high, low) == (0, 63, 0, 0)
        needed = [k for pair in tables for k in (pair >> 4, 16 + (pair & 15))]
    else:
        bits, right = 0 if first else 1, low <= MAX_SHIFT and high in (0, low + 1) and (
            first == last == 0 or (0 < first <= last < 64 and count == 1))
        needed = [16 + (pair & 15) if first else pair >> 4 for pair in tables if first or not high]
    if not right or not file.huffman.issuperset(needed):
        raise Damaged('the header of a scan is damaged, or a Huffman table is missing')
    for component in chosen:
        if component.table is None:  # the table in force at a component's first scan
            if component.table_index not in file.quantization:
                raise Damaged('a quantization table is missing')
            component.table = file.quantization[component.table_index]
        shifts = component.shifts[first:last + 1]
        if (shifts != (high or -1)).any() or (first and component.shifts[0] < 0):
            raise Damaged('its scans are not in order')
        shifts[:] = low
    # so that the file's size bounds memory and time
    tall, wide = chosen[0].size
    if count > 1:
        tall, wide = (-(-side // s) for side, s in zip(chosen[0].size, chosen[0].sampling))
    units = tall * wide
    if units * blocks * bits > 8 * len(data):
        raise Damaged('its scans are too short for its size')
    expected = -(-units // file.interval) - 1 if file.interval else 0
    if [marker[1] - 0xd0 for marker in RESTART.findall(data)] != [i % 8 for i in range(expected)]:
        raise Damaged('its restart markers do not fit its size')
