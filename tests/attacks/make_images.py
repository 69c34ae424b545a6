"""Writes the hostile pictures again: ``python tests/attacks/make_images.py``. They are committed."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent / "images"
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
        "009-gif.png": saved("P", "GIF"),
        "010-postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) run\n",
        "011-rows-that-do-not-inflate.png": header(8, 8) + chunk(b"IDAT", b"\xff" * 40) + end,
        "012-text-chunk-that-inflates-to-4-mb.png": header(8, 8) + bomb + chunk(b"IDAT", rows) + end,
        "013-wrong-header-checksum.png": header(8, 8)[:-1] + b"\0" + chunk(b"IDAT", rows) + end,
        "014-truncated.jpg": jpeg[: len(jpeg) // 2],
        "015-header-of-65500x65500.jpg": jpeg[:jpeg_size] + b"\xff\xdc\xff\xdc" + jpeg[jpeg_size + 4 :],
        "016-16-bit.png": saved("I;16", "PNG"),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, data in pictures().items():
        (FOLDER / name).write_bytes(data)
