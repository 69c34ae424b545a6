"""Writes the hostile pictures again: ``python tests/attacks/make_images.py``. They are committed."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent / "images"
ALL_COLOURS = b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0"
ONE_COLOUR = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int) -> bytes:
    """Signature and header of an 8-bit RGB picture."""
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def saved(mode: str, kind: str) -> bytes:
    """A small picture with something in it."""
    buffer = BytesIO()
    picture = Image.radial_gradient("L").resize((32, 32)).convert(mode)
    picture.save(buffer, kind)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    """File name → contents."""
    png, jpeg = saved("RGB", "PNG"), saved("RGB", "JPEG")
    rows = zlib.compress(bytes(25) * 8)
    end = chunk(b"IEND", b"")
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(4 << 20), 9))
    jpeg_size = jpeg.index(b"\xff\xc0") + 5
    return {
        "001-text.png": b"This is no picture.\n",
        "002-empty.png": b"",
        "003-truncated.png": png[: len(png) // 2],
        "004-header-of-20000x20000.png": header(20_000, 20_000) + chunk(b"IDAT", rows) + end,
        "005-header-of-8000x8000.png": header(8_000, 8_000) + chunk(b"IDAT", rows) + end,
        "006-header-of-4-billion-squared.png": header(2**32 - 1, 2**32 - 1) + chunk(b"IDAT", rows) + end,
        "007-header-only.png": header(8, 8),
        "008-signature-only.png": SIGNATURE,
        "009-gif-cut-in-its-header.png": saved("P", "GIF")[:9],
        "010-postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) run\n",
        "011-rows-that-do-not-inflate.png": header(8, 8) + chunk(b"IDAT", b"\xff" * 40) + end,
        "012-text-chunk-that-inflates-to-4-mb.png": header(8, 8) + bomb + chunk(b"IDAT", rows) + end,
        "013-wrong-header-checksum.png": header(8, 8)[:-1] + b"\0" + chunk(b"IDAT", rows) + end,
        "014-truncated.jpg": jpeg[: len(jpeg) // 2],
        "015-header-of-65500x65500.jpg": jpeg[:jpeg_size] + b"\xff\xdc\xff\xdc" + jpeg[jpeg_size + 4 :],
        "016-32-bit-without-a-range.tif": tiff({256: 8, 257: 8, 258: 32, 262: 1, 339: 2}, b"\x80\0\0\0" * 64),
        "017-1x50000000.png": header(1, 50_000_000) + chunk(b"IDAT", rows) + end,
        "018-60000x8.png": header(60_000, 8) + chunk(b"IDAT", rows) + end,
        "019-6500-scans.jpg": scans(32, 6500),
        "020-50-scans-of-36-megapixels.jpg": scans(6000, 50),
        "021-header-of-16383x16383.webp": webp(16_383, 16_383),
        "022-screen-of-65535x65535.gif": b"GIF89a" + b"\xff" * 4 + bytes(3) + saved("P", "GIF")[13:],
        "023-header-of-100000x100000.bmp": bmp(100_000, 100_000),
        "024-65000-tags-of-the-whole-file.tif": tags(65_000),
        "025-more-strips-than-rows.tif": tiff({256: 8, 257: 8, 258: 8, 262: 1}, bytes(64), strips=60_000),
        "026-one-tile-of-65536x65536.tif": tiff(
            {256: 8, 257: 8, 258: 8, 262: 1, 322: 65_536, 323: 65_536, 324: 8, 325: 64}, bytes(64)
        ),
        "027-jpeg-in-a-tiff.tif": tiff({256: 8, 257: 8, 258: 8, 259: 7, 262: 1}, jpeg),
        "028-header-of-60000x60000.tif": tiff({256: 60_000, 257: 60_000, 258: 8, 262: 1}, bytes(64)),
        "029-strips-of-no-rows.tif": tiff({256: 8, 257: 8, 258: 8, 262: 1, 278: 0}, bytes(64)),
        "030-directory-behind-the-end.tif": b"II*\0\xff\xff\xff\x7f",
        "031-avif-of-nothing.avif": b"\0\0\0\x20ftypavif" + bytes(20),
        "032-progressive-of-13000x13000.jpg": resized(jpeg.replace(b"\xff\xc0", b"\xff\xc2"), 13_000),
        "033-first-scan-of-one-colour.jpg": resized(jpeg.replace(ALL_COLOURS, ONE_COLOUR), 13_000),
    }


def resized(jpeg: bytes, side: int) -> bytes:
    """The JPEG with these sides in its header."""
    at = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2")) + 5
    return jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan, of nothing new, comes again and again."""
    buffer = BytesIO()
    Image.new("L", (side, side), 90).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + (b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" + b"\x7f") * count + b"\xff\xd9"


def webp(width: int, height: int) -> bytes:
    """An animated WebP that claims this canvas."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 2) + sides + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int) -> bytes:
    """A BMP that claims this size."""
    fields = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + fields + bytes(64)


def tiff(tags: dict[int, int], pixels: bytes, strips: int = 1) -> bytes:
    """A TIFF of these tags around one strip, which may be claimed many times."""
    start = 8 + len(pixels) + len(pixels) % 2
    offsets = start + 2 + 12 * (len(tags) + 2) + 4
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    if 324 not in tags:
        many = struct.pack("<HHII", 273, 4, strips, 8 if strips == 1 else offsets)
        sizes = struct.pack("<HHII", 279, 4, strips, len(pixels) if strips == 1 else offsets)
        entries |= {273: many, 279: sizes}
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    file = b"II*\0" + struct.pack("<I", start) + pixels + bytes(len(pixels) % 2) + directory
    return file + (struct.pack("<I", 8) * strips if strips > 1 else b"")


def tags(count: int) -> bytes:
    """A TIFF with this many tags, each of which claims most of the file, 48 GB in all."""
    size = 8 + 2 + 12 * count
    entries = b"".join(struct.pack("<HHII", 400 + tag, 7, size - 8, 8) for tag in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, data in pictures().items():
        (FOLDER / name).write_bytes(data)
