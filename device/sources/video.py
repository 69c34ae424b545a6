"""Frames of video files and cameras, through OpenCV, which is loaded only for them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offramp.common.errors import ConfigError, DataError
from offramp.common.files import open_plain
from offramp.common.inputs.headers import Refused, check_size
from offramp.common.inputs.pictures import to_input
from offramp.common.inputs.spec import Preprocessing
from offramp.device.sources.item import Item

EXTENSIONS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")
REOPEN_SECONDS, REOPEN_SECONDS_MOST = 1.0, 30.0
"""Between two attempts to open a camera: the first pause, doubled each time up to the second."""
LIVE_SECONDS = 0.01


def is_live(path: Path | str) -> bool:
    """Whether this names a camera, which has no end."""
    return str(path).startswith(("camera:", "rtsp://", "rtsps://"))


def is_video(path: Path | str) -> bool:
    """Whether this names a camera or a video file."""
    return is_live(path) or Path(path).suffix.lower() in EXTENSIONS


def opencv() -> Any:
    """OpenCV. Raises ConfigError where it is not installed."""
    # Its own messages would go to stderr, past our log.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # FFmpeg would reach a camera at rtsps:// through it; nothing else here takes a proxy from there.
    os.environ.pop("http_proxy", None)
    try:
        import cv2
    except ImportError:
        raise ConfigError("videos and cameras need OpenCV: pip install 'offramp[camera]'") from None
    return cv2


def _to_pixels(name: str, frame: Any, preprocessing: Preprocessing) -> Item:
    start = time.perf_counter()
    try:
        check_size(frame.shape[1], frame.shape[0])
    except Refused as error:
        return Item(name, DataError(f"{name}: {error}"))
    # OpenCV gives blue, green, red.
    image = to_input(Image.fromarray(np.ascontiguousarray(frame[..., ::-1])), preprocessing)
    return Item(name, image, time.perf_counter() - start)


def read_video(path: Path, preprocessing: Preprocessing) -> Iterator[Item]:
    """Every frame of a video file."""
    try:
        open_plain(path, DataError).close()
        cv2 = opencv()
        video = cv2.VideoCapture(str(path))
        try:
            if not video.isOpened():
                raise DataError(f"{path}: is not a video that OpenCV reads")
            index = 0
            while True:
                ok, frame = video.read()
                if not ok:
                    break
                yield _to_pixels(f"{path}[{index}]", frame, preprocessing)
                index += 1
            if not index:
                raise DataError(f"{path}: is a video without a frame that OpenCV reads")
        finally:
            video.release()
    except (DataError, ConfigError) as error:
        yield Item(str(path), DataError(str(error)))


class _Camera:
    """Reads a camera on a thread of its own and keeps the newest frame: an old one is worth nothing."""

    def __init__(self, address: str) -> None:
        self._cv2 = opencv()
        number = address.removeprefix("camera:")
        if address.startswith("camera:") and not (number.isascii() and number.isdigit()):
            raise ConfigError(f"{address}: expected camera:N with the camera's number")
        self._address: int | str = int(number) if address.startswith("camera:") else address
        self._lock = threading.Lock()
        self._newest: Any = None
        self._stop = threading.Event()
        self.opened = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._read, name="offramp-camera", daemon=True)
        self._thread.start()

    def take(self) -> Any:
        """The newest frame, once; None where there is no newer one."""
        with self._lock:
            frame, self._newest = self._newest, None
            return frame

    def close(self) -> None:
        """Stop; a read that hangs is left behind."""
        self._stop.set()
        self._thread.join(REOPEN_SECONDS)

    def _read(self) -> None:
        pause = REOPEN_SECONDS
        while not self._stop.is_set():
            video = self._cv2.VideoCapture(self._address)
            if video.isOpened():
                self.opened += 1
                while not self._stop.is_set():
                    ok, frame = video.read()
                    if not ok:
                        break
                    pause = REOPEN_SECONDS
                    with self._lock:
                        self._newest = frame
            video.release()
            self.failed += 1
            self._stop.wait(pause)
            pause = min(2 * pause, REOPEN_SECONDS_MOST)


def read_live(address: str, preprocessing: Preprocessing, wait: Callable[[float], bool]) -> Iterator[Item]:
    """A camera's frames, the newest each time, until ``wait`` says so. It is opened again when it fails."""
    camera = _Camera(address)
    index = 0
    reported = 0
    try:
        while True:
            frame = camera.take()
            if frame is not None:
                yield _to_pixels(f"{address}[{index}]", frame, preprocessing)
                index += 1
            elif camera.failed > reported and camera.opened == reported:
                yield Item(address, DataError(f"{address}: cannot be opened; trying again"))
                reported = sys.maxsize
            elif wait(LIVE_SECONDS):
                return
    finally:
        camera.close()
