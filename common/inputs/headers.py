"""What a picture file says of itself, read before any decoder sees it: its format, orientation and cost.

Pure functions of bytes, all bounded: nothing that a file claims decides how much memory a read takes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

EXTENSIONS_OF = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
}
"""Pillow's name of each format that is read, and the names of its files. HEIF and AVIF need an extra."""
EXTENSIONS = tuple(extension for extensions in EXTENSIONS_OF.values() for extension in extensions)

SIDE = 65_500
"""Longest side, pixels: JPEG's."""
STRETCH = 1_000
"""Most times that one side may be the other."""
PIXELS = 50_000_000
"""Most pixels that are decoded of one picture."""
SCALED_PIXELS = 200_000_000
"""Most pixels of a JPEG that is decoded at a fraction of its size, strip by strip."""
BUFFERED_PIXELS = 64_000_000
"""The same where it is progressive or has several scans: all coefficients, 2 bytes each, are in memory."""
SCANS = 100
SCANNED_PIXELS = 1_000_000_000
"""Most scans of a JPEG, and most pixels in all of them together; a progressive photo has 10 scans."""
TIFF_CHUNKS = 65_536
"""Most strips or tiles of a TIFF."""

TIFF_COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32773: "PackBits", 32946: "Deflate"}
"""The others have decoders of their own (JPEG, fax, old vendors'), with histories of their own."""

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
_ORIENTATION = 274


class Refused(Exception):
    """Why a file is not decoded; continues a sentence that starts with its name."""


def sniff(data: bytes) -> str | None:
    """The format of a file, a key of ``EXTENSIONS_OF``, by its first 32 bytes; None for any other."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, 32, 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF"
    return None


def check_size(width: int, height: int, most: int = PIXELS) -> None:
    """Raise Refused for sides that take too much to decode."""
    if width < 1 or height < 1:
        raise Refused(f"is {width}×{height} pixels, expected at least 1×1")
    if max(width, height) > SIDE:
        raise Refused(f"is {width}×{height} pixels, expected sides of at most {SIDE:,}")
    if width * height > most:
        raise Refused(f"is {width}×{height} pixels, expected at most {most:,} in all")
    if max(width, height) > STRETCH * min(width, height):
        raise Refused(f"is {width}×{height} pixels, expected a side of at most {STRETCH:,} times the other")


def orientation_of(exif: bytes) -> int:
    """Tag 274 of EXIF bytes, 1 … 8; 1 where it is absent, broken or another number.

    Only the first directory's entry is looked at: nothing else of the EXIF is parsed.
    """
    if exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", exif, at)
            if tag == _ORIENTATION:
                code = {1: "B", 3: "H", 4: "I"}.get(kind)
                if code is None or count != 1:
                    return 1
                (value,) = struct.unpack_from(order + code, exif, at + 8)
                return int(value) if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


# --- JPEG ---


def jpeg_scans(data: bytes) -> tuple[int, int]:
    """How many scans a JPEG has, as libjpeg meets them, up to one over ``SCANS``; components of the first."""
    scans, components, at = 0, 0, 2
    while scans <= SCANS and (found := _JPEG_MARKER.search(data, at)):
        marker, at = data[found.start() + 1], found.end()
        if marker == 0xD9:  # the end; a second picture may follow
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a segment
            continue
        if marker == 0xDA:
            scans += 1
            components = components or int.from_bytes(data[at + 2 : at + 3], "big")
        at += int.from_bytes(data[at : at + 2], "big")
    return scans, components


def check_scans(scans: int, pixels: int) -> None:
    """Raise Refused for a JPEG that takes long: every scan passes over the whole picture again."""
    if scans > SCANS:
        raise Refused(f"has over {SCANS} scans, expected at most as many")
    if scans > 1 and scans * pixels > SCANNED_PIXELS:
        raise Refused(f"has {scans} scans of {pixels:,} pixels, expected at most {SCANNED_PIXELS:,} in all")


# --- WebP ---


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by a WebP's first chunk; None where it is another one.

    Its decoder allocates the whole canvas when it is opened, before anyone can look at its size.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


# --- TIFF ---

_TIFF_TYPES = {1: (1, "B"), 3: (2, "H"), 4: (4, "I")}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _INTERPRETATION = 256, 257, 258, 259, 262
_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANES = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_KEPT = {
    _WIDTH: 1, _HEIGHT: 1, _BITS: 8, _COMPRESSION: 1, _INTERPRETATION: 1, 266: 1, _OFFSETS: TIFF_CHUNKS,
    _SAMPLES: 1, _STRIP_ROWS: 1, _STRIP_BYTES: TIFF_CHUNKS, _PLANES: 1, 317: 1, 320: 3 << 16,
    _TILE_WIDTH: 1, _TILE_HEIGHT: 1, _TILE_OFFSETS: TIFF_CHUNKS, _TILE_BYTES: TIFF_CHUNKS, 338: 8, 339: 8,
}  # fmt: skip
"""Tags that pixels depend on, and how many values each may have."""


@dataclass(frozen=True)
class Tiff:
    """The first picture of a TIFF file."""

    data: bytes
    """The file with a directory of only the tags that pixels depend on: a decoder reads the values of
    every tag that it finds, and 65,535 of them may each claim the whole file."""
    orientation: int
    bits: int
    """Of each sample."""
    inverted: bool
    """Whether 0 is white."""


def read_tiff(data: bytes) -> Tiff:
    """Check the first directory of a TIFF file. Raises Refused."""
    order = "<" if data[:2] == b"II" else ">"
    kept: dict[int, bytes] = {}
    orientation = 1
    try:
        for tag, entry in _entries(data, order):
            if tag == _ORIENTATION:
                value = _number(data, order, entry)
                orientation = value if 1 <= value <= 8 else 1
            if tag not in _KEPT:
                continue
            kind, count = struct.unpack_from(order + "HI", entry, 2)
            if tag in kept or kind not in _TIFF_TYPES or not 1 <= count <= _KEPT[tag]:
                raise Refused(f"is a TIFF whose tag {tag} has {count} values of type {kind}")
            size, at = count * _TIFF_TYPES[kind][0], struct.unpack_from(order + "I", entry, 8)[0]
            if size > 4 and at + size > len(data):
                raise Refused(f"is a damaged TIFF: its tag {tag} ends after the file")
            kept[tag] = entry
        numbers = {tag: _number(data, order, entry) for tag, entry in kept.items()}
    except struct.error:
        raise Refused("is a damaged TIFF: its directory ends after the file") from None
    _check_tiff(numbers, {tag: struct.unpack_from(order + "I", kept[tag], 4)[0] for tag in kept})
    start = len(data) + len(data) % 2
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept[tag] for tag in sorted(kept)) + bytes(4)
    again = data[:4] + struct.pack(order + "I", start) + data[8:] + bytes(len(data) % 2) + directory
    return Tiff(again, orientation, numbers.get(_BITS, 1), numbers.get(_INTERPRETATION, 1) == 0)


def _entries(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        yield struct.unpack_from(order + "H", data, at)[0], data[at : at + 12]


def _number(data: bytes, order: str, entry: bytes) -> int:
    """The first value of an entry."""
    kind, count = struct.unpack_from(order + "HI", entry, 2)
    if kind not in _TIFF_TYPES:
        return 0
    size, code = _TIFF_TYPES[kind]
    if size * count <= 4:
        return int(struct.unpack_from(order + code, entry, 8)[0])
    (at,) = struct.unpack_from(order + "I", entry, 8)
    return int(struct.unpack_from(order + code, data, at)[0])


def _check_tiff(numbers: dict[int, int], counts: dict[int, int]) -> None:
    for tag, what in ((_WIDTH, "width"), (_HEIGHT, "height")):
        if tag not in numbers:
            raise Refused(f"is a TIFF without a {what}")
    width, height = numbers[_WIDTH], numbers[_HEIGHT]
    check_size(width, height)
    compression = numbers.get(_COMPRESSION, 1)
    if compression not in TIFF_COMPRESSIONS:
        known = ", ".join(dict.fromkeys(TIFF_COMPRESSIONS.values()))
        raise Refused(f"is a TIFF of compression {compression}, expected one of {known}")
    planes = numbers.get(_SAMPLES, 1) if numbers.get(_PLANES, 1) == 2 else 1
    if _TILE_OFFSETS in numbers or _TILE_WIDTH in numbers:
        across, down = numbers.get(_TILE_WIDTH, 0), numbers.get(_TILE_HEIGHT, 0)
        # A tile may reach beyond the picture, and is decoded whole.
        if not 0 < across <= width + 1024 or not 0 < down <= height + 1024:
            raise Refused(f"is a TIFF of {width}×{height} pixels in tiles of {across}×{down}")
        chunks, found = -(-width // across) * -(-height // down), counts.get(_TILE_OFFSETS, 0)
    else:
        rows = numbers.get(_STRIP_ROWS, height)
        if rows < 1:
            raise Refused("is a TIFF with strips of no rows")
        chunks, found = -(-height // min(rows, height)), counts.get(_OFFSETS, 0)
    if found != chunks * planes:
        raise Refused(f"is a TIFF of {found} strips or tiles, its sides make {chunks * planes}")
