"""Plain files from strangers: the good ones are read, each bad one is a single clear error."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.common.errors import DataError
from offramp.common.inputs.pictures import decode as decode_picture
from offramp.device.sources.source import Source
from tests.device.sources.reading import (
    PREPROCESSING,
    fault_of,
    names,
    one_error,
    png_bytes,
    read,
    write_png,
)

WHOLE = png_bytes(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims this size and holds hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "GIF")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(8, 8), (31, 5)])
def test_pictures_of_every_mode_become_the_heads_input(mode: str, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", size, (255, 255, 255)).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode_picture("picture", file.getvalue(), PREPROCESSING)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8
    assert (pixels > 240).all()


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "PNG", transparency=bytes([0, 128]))
    assert decode_picture("picture", file.getvalue(), PREPROCESSING).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture at all\n" * 10, "is not a picture (starts with 6e 6f 20 70)"),
        (b"", "is empty, expected 1 … "),
        (WHOLE[: len(WHOLE) // 2], "is a damaged picture"),
        (WHOLE[:20], "is "),
        (WHOLE[:200] + bytes(50) + WHOLE[250:], "is a damaged picture"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "is "),
        (gif()[:9], "is a damaged GIF picture: its header"),
        (png_header(20_000, 20_000), "pixels, expected at most 50,000,000"),
        (png_header(10_000, 10_000), "pixels, expected at most 50,000,000"),
        (png_header(7_200, 7_000), "pixels, expected at most 50,000,000"),
        (png_header(2**31 - 1, 2**31 - 1), "pixels, expected at most 50,000,000"),
        (png_header(0, 5), "is "),
        (png_header(100, 100), "is a damaged picture"),
    ],
    ids=[
        "text",
        "empty",
        "truncated",
        "header only",
        "corrupt",
        "jpeg of zeros",
        "gif header",
        "20000x20000",
        "10000x10000",
        "just too large",
        "2^31",
        "no width",
        "few pixels",
    ],
)
def test_a_bad_picture_is_one_error_and_the_next_is_read(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        error = one_error(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert message in error


@pytest.mark.parametrize("suffix", [".png", ".npz"])
def test_a_named_pipe_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    assert "is a named pipe, expected a plain file" in one_error(path)
    assert [type(item.image) for item in read(tmp_path)].count(DataError) == (suffix == ".png")


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert f"is longer than {64 << 20} bytes, expected at most that" in one_error(path)


def test_a_link_with_a_name_too_long_is_one_error(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("x" * 300)
    (tmp_path / "link").symlink_to("x" * 300)
    write_png(tmp_path / "c.png")
    items = list(Source([tmp_path], PREPROCESSING))
    assert names(items) == ["a.png", "c.png"]
    assert "b.png: cannot be read: File name too long" in fault_of(items)
