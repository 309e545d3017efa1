"""The quantized coefficients of a JPEG file, without decoding it to pixels.

jpeglib decodes the Huffman codes, with its libjpeg-turbo 2.1. It is not safe for damaged files: an error in the header
crashes the interpreter, and missing parts of a scan become zeros. So this module first checks the segments by the JPEG
standard, ITU-T T.81, and passes on only those that decoding needs.
"""

import contextlib
import re
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import numpy as np

from .._extras import require_extra
from .._terminal import printable

__all__ = ['Damaged', 'JPEGFile', 'Plane', 'errors_named', 'parse_jpeg', 'read_jpeg']

LIBRARY = 'turbo210'  # the newest in jpeglib
MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above
MAX_SCANS = 100  # each costs time for all blocks, however few bytes it has
BLOCKS_PER_MCU = 10  # the most in the standard
MAX_SHIFT = 13  # of a progressive scan

# Natural place, 8 u + v, of each value of a table in a file.
ZIGZAG = np.array(sorted(range(64), key=lambda i: (
    i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)))

NEXT_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
RESTART = re.compile(rb'\xff[\xd0-\xd7]')

SOI, EOI, SOS, DQT, DHT, DRI, JFIF, ADOBE = 0xd8, 0xd9, 0xda, 0xdb, 0xc4, 0xdd, 0xe0, 0xee
FRAMES = {0xc0: 'sequential', 0xc1: 'sequential', 0xc2: 'progressive'}
OTHER_FRAMES = {0xc3, *range(0xc5, 0xc8), *range(0xc9, 0xcc), *range(0xcd, 0xd0), 0xde}


class Plane(NamedTuple):
    """One component: quantized blocks (h, w, 64), table (64,) and subsampling ratio."""
    blocks: np.ndarray
    table: np.ndarray
    ratio: Tuple[int, int]


class JPEGFile(NamedTuple):
    """A file: size in pixels, one plane or three, and whether these are R, G and B."""
    height: int
    width: int
    is_rgb: bool
    planes: Tuple[Plane, ...]


@dataclass
class Component:
    """A component of the frame, and the bits of it that the scans so far contain."""
    identifier: int
    sampling: Tuple[int, int]
    table_index: int
    blocks: Tuple[int, int] = (0, 0)
    table: Optional[np.ndarray] = None
    shifts: np.ndarray = field(default_factory=lambda: np.full(64, -1))  # missing low bits; -1 before the first scan


@dataclass
class Parsed:
    """The segments' content, and the file without those that decoding does not need."""
    height: int = 0
    width: int = 0
    kind: str = ''
    components: List[Component] = field(default_factory=list)
    jfif: bool = False
    adobe: Optional[int] = None
    is_rgb: bool = False
    content: bytes = b''


class Damaged(ValueError):
    """A file is damaged or of another kind; `errors_named` completes the message."""


@contextlib.contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Turn `Damaged` into a ValueError with the file's name and what to do."""
    try:
        yield
    except Damaged as error:
        raise ValueError(
            f'{printable(name)} cannot be read as JPEG coefficients, {error}: repair or remove it, or write it again '
            'with mlfm_zoo.dct.store_jpegs.') from error


def read_jpeg(content: bytes) -> JPEGFile:
    """Read the quantized coefficients of a file, without padding blocks.

    Each plane has its own resolution. Raises `Damaged` if the file is damaged or has no coefficients of Y, Cb and Cr.
    """
    jpeglib = require_extra('jpeglib', 'jpeg', 'Reading coefficients of JPEG files')
    parsed = parse_jpeg(content)
    components = parsed.components
    file = jpeglib.DCTJPEG(
        path='', content=parsed.content, height=parsed.height, width=parsed.width,
        block_dims=np.array([component.blocks for component in components]), samp_factor=None,
        jpeg_color_space=jpeglib.JCS_GRAYSCALE if len(components) == 1 else jpeglib.JCS_YCbCr,
        markers=None, huffmans=None, num_scans=1, progressive_mode=parsed.kind == 'progressive',
        Y=None, Cb=None, Cr=None, K=None, qt=None, quant_tbl_no=None)
    try:
        if jpeglib.version.get() != LIBRARY:  # once for the process: it takes as long as reading a small file
            jpeglib.version.set(LIBRARY)
        first, others, _ = file.load()
    except OSError as error:
        if error.errno is not None:  # of jpeglib's temporary file, not of this one
            raise
        raise Damaged('its scans cannot be decoded') from error
    most = np.max([component.sampling for component in components], axis=0)
    planes = []
    for component, blocks in zip(components, (first, *others)):
        assert component.table is not None
        ratio = tuple(int(m) // s for m, s in zip(most, component.sampling))
        planes.append(Plane(blocks.reshape(*component.blocks, 64), component.table, (ratio[0], ratio[1])))
    return JPEGFile(parsed.height, parsed.width, parsed.is_rgb, tuple(planes))


def parse_jpeg(content: bytes) -> Parsed:
    """Check the segments of a file and return their content, or raise `Damaged`."""
    if content[:2] != b'\xff\xd8':
        raise Damaged('it does not start as a JPEG does')
    parsed = Parsed()
    quantization: Dict[int, np.ndarray] = {}
    huffman: Set[int] = set()  # 16 class + index
    kept, interval, scans, at = [content[:2]], 0, 0, 2
    while True:
        marker, start = _next_marker(content, at)
        if marker == EOI:
            break
        if marker == 0x01 or 0xd0 <= marker <= SOI:
            raise Damaged(f'marker {marker:#x} stands where a segment should')
        segment, at = _segment(content, start)
        if marker == DQT:
            quantization.update(_quantization(segment))
        elif marker == DHT:
            huffman.update(_huffman(segment))
        elif marker == DRI:
            if len(segment) != 2:
                raise Damaged('the length of its restart interval is wrong')
            interval = int.from_bytes(segment, 'big')
        elif marker in FRAMES:
            if parsed.components:
                raise Damaged('it has more than one frame')
            parsed.kind = FRAMES[marker]
            _frame(parsed, segment)
        elif marker in OTHER_FRAMES:
            raise Damaged('it is lossless, hierarchical or arithmetic-coded, expected a sequential or progressive file')
        elif marker == SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise Damaged(f'it has more than {MAX_SCANS} scans')
            chosen, bits = _scan(parsed, segment, quantization, huffman)
            end = NEXT_MARKER.search(content, at)
            if end is None:
                raise Damaged('it ends in the middle of a scan')
            _check_data(parsed, chosen, bits, interval, content[at:end.start()])
            at = end.start()
        elif scans == 0 and marker == JFIF and len(segment) >= 14 and segment[:5] == b'JFIF\0':
            parsed.jfif = True
        elif scans == 0 and marker == ADOBE and len(segment) >= 12 and segment[:5] == b'Adobe':
            parsed.adobe = segment[11]
        elif marker < 0xe0 or 0xf0 <= marker < 0xfe:
            raise Damaged(f'it has an unknown segment, {marker:#x}')
        if marker in (DQT, DHT, DRI, SOS) or marker in FRAMES:
            kept.append(b'\xff' + bytes([marker]) + content[start:at])
    if not parsed.components:
        raise Damaged('it has no frame')
    if any((component.shifts != 0).any() for component in parsed.components):
        raise Damaged('scans are missing')
    parsed.content = b''.join([*kept, b'\xff\xd9'])
    identifiers = bytes(component.identifier for component in parsed.components)
    # as libjpeg decides
    parsed.is_rgb = len(identifiers) == 3 and not parsed.jfif and (
        parsed.adobe == 0 if parsed.adobe is not None else identifiers == b'RGB')
    return parsed


def _next_marker(content: bytes, at: int) -> Tuple[int, int]:
    """The marker at a place, after any number of fill bytes, and where it ends."""
    start = at
    while at < len(content) and content[at] == 0xff:
        at += 1
    if at >= len(content):
        raise Damaged('it ends before its end marker')
    if at == start or content[at] == 0:
        raise Damaged(f'there is no marker at byte {start}')
    return content[at], at + 1


def _segment(content: bytes, start: int) -> Tuple[bytes, int]:
    """The content of a segment, and where it ends."""
    length = int.from_bytes(content[start:start + 2], 'big')
    end = start + length
    if start + 2 > len(content) or end > len(content):
        raise Damaged('it ends in the middle of a segment')
    if length < 2:
        raise Damaged('the length of a segment is wrong')
    return content[start + 2:end], end


def _quantization(segment: bytes) -> Dict[int, np.ndarray]:
    tables = {}
    while segment:
        wide, index = segment[0] >> 4, segment[0] & 15
        size = 64 << wide if wide < 2 else 0
        if index > 3 or not size or len(segment) < 1 + size:
            raise Damaged('a quantization table is damaged')
        table = np.zeros(64, np.float32)
        table[ZIGZAG] = np.frombuffer(segment, '>u2' if wide else 'u1', 64, 1)
        tables[index] = table
        segment = segment[1 + size:]
    return tables


def _huffman(segment: bytes) -> Set[int]:
    tables = set()
    while segment:
        kind, counts = segment[0], segment[1:17]
        total = sum(counts)
        symbols = segment[17:17 + total]
        whole = len(counts) == 16 and total <= 256 and len(symbols) == total
        if kind & 15 > 3 or kind >> 4 > 1 or not whole or (kind < 16 and max(symbols, default=0) > 15):
            raise Damaged('a Huffman table is damaged')
        code = given = 0
        for length, count in enumerate(counts, 1):
            code, given = 2 * code + count, given + count
            if code >= 1 << length:  # no code is all ones
                raise Damaged('a Huffman table is damaged')
            if given == total:
                break
        tables.add(kind)
        segment = segment[17 + total:]
    return tables


def _frame(parsed: Parsed, segment: bytes) -> None:
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        raise Damaged('the length of its frame header is wrong')
    precision, parsed.height, parsed.width, count = segment[0], int.from_bytes(
        segment[1:3], 'big'), int.from_bytes(segment[3:5], 'big'), segment[5]
    if precision != 8:
        raise Damaged(f'it has {precision} bits, expected 8')
    if count == 4:
        raise Damaged('it is CMYK, expected YCbCr, RGB or gray')
    if count not in (1, 3):
        raise Damaged(f'it has {count} components, expected 1 or 3')
    if not parsed.height or not parsed.width:
        raise Damaged(f'it is {parsed.width} x {parsed.height} pixels')
    if parsed.height * parsed.width > MAX_PIXELS:
        raise Damaged(f'it is {parsed.width} x {parsed.height}, expected at most {MAX_PIXELS} pixels')
    for i in range(count):
        identifier, sampling, table = segment[6 + 3 * i:9 + 3 * i]
        parsed.components.append(Component(identifier, (sampling & 15, sampling >> 4), table))
    factors = np.array([component.sampling for component in parsed.components])
    if factors.min() < 1 or factors.max() > 4 or max(c.table_index for c in parsed.components) > 3 or len(
            {component.identifier for component in parsed.components}) < count:
        raise Damaged('its frame header is damaged')
    most = factors.max(0)
    if (most % factors).any():
        raise Damaged('the resolution of one plane is not a whole multiple of another')
    for component in parsed.components:
        (v, h), (most_v, most_h) = component.sampling, most.tolist()
        component.blocks = -(-parsed.height * v // (8 * most_v)), -(-parsed.width * h // (8 * most_h))


def _scan(
        parsed: Parsed,
        segment: bytes,
        quantization: Dict[int, np.ndarray],
        huffman: Set[int],
) -> Tuple[List[Component], int]:
    """The components of a scan, and the least number of bits of a block in it."""
    if not parsed.components:
        raise Damaged('a scan precedes its frame')
    count = segment[0] if segment else 0
    if not 1 <= count <= len(parsed.components) or len(segment) != 4 + 2 * count:
        raise Damaged('the header of a scan is damaged')
    by_identifier = {component.identifier: component for component in parsed.components}
    entries = [(by_identifier.get(segment[1 + 2 * i]), segment[2 + 2 * i]) for i in range(count)]
    chosen = [component for component, _ in entries if component is not None]
    if len(chosen) < count or len({component.identifier for component in chosen}) < count:
        raise Damaged('a scan has components that the frame lacks')
    if count > 1 and sum(c.sampling[0] * c.sampling[1] for c in chosen) > BLOCKS_PER_MCU:
        raise Damaged(f'a unit has more than {BLOCKS_PER_MCU} blocks')
    first, last, high, low = *segment[-3:-1], segment[-1] >> 4, segment[-1] & 15
    if parsed.kind == 'sequential':
        right = (first, last, high, low) == (0, 63, 0, 0)
        needed = [k for _, tables in entries for k in (tables >> 4, 16 + (tables & 15))]
    else:
        right = (first == last == 0 or (0 < first <= last < 64 and count == 1)) and low <= MAX_SHIFT and high in (
            0, low + 1)
        needed = [16 + (tables & 15) if first else tables >> 4 for _, tables in entries if first or not high]
    if not right or any(key not in huffman for key in needed):
        raise Damaged('the header of a scan is damaged, or a Huffman table is missing')
    for component in chosen:
        if component.table is None:  # the table in force at a component's first scan
            if component.table_index not in quantization:
                raise Damaged('a quantization table is missing')
            component.table = quantization[component.table_index]
        shifts = component.shifts[first:last + 1]
        if (shifts != (high or -1)).any() or (first and component.shifts[0] < 0):
            raise Damaged('its scans are not in order')
        shifts[:] = low
    return chosen, 2 if parsed.kind == 'sequential' else 0 if first else 1


def _check_data(parsed: Parsed, chosen: List[Component], bits: int, interval: int, data: bytes) -> None:
    """Raise for a scan too short for its blocks, so file size bounds memory and time."""
    if len(chosen) == 1:
        units, blocks = chosen[0].blocks[0] * chosen[0].blocks[1], 1
    else:
        v, h = np.max([component.sampling for component in parsed.components], axis=0).tolist()
        units = -(-parsed.height // (8 * v)) * -(-parsed.width // (8 * h))
        blocks = sum(component.sampling[0] * component.sampling[1] for component in chosen)
    if units * blocks * bits > 8 * len(data):
        raise Damaged('its scans are too short for its size')
    restarts = [marker[1] - 0xd0 for marker in RESTART.findall(data)]
    expected = -(-units // interval) - 1 if interval else 0
    if restarts != [i % 8 for i in range(expected)]:
        raise Damaged('its restart markers do not fit its size')
