"""Stacks of images in ``.npz`` files: one image at a time, and no claim of the file is believed."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from offramp.common.inputs.pictures import PIXELS
from offramp.device.sources.source import Source
from tests import toy
from tests.device.sources.reading import (
    PREPROCESSING,
    errors,
    one_error,
    read,
)


def npy(images: object, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(images), version=version)
    return file.getvalue()


def npy_header(shape: str, descr: str = "'|u1'", fortran: bool = False) -> bytes:
    """The start of a version 1.0 .npy file that claims this shape."""
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def npz(path: Path, data: bytes, name: str = "images.npy", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, data)
    return path


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_give_one_image_at_a_time(tmp_path: Path, colour: bool, compressed: bool) -> None:
    images = toy.images(5).transpose(0, 2, 3, 1)
    stored = images if colour else np.ascontiguousarray(images[..., 0])
    path = tmp_path / "images.npz"
    (np.savez_compressed if compressed else np.savez)(path, labels=np.arange(5), images=stored)
    items = read(path)
    assert [item.name for item in items] == [f"{path}[{index}]" for index in range(5)]
    for item, image in zip(items, images, strict=True):
        expected = image if colour else image[..., :1].repeat(3, axis=2)
        np.testing.assert_array_equal(item.image, expected.transpose(2, 0, 1))
    assert Source([path], PREPROCESSING).count() is None


@pytest.mark.parametrize("layout", ["channels first", "grey", "transparent"])
def test_arrays_of_other_layouts(tmp_path: Path, layout: str) -> None:
    images = toy.images(5)
    stored, shown = images, images
    if layout == "grey":
        stored, shown = images[:, 0, :, :, None], images[:, :1].repeat(3, axis=1)
    elif layout == "transparent":
        stored = np.concatenate([images, np.zeros_like(images[:, :1])], axis=1).transpose(0, 2, 3, 1)
        shown = np.full_like(images, 255)
    np.savez(tmp_path / "images.npz", images=np.ascontiguousarray(stored))
    for item, image in zip(read(tmp_path / "images.npz"), shown, strict=True):
        np.testing.assert_array_equal(item.image, image)


def test_an_array_of_no_images_gives_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((0, 8, 8, 3), np.uint8))
    assert read(tmp_path / "images.npz") == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros((2, 8, 8, 3), np.float32)), "'images' is float32 (2, 8, 8, 3), expected uint8"),
        (npy(np.zeros((2, 8, 8, 3), ">u2")), "expected uint8"),
        (npy(np.zeros((2, 8, 8, 5), np.uint8)), "(2, 8, 8, 5) and has no axis of channels, expected [N, H"),
        (npy(np.zeros((160, 8, 3), np.uint8)), "and may be one picture or 160 grey ones, expected [N, H"),
        (npy(np.zeros((3, 160, 8), np.uint8)), "and may be one picture or 3 grey ones, expected [N, H"),
        (npy(np.zeros((160, 8, 1), np.uint8)), "and may be one picture or 160 grey ones, expected [N, H"),
        (npy(np.zeros((2, 3, 8, 3), np.uint8)), "and has its channels at place 1 or at place 3, expected"),
        (npy(np.zeros((8, 8), np.uint8)), "(8, 8) and is not a stack of pictures, expected [N, H, W, 3]"),
        (npy(np.uint8(3)), "() and is not a stack of pictures, expected [N, H, W, 3]"),
        (npy(np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))), "C order"),
        (npy(np.zeros((2, 0, 8, 3), np.uint8)), "at least 1×1"),
        (npy(np.zeros((1, 8, 8, 3), np.uint8), (2, 0)), "is .npy version (2, 0), expected (1, 0)"),
        (b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f" + bytes(1000), "is .npy version (2, 0)"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "is .npy version (9, 0)"),
        (npy_header("(1, 10000, 10000, 3)"), "is 10000×10000 pixels, expected at most 50,000,000"),
        (npy_header(f"(1, {2**40}, {2**40}, 3)"), "sides of at most 65,500"),
        (npy_header("(5, -1, 4, 3)") + bytes(20_000_000), "no negative side"),
        (npy_header("(5, -1, -1, 3)"), "no negative side"),
        (npy_header("(-5, 8, 8, 3)"), "no negative side"),
        (npy_header("(2, 'a', 8)"), "is a damaged .npy"),
        (npy_header("(2, 8, 8", "'|u1'"), "is a damaged .npy"),
        (npy_header("(2, 8, 8)", "[('a', '|u1'), ('b', '<f8')]"), "expected uint8"),
        (npy_header("(" * 5000), "is a damaged .npy"),
        (b"", "is a damaged .npy"),
        (b"no array", "is a damaged .npy"),
    ],
    ids=[
        "float32",
        "big-endian",
        "five channels",
        "one picture",
        "one picture by channels",
        "one grey picture",
        "channels at both ends",
        "two axes",
        "scalar",
        "fortran",
        "no height",
        "version 2",
        "2 GiB header",
        "version 9",
        "too many pixels",
        "overflow",
        "negative side",
        "two negative sides",
        "negative count",
        "text in the shape",
        "open bracket",
        "fields",
        "deep brackets",
        "empty",
        "text",
    ],
)
def test_a_bad_array_is_one_error_and_the_next_file_is_read(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = npz(tmp_path / "bad.npz", data)
    tracemalloc.start()
    try:
        error = one_error(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert message in error


def test_a_pickled_array_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    class Run:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "was-here"),)

    images = np.empty(1, object)
    images[0] = Run()
    np.savez(tmp_path / "bad.npz", images=images)
    assert "'images' is object (1,), expected uint8" in one_error(tmp_path / "bad.npz")
    assert not (tmp_path / "was-here").exists()


def test_a_short_array_gives_what_it_has_and_one_error(tmp_path: Path) -> None:
    images = toy.images(3).transpose(0, 2, 3, 1)
    path = npz(tmp_path / "bad.npz", npy_header("(1000000000, 8, 8, 3)") + images.tobytes() + b"rest")
    *good, bad = read(path)
    assert [item.name for item in good] == [f"{path}[{index}]" for index in range(3)]
    assert str(bad.image) == f"{path}[3]: the array ends early, its header says 1000000000 images"


def test_a_bomb_takes_no_more_memory_than_its_images(tmp_path: Path) -> None:
    count = 50_000
    path = npz(tmp_path / "bomb.npz", npy_header(f"({count}, 8, 8, 3)") + bytes(count * 192 * 3))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        items = iter(Source([path], PREPROCESSING))
        for _ in range(2000):
            assert isinstance(next(items).image, np.ndarray)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_one_huge_image_in_an_array_is_not_unpacked_when_it_is_short(tmp_path: Path) -> None:
    path = npz(tmp_path / "bad.npz", npy_header(f"(1, {PIXELS // 1000}, 1000, 3)") + bytes(1000))
    assert "the array ends early" in one_error(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no zip"), "is a damaged .npz"),
        (lambda path: path.write_bytes(b""), "is a damaged .npz"),
        (
            lambda path: npz(path, npy(np.zeros((1, 8, 8), np.uint8)), "other.npy"),
            "has no array named 'images'",
        ),
        (lambda path: npz(path, npy(np.zeros((1, 8, 8), np.uint8)), "../images.npy"), "has no array named"),
        (lambda path: path.mkdir(), "is a directory, expected a plain file"),
    ],
    ids=["no zip", "empty", "other name", "escaping name", "folder"],
)
def test_a_bad_archive_is_one_error(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "bad.npz"
    make(path)
    (tmp_path / "list.txt").write_text("bad.npz\n")
    (item,) = read(tmp_path / "list.txt")
    assert str(item.image).startswith(f"{path}: ") and message in str(item.image)


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_damaged_byte_of_an_archive_is_an_error_or_harmless(tmp_path: Path, compression: int) -> None:
    images = toy.images(3).transpose(0, 2, 3, 1)
    whole = npz(tmp_path / "whole.npz", npy(images), compression=compression).read_bytes()
    path = tmp_path / "bad.npz"
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        items = read(path)
        assert len(errors(items)) <= 1 and len(items) <= 4
        assert all("\n" not in error for error in errors(items))
