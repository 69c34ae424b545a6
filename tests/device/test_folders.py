"""Folders and lists as other people's disks have them: one bad entry ends nothing, and nothing is silent."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import Preprocessing
from offramp.common.errors import DataError
from offramp.common.inputs.pictures import decode
from offramp.device.sources.source import Item, Source
from offramp.device.sources.watch import PATIENCE, Watch, is_hollow, missing
from tests import toy
from tests.processes import Processes, until

PREPROCESSING = Preprocessing(color="RGB", height=toy.SIDE, width=toy.SIDE, resize="bilinear")


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(path, "PNG")
    return path


def names(items: list[Item], good: bool = True) -> list[str]:
    return [Path(item.name).name for item in items if isinstance(item.image, np.ndarray) == good]


def fault_of(items: list[Item]) -> str:
    (fault,) = (str(item.image) for item in items if isinstance(item.image, DataError))
    return fault


def failing_scan(monkeypatch: pytest.MonkeyPatch, bad: Path, number: int) -> list[bool]:
    """From now on listing ``bad`` fails, while the returned list is not empty."""
    on = [True]
    real = os.scandir

    def scan(path: Any = ".") -> Any:
        if on and Path(path) == bad:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    return on


# --- one bad entry ---


def test_a_link_with_a_name_too_long_is_one_error(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("x" * 300)
    (tmp_path / "link").symlink_to("x" * 300)
    png(tmp_path / "c.png")
    items = list(Source([tmp_path], PREPROCESSING))
    assert names(items) == ["a.png", "c.png"]
    assert "b.png: cannot be read: File name too long" in fault_of(items)


def test_a_circle_of_links_is_not_followed(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
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
    png(tmp_path / "deeper" / "b.png")
    other = png(tmp_path / "other" / "c.png").parent
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
    png(tmp_path / "a.png")
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


# --- what is passed over ---


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


# --- watched and repeated folders ---


def watched(*paths: Path) -> tuple[list[Item], Callable[[], None]]:
    """The items of watched folders as they come, and what stops it."""
    stop = threading.Event()
    source = Source(list(paths), PREPROCESSING, True, lambda _: stop.wait(0.005))
    items: list[Item] = []

    def read() -> None:
        for item in source:
            items.append(item)  # noqa: PERF402 - others see them come

    thread = threading.Thread(target=read, daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()

    return items, end


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_watched_folder_that_fails_for_a_while_is_said_once_and_answered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    bad = png(tmp_path / "bad" / "a.png").parent
    items, end = watched(tmp_path)
    until(lambda: names(items) == ["a.png"], "the first")
    on = failing_scan(monkeypatch, bad, number)
    until(lambda: len(items) == 2, "the fault")
    png(tmp_path / "b.png")
    until(lambda: len(items) == 3, "the second")
    on.clear()
    png(tmp_path / "c.png")
    until(lambda: "c.png" in names(items), "the third")
    end()
    assert names(items) == ["a.png", "b.png", "c.png"]
    assert fault_of(items) == f"{bad}: cannot be listed: {os.strerror(number)}"


def test_a_watched_folder_goes_and_comes_back(tmp_path: Path) -> None:
    folder = png(tmp_path / "in" / "a.png").parent
    items, end = watched(folder)
    until(lambda: names(items) == ["a.png"], "the first")
    folder.rename(tmp_path / "away")
    until(lambda: len(items) == 2, "the fault")
    png(folder / "b.png")
    until(lambda: "b.png" in names(items), "the second")
    end()
    assert "in: cannot be listed: No such file" in fault_of(items)


def test_a_bad_link_in_a_watched_folder_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("x" * 300)
    png(tmp_path / "b.png")
    items, end = watched(tmp_path)
    until(lambda: len(items) == 2, "both")
    png(tmp_path / "c.png")
    until(lambda: "c.png" in names(items), "the third")
    end()
    assert names(items) == ["b.png", "c.png"] and "File name too long" in fault_of(items)


def test_a_repeated_folder_of_faults_only_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_scan(monkeypatch, tmp_path, errno.EIO)
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    items = list(Source([tmp_path], PREPROCESSING, wait=wait, repeat=True))
    assert len(items) == 1 and len(waits) == 3


# --- lists ---


def test_lines_of_a_list_end_with_newlines_only(tmp_path: Path) -> None:
    odd = [f"a{mark}b.png".encode() for mark in "\u2028\u2029\x0b\x0c\x85\x1c\r"] + [b"caf\xe9.png"]
    for name in odd:
        shutil.copy(png(tmp_path / "good"), os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfgood\r\n\r\n" + b"\n".join(odd) + b"\r\ngood")
    items = list(Source([path], PREPROCESSING))
    assert [os.fsencode(Path(item.name).name) for item in items] == [b"good", *odd, b"good"]
    assert all(isinstance(item.image, np.ndarray) for item in items)


def test_lines_of_standard_input_are_those_of_a_list(
    run: Processes, toy_images: Path, tmp_path: Path
) -> None:
    odd = [b"a\xe2\x80\xa8b.png", b"a\x0bb\x0c", b"caf\xe9.png"]
    text = b"\xef\xbb\xbf"
    for name in odd:
        path = os.path.join(os.fsencode(tmp_path), name)
        shutil.copy(toy_images / "00.png", os.fsdecode(path))
        text += path + b"\r\n"
    (tmp_path / "lines").write_bytes(text)
    with (tmp_path / "lines").open() as lines:
        status, device = run.device("--threshold", 0, "--json", "-", stdin=lines)
    assert (status, len(device.answers)) == (0, 3), device.errors


@pytest.mark.parametrize("flags", [["-"], ["--watch", "-", "."]], ids=["alone", "with a folder"])
def test_a_closed_standard_input_is_one_error(toy_bundle: Bundle, flags: list[str]) -> None:
    command = 'exec "$0" -m offramp.device.app --bundle "$1" --threshold 0 "${@:2}" <&-'
    arguments = [sys.executable, str(toy_bundle.path), *flags]
    done = subprocess.run(
        ["bash", "-c", command, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "edge-device: -: standard input is closed, expected one path a line\n"


def test_a_standard_input_that_cannot_be_read_is_one_error(run: Processes, tmp_path: Path) -> None:
    handle = os.open(tmp_path / "lines", os.O_WRONLY | os.O_CREAT)
    status, device = run.device("--threshold", 0, "--json", "-", stdin=handle)
    os.close(handle)
    assert status == 5 and device.stderr == ["edge-device: -: cannot be read: Bad file descriptor"]


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


# --- files that are being written ---


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
        return list(watch.whole(found, source._read_whole))

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
