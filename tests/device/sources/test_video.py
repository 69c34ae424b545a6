"""Videos and cameras."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.common.errors import ConfigError, DataError
from offramp.device.sources import video
from offramp.device.sources.source import Source
from tests.device.sources.reading import (
    PREPROCESSING,
    write_png,
)
from tests.processes import Peer, tcp_peer, until


@pytest.fixture
def film(tmp_path: Path) -> Path:
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


def test_without_opencv_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    for path in (tmp_path / "a.mp4", "camera:0", "rtsp://camera.example/stream"):
        with pytest.raises(ConfigError, match=r"pip install 'offramp\[camera\]'"):
            Source([path], PREPROCESSING)


def test_every_frame_of_a_video(film: Path) -> None:
    items = list(Source([film], PREPROCESSING))
    assert [item.name for item in items] == [f"{film}[{number}]" for number in range(12)]
    means = [np.asarray(item.image).reshape(3, -1).mean(axis=1) for item in items]
    for number, (red, green, blue) in enumerate(means):
        assert abs(red - 20 * number) < 12 and green < 12 and blue < 12
    assert all(item.image.shape == (3, 8, 8) for item in items if not isinstance(item.image, DataError))


def test_a_damaged_video_is_one_error(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"no video" * 100)
    write_png(tmp_path / "good.png")
    bad, good = Source([path, tmp_path / "good.png"], PREPROCESSING)
    assert isinstance(bad.image, DataError) and str(path) in str(bad.image)
    assert isinstance(good.image, np.ndarray)


def test_a_camera_is_opened_again(watching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(video, "REOPEN_SECONDS", 0.05)
    monkeypatch.setattr(video, "REOPEN_SECONDS_MOST", 0.05)
    reader = watching("camera:3")
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


def test_an_encrypted_camera_is_reached_without_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FFmpeg would send ``rtsps`` through ``http_proxy``."""
    pytest.importorskip("cv2")

    def hang_up(connection: socket.socket, _: Peer) -> None:
        connection.recv(100)

    with tcp_peer(hang_up) as proxy, tcp_peer(hang_up) as camera:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        found = video.opencv().VideoCapture(f"rtsps://127.0.0.1:{camera.port}/x")
        assert not found.isOpened()
        until(lambda: camera.connections or proxy.connections, "a connection")
        assert (camera.connections > 0, proxy.connections) == (True, 0)
