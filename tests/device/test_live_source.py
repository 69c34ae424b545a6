"""Images that come while the program runs: watched folders, standard input, videos and cameras."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.common.bundle.manifest import Preprocessing
from offramp.common.errors import ConfigError, DataError
from offramp.common.inputs.folder import Found, find
from offramp.device.sources import folders, source, watch
from offramp.device.sources.source import Item, Source
from tests import toy
from tests.processes import WAIT, Processes, until

PREPROCESSING = Preprocessing(color="RGB", height=toy.SIDE, width=toy.SIDE, resize="bilinear")


class Reader:
    """Reads a source on a thread of its own until told to stop."""

    def __init__(self, *paths: Path | str, watch: bool = False) -> None:
        self.items: list[Item] = []
        self._stop = threading.Event()
        made = Source(list(paths), PREPROCESSING, watch, lambda _: self._stop.wait(0.005))
        self._thread = threading.Thread(target=lambda: self.items.extend(made), daemon=True)
        # One by one, so that others see them come.
        self._thread = threading.Thread(target=self._read, args=(made,), daemon=True)
        self._thread.start()

    def _read(self, made: Source) -> None:
        for item in made:
            self.items.append(item)

    @property
    def names(self) -> list[str]:
        return [Path(item.name).name for item in self.items]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


@pytest.fixture
def read() -> Iterator[Any]:
    readers: list[Reader] = []

    def make(*paths: Path | str, watch: bool = False) -> Reader:
        readers.append(Reader(*paths, watch=watch))
        return readers[-1]

    yield make
    for reader in readers:
        reader.stop()


def png(path: Path, value: int = 7) -> None:
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, "PNG")


# --- watched folders ---


def test_new_pictures_are_read_as_they_come(read: Any, tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    reader = read(tmp_path, watch=True)
    until(lambda: reader.names == ["a.png"], "the first")
    (tmp_path / "deeper").mkdir()
    png(tmp_path / "deeper" / "b.png")
    until(lambda: reader.names == ["a.png", "b.png"], "the second")
    (tmp_path / "notes.txt").write_text("no picture")
    png(tmp_path / "c.png")
    until(lambda: reader.names[2:] == ["c.png"], "the third")


def test_a_picture_that_is_written_anew_is_a_new_one(read: Any, tmp_path: Path) -> None:
    png(tmp_path / "latest.png", 1)
    reader = read(tmp_path, watch=True)
    until(lambda: len(reader.items) == 1, "the first")
    for value in (2, 3):
        png(tmp_path / "new", value)
        (tmp_path / "new").rename(tmp_path / "latest.png")
        until(lambda value=value: len(reader.items) == value, "the next")  # type: ignore[misc]
    assert [int(np.asarray(item.image).max()) for item in reader.items] == [1, 2, 3]


def test_a_half_written_picture_is_waited_for(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows with every look at it: nothing is read before it has stopped."""
    png(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "growing.png"
    looks = 0
    real = find

    def grow(folder: Path) -> Found:
        nonlocal looks
        looks += 1
        if looks <= 10:
            end = len(whole) * looks // 10
            path.write_bytes(whole[:end])
        return real(folder)

    monkeypatch.setattr(folders, "find", grow)
    reader = read(tmp_path, watch=True)
    until(lambda: reader.items, "the picture")
    assert looks > 10 and isinstance(reader.items[0].image, np.ndarray)
    assert len(reader.items) == 1


def test_an_empty_picture_is_not_read(read: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    png(tmp_path / "b.png")
    reader = read(tmp_path, watch=True)
    until(lambda: reader.items, "the other one")
    assert reader.names == ["b.png"]


def test_watching_needs_a_folder(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="expected a folder to watch"):
        Source([tmp_path / "a.png"], PREPROCESSING, watch=True)


def test_a_watched_folder_as_a_process(run: Processes, tmp_path: Path) -> None:
    device = run.start_device("--threshold", 0, "--json", "--watch", tmp_path)
    for number in range(5):
        png(tmp_path / f"{number}.png")
        until(lambda number=number: len(device.answers) == number + 1, "its answer")  # type: ignore[misc]
    device.send(signal.SIGTERM)
    assert device.wait() == 130
    assert device.summary["early_exit"] == 5


# --- standard input ---


# --- again and again ---


def test_repeating_starts_again_and_sees_what_is_new(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    items = iter(Source([tmp_path], PREPROCESSING, repeat=True))
    assert [Path(next(items).name).name for _ in range(3)] == ["a.png"] * 3
    png(tmp_path / "b.png")
    assert sorted(Path(next(items).name).name for _ in range(4)) == ["a.png", "a.png", "b.png", "b.png"]


def test_repeating_an_empty_folder_waits_until_told_to_stop(tmp_path: Path) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    assert list(Source([tmp_path], PREPROCESSING, wait=wait, repeat=True)) == []
    assert waits == [watch.WATCH_SECONDS] * 3


@pytest.mark.parametrize(("path", "watch"), [("-", False), ("camera:0", False), (".", True)])
def test_what_has_no_end_is_not_repeated(path: str, watch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_opencv", lambda: None)
    with pytest.raises(ConfigError, match="--repeat: expected folders and files, which have an end"):
        Source([path], PREPROCESSING, watch, repeat=True)


def test_a_repeated_folder_as_a_process(run: Processes, toy_images: Path) -> None:
    """The first images of the second pass are answered as in the first."""
    device = run.start_device("--threshold", 0, "--repeat", "--rate", 500, "--json", toy_images)
    until(lambda: len(device.answers) > 100, "a third pass")
    device.send(signal.SIGTERM)
    assert device.wait() == 130 and device.errors == ""
    answers = sorted(device.answers, key=lambda answer: int(answer["index"]))
    assert [answer["index"] for answer in answers] == list(range(len(answers)))
    for one, other in zip(answers, answers[40:], strict=False):
        assert [one[key] for key in ("image", "label")] == [other[key] for key in ("image", "label")]


def test_paths_on_standard_input(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    device = run.start_device("--threshold", 0, "--json", "-", stdin=subprocess.PIPE)
    assert device.process.stdin is not None
    for number in range(3):
        device.process.stdin.write(f"{toy_images}/{number:02}.png\n")
        device.process.stdin.flush()
        until(lambda number=number: len(device.answers) == number + 1, "its answer")  # type: ignore[misc]
    device.process.stdin.write(f"\n{tmp_path}/none.png\n{toy_images}/05.png")
    device.process.stdin.close()
    assert device.wait() == 5
    assert device.summary["early_exit"] == 4 and device.summary["unreadable"] == 1


def test_a_signal_ends_the_wait_for_standard_input(run: Processes) -> None:
    device = run.start_device("--threshold", 0, "--json", "--metrics-port", 0, "-", stdin=subprocess.PIPE)
    device.wait_for("metrics on")
    device.send(signal.SIGINT)
    assert device.wait() == 130
    assert device.process.stdin is not None
    device.process.stdin.close()


def test_an_endless_line_is_refused(run: Processes) -> None:
    device = run.start_device("--threshold", 0, "--json", "-", stdin=subprocess.PIPE)
    assert device.process.stdin is not None
    try:
        device.process.stdin.write("x" * 200_000)
        device.process.stdin.close()
    except BrokenPipeError:
        pass
    assert device.wait() == 2
    assert "a line of over 65536 bytes" in device.errors


# --- videos and cameras ---


def test_without_opencv_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    for path in (tmp_path / "a.mp4", "camera:0", "rtsp://camera.example/stream"):
        with pytest.raises(ConfigError, match=r"pip install 'offramp\[camera\]'"):
            Source([path], PREPROCESSING)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twelve frames, each of one colour: more red in each."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for number in range(12):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[..., 2] = 20 * number  # OpenCV's order is blue, green, red
        writer.write(frame)
    writer.release()
    return path


def test_every_frame_of_a_video(video: Path) -> None:
    items = list(Source([video], PREPROCESSING))
    assert [item.name for item in items] == [f"{video}[{number}]" for number in range(12)]
    means = [np.asarray(item.image).reshape(3, -1).mean(axis=1) for item in items]
    for number, (red, green, blue) in enumerate(means):
        assert abs(red - 20 * number) < 12 and green < 12 and blue < 12
    assert all(item.image.shape == (3, 8, 8) for item in items if not isinstance(item.image, DataError))


def test_a_damaged_video_is_one_error(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"no video" * 100)
    png(tmp_path / "good.png")
    bad, good = Source([path, tmp_path / "good.png"], PREPROCESSING)
    assert isinstance(bad.image, DataError) and str(path) in str(bad.image)
    assert isinstance(good.image, np.ndarray)


class FakeCapture:
    """A camera that fails to open once, ends its stream once, and then goes on."""

    opened = 0

    def __init__(self, address: int | str) -> None:
        assert address == 3
        FakeCapture.opened += 1
        self._left = 3 if FakeCapture.opened == 2 else 10**9
        self._works = FakeCapture.opened > 1

    def isOpened(self) -> bool:
        return self._works

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.002)
        self._left -= 1
        return self._left >= 0, np.full((4, 4, 3), FakeCapture.opened, np.uint8)

    def release(self) -> None:
        pass


def test_a_camera_is_opened_again(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(source, "REOPEN_SECONDS", 0.05)
    monkeypatch.setattr(source, "REOPEN_SECONDS_MOST", 0.05)
    reader = read("camera:3")
    until(lambda: FakeCapture.opened >= 3 and len(reader.items) > 20, "frames of the third attempt")
    assert isinstance(reader.items[0].image, DataError)
    assert "cannot be opened; trying again" in str(reader.items[0].image)
    frames = [int(np.asarray(item.image).max()) for item in reader.items[1:]]
    assert frames == sorted(frames) and frames[-1] == 3


@pytest.mark.parametrize("address", ["camera:", "camera:x", "camera:-1"])
def test_a_camera_has_a_number(address: str) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(ConfigError, match="expected camera:N"):
        next(iter(Source([address], PREPROCESSING)))
