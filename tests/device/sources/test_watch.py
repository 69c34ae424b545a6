"""Watched folders: each picture once it is whole, and again once it was replaced."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.common.inputs.folder import Found, find
from offramp.common.inputs.pictures import decode
from offramp.device.sources import folders
from offramp.device.sources.folders import Folders
from offramp.device.sources.item import Item
from offramp.device.sources.source import Source
from offramp.device.sources.watch import PATIENCE, Watch, is_hollow, missing, read_whole
from tests.device.sources.reading import (
    PREPROCESSING,
    failing_scan,
    fault_of,
    names,
    watched,
    write_png,
)
from tests.processes import Processes, until


def test_new_pictures_are_read_as_they_come(watching: Any, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    reader = watching(tmp_path, watch=True)
    until(lambda: reader.names == ["a.png"], "the first")
    (tmp_path / "deeper").mkdir()
    write_png(tmp_path / "deeper" / "b.png")
    until(lambda: reader.names == ["a.png", "b.png"], "the second")
    (tmp_path / "notes.txt").write_text("no picture")
    write_png(tmp_path / "c.png")
    until(lambda: reader.names[2:] == ["c.png"], "the third")


def test_a_picture_that_is_written_again_is_a_new_one(watching: Any, tmp_path: Path) -> None:
    write_png(tmp_path / "latest.png", 1)
    reader = watching(tmp_path, watch=True)
    until(lambda: len(reader.items) == 1, "the first")
    for value in (2, 3):
        write_png(tmp_path / "new", value)
        (tmp_path / "new").rename(tmp_path / "latest.png")
        until(lambda value=value: len(reader.items) == value, "the next")  # type: ignore[misc]
    assert [int(np.asarray(item.image).max()) for item in reader.items] == [1, 2, 3]


def test_a_half_written_picture_is_waited_for(
    watching: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows with every look at it: nothing is read before it has stopped."""
    write_png(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "growing.png"
    looks = 0
    real = find

    def grow(folder: Path, suffixes: Collection[str]) -> Found:
        nonlocal looks
        looks += 1
        if looks <= 10:
            end = len(whole) * looks // 10
            path.write_bytes(whole[:end])
        return real(folder, suffixes)

    monkeypatch.setattr(folders, "find", grow)
    reader = watching(tmp_path, watch=True)
    until(lambda: reader.items, "the picture")
    assert looks > 10 and isinstance(reader.items[0].image, np.ndarray)
    assert len(reader.items) == 1


def test_an_empty_picture_is_not_read(watching: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    write_png(tmp_path / "b.png")
    reader = watching(tmp_path, watch=True)
    until(lambda: reader.items, "the other one")
    assert reader.names == ["b.png"]


def test_a_watched_folder_as_a_process(run: Processes, tmp_path: Path) -> None:
    device = run.start_device("--threshold", 0, "--json", "--watch", tmp_path)
    for number in range(5):
        write_png(tmp_path / f"{number}.png")
        until(lambda number=number: len(device.answers) == number + 1, "its answer")  # type: ignore[misc]
    device.send(signal.SIGTERM)
    assert device.wait() == 130
    assert device.summary["early_exit"] == 5


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_watched_folder_that_fails_for_a_while_is_said_once_and_answered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    bad = write_png(tmp_path / "bad" / "a.png").parent
    items, end = watched(tmp_path)
    until(lambda: names(items) == ["a.png"], "the first")
    on = failing_scan(monkeypatch, bad, number)
    until(lambda: len(items) == 2, "the fault")
    write_png(tmp_path / "b.png")
    until(lambda: len(items) == 3, "the second")
    on.clear()
    write_png(tmp_path / "c.png")
    until(lambda: "c.png" in names(items), "the third")
    end()
    assert names(items) == ["a.png", "b.png", "c.png"]
    assert fault_of(items) == f"{bad}: cannot be listed: {os.strerror(number)}"


def test_a_watched_folder_goes_and_comes_back(tmp_path: Path) -> None:
    folder = write_png(tmp_path / "in" / "a.png").parent
    items, end = watched(folder)
    until(lambda: names(items) == ["a.png"], "the first")
    folder.rename(tmp_path / "away")
    until(lambda: len(items) == 2, "the fault")
    write_png(folder / "b.png")
    until(lambda: "b.png" in names(items), "the second")
    end()
    assert "in: cannot be listed: No such file" in fault_of(items)


def test_a_bad_link_in_a_watched_folder_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("x" * 300)
    write_png(tmp_path / "b.png")
    items, end = watched(tmp_path)
    until(lambda: len(items) == 2, "both")
    write_png(tmp_path / "c.png")
    until(lambda: "c.png" in names(items), "the third")
    end()
    assert names(items) == ["b.png", "c.png"] and "File name too long" in fault_of(items)


def test_a_vanishing_folder_ends_no_process(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    """Folders come and go while they are looked at; what stays is answered."""
    device = run.start_device("--threshold", 0, "--json", "--watch", tmp_path)
    for number in range(300):
        deep = tmp_path / "come" / f"{number}"
        deep.mkdir(parents=True)
        (deep / "x.png").touch()
        shutil.rmtree(tmp_path / "come")
    shutil.copy(toy_images / "00.png", tmp_path)
    until(lambda: device.answers, "the one that stays")
    device.send(signal.SIGTERM)
    assert device.wait() == 130 and device.summary["unreadable"] == 0


def whole_of(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("preallocated", [False, True])
def test_half_a_picture_is_not_answered(kind: str, preallocated: bool, tmp_path: Path) -> None:
    """It does not change for many looks in the middle of being written, as on a slow link."""
    whole = whole_of(kind) + bytes(0)
    half = whole[: len(whole) // 2]
    path = tmp_path / f"a.{kind.lower()}"
    watch = Watch()
    source = Source([tmp_path], PREPROCESSING, True)

    def look() -> list[Item]:
        found, _ = source._folders.look_at_all()
        return list(watch.whole(found, partial(read_whole, PREPROCESSING)))

    path.write_bytes(half + bytes(len(whole) - len(half)) if preallocated else half)
    for _ in range(PATIENCE - 2):
        assert look() == []
    with path.open("r+b") as file:
        file.seek(len(half))
        file.write(whole[len(half) :])
    (item,) = [item for _ in range(PATIENCE) for item in look()]
    np.testing.assert_array_equal(item.image, decode("a", whole, PREPROCESSING))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_half_a_picture_that_stays_so_is_one_error(kind: str, tmp_path: Path) -> None:
    whole = whole_of(kind)
    (tmp_path / f"a.{kind.lower()}").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    items, end = watched(tmp_path)
    until(lambda: items, "its error")
    end()
    assert "is not whole: zeros at its end" in fault_of(items) or kind == "WEBP"
    assert names(items) == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_whole_picture_lacks_nothing(kind: str) -> None:
    assert missing(whole_of(kind)) is None and not is_hollow(whole_of(kind))


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_a_picture_whose_last_pixels_are_black_is_answered(kind: str, tmp_path: Path) -> None:
    """Its file ends in zeros by right: a test for such an end would refuse whole pictures."""
    pixels = np.full((64, 64, 3), 200, np.uint8)
    # The last rows of the file: a BMP starts with the lowest.
    pixels[slice(0, 32) if kind == "BMP" else slice(32, 64)] = 0
    path = tmp_path / f"a.{kind.lower()}"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    path.write_bytes(file.getvalue())
    assert missing(path.read_bytes()) == "ends in zeros"
    watch, folder = Watch(), Folders([tmp_path])
    looks = [
        list(watch.whole(folder.look_at_all()[0], partial(read_whole, PREPROCESSING)))
        for _ in range(PATIENCE + 2)
    ]
    assert [len(look) for look in looks] == [0] * PATIENCE + [1, 0]
    assert isinstance(looks[PATIENCE][0].image, np.ndarray)
