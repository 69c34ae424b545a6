"""Folders as other people's disks have them: one bad entry ends nothing, and nothing is silent."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.device.sources.source import Source
from tests import toy
from tests.device.sources.reading import (
    PREPROCESSING,
    failing_scan,
    fault_of,
    names,
    png_bytes,
    read,
    write_png,
)
from tests.processes import Processes


def test_a_folder_gives_its_pictures_by_name(tmp_path: Path) -> None:
    images = toy.images(4)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.md").write_text("no picture")
    for name, image in zip(["b.PNG", "a.png", "deeper/c.png", "z.png"], images, strict=True):
        (tmp_path / name).write_bytes(png_bytes(image.transpose(1, 2, 0)))
    items = read(tmp_path)
    assert [Path(item.name).name for item in items] == ["a.png", "b.PNG", "c.png", "z.png"]
    for item, image in zip(items, images[[1, 0, 2, 3]], strict=True):
        assert isinstance(item.image, np.ndarray) and item.image.flags.c_contiguous
        np.testing.assert_array_equal(item.image, image)
    assert Source([tmp_path], PREPROCESSING).count() == 4


def test_a_picture_that_vanishes_is_one_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_png(tmp_path / name)
    items = iter(Source([tmp_path], PREPROCESSING))
    assert isinstance(next(items).image, np.ndarray)
    (tmp_path / "b.png").unlink()
    gone, last = items
    assert "No such file" in str(gone.image)
    assert isinstance(last.image, np.ndarray)


def test_a_circle_of_links_is_not_followed(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    items = list(Source([tmp_path], PREPROCESSING))
    assert names(items) == ["a.png"]
    assert names(items, good=False) == ["one.png", "two.png"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENAMETOOLONG])
@pytest.mark.parametrize("where", [".", "deeper"])
def test_a_folder_that_cannot_be_listed_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    write_png(tmp_path / "deeper" / "b.png")
    other = write_png(tmp_path / "other" / "c.png").parent
    bad = tmp_path / where
    failing_scan(monkeypatch, bad, number)
    source = Source([tmp_path, other], PREPROCESSING)
    items = list(source)
    assert names(items) == (["c.png", "c.png"] if where == "deeper" else ["c.png"])
    assert fault_of(items) == f"{bad}: cannot be listed: {os.strerror(number)}"
    assert source.count() == len(items)


def test_what_fails_in_the_middle_of_a_folder_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "a.png")
    real = os.scandir

    class Breaking:
        def __init__(self, path: Any) -> None:
            self._entries = real(path)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            yield from self._entries
            raise OSError(errno.EIO, "Input/output error")

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Breaking)
    items = list(Source([tmp_path], PREPROCESSING))
    assert names(items) == ["a.png"] and "cannot be listed: Input/output error" in fault_of(items)


@pytest.mark.skipif(os.geteuid() != 0, reason="has to become another user")
def test_a_sub_folder_without_permission_as_a_process(toy_bundle: Bundle, toy_images: Path) -> None:
    """Without search permission it is listed and its files cannot be read; without any it is not listed."""
    # pytest's own folders are for their user alone.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        _without_permission(toy_bundle, toy_images, Path(name))


def _without_permission(toy_bundle: Bundle, toy_images: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name, mode in (("search", 0o644), ("list", 0o000), ("good", 0o755)):
        folder = photos / name
        folder.mkdir(parents=True)
        shutil.copy(toy_images / "00.png", folder / "a.png")
        folder.chmod(mode)
    code = (
        "import os, sys; from offramp.device.app import main; import offramp.device.device;"
        "from offramp.common.bundle.load import load_bundle; import PIL.PngImagePlugin;"
        "import offramp.device.sources.source, offramp.device.report;"
        "bundle = load_bundle(sys.argv[1]);"
        "import offramp.common.bundle.load as b; b.load_bundle = lambda *_: bundle;"
        # What tries the graph could not even find Python where it lies below /root: it has passed already.
        "from offramp.common.part.engine import Engine; Engine(bundle).load_head();"
        "os.chdir(sys.argv[2]); os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "sys.exit(main(['--bundle', '.', '--threshold', '0', '--json', 'photos']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(toy_bundle.path), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    assert "photos/list: cannot be listed: Permission denied" in done.stderr
    assert "photos/search/a.png: cannot be read: Permission denied" in done.stderr
    assert '"images": 1, "unreadable": 2' in done.stdout


def test_what_is_passed_over_is_said(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    for name in ("notes.txt", "more.TXT", "Makefile", "film.xyz"):
        (tmp_path / name).write_text("no picture")
    status, device = run.device("--threshold", 0, "--json", tmp_path)
    assert status == 0
    assert device.summary["images"] == 0
    assert device.summary["passed_over"] == {".txt": 2, "": 1, ".xyz": 1}
    (line,) = device.stderr
    assert "WARNING" in line and "4 files passed over that are not pictures by their names" in line
    shutil.copy(toy_images / "00.png", tmp_path)
    status, device = run.device("--threshold", 0, "--quiet", tmp_path)
    assert status == 0
    assert "passed over 4 files that are not pictures by their names: 2 .txt" in "\n".join(device.stdout)


def test_kinds_that_a_stranger_makes_up_take_no_memory(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"a.{number:0100}").touch()
    source = Source([tmp_path], PREPROCESSING)
    assert list(source) == []
    assert sum(source.passed_over.values()) == 200 and len(source.passed_over) <= 33
