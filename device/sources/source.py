"""Where images come from: folders, files, lists, ``.npz`` arrays, standard input, videos and cameras.

A picture that cannot be used is an item with an error, so that the ones after it are still answered. What
waits for images (``--watch``, standard input, a camera) does so through ``wait``, which a signal cuts short.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp.common.bundle.manifest import Preprocessing
from offramp.common.errors import ConfigError, DataError
from offramp.common.files import open_plain, read_bounded
from offramp.common.inputs.arrays import check_stack
from offramp.common.inputs.headers import Refused, check_size
from offramp.common.inputs.pictures import decode, to_input
from offramp.device.sources.folders import Folders
from offramp.device.sources.lists import check_stdin, paths_of, stdin_paths
from offramp.device.sources.watch import PATIENCE, WATCH_SECONDS, Watch, is_hollow, missing

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")
FILE_BYTES = 64 << 20
LIST_BYTES = 64 << 20
REOPEN_SECONDS, REOPEN_SECONDS_MOST = 1.0, 30.0
"""Between two attempts to open a camera: the first pause, doubled each time up to the second."""
LIVE_SECONDS = 0.01

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Item:
    """One image, uint8 [3, H, W] as the head takes it, or why there is none."""

    name: str
    image: Pixels | DataError
    decode_seconds: float = 0.0
    """From its bytes to the head's input."""


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@dataclass(frozen=True)
class Source:
    """All images of the command line, in order.

    paths: folders (their pictures by name, sub-folders too), pictures, ``.npz`` files, ``.txt``
    files with one path a line, relative to the list's own folder, video files; ``-`` (a path a line on
    standard input), ``camera:N`` and ``rtsp://…``. watch: folders are looked at again and again for new
    files. wait: sleeps so many seconds; returns True early when there is to be no further image. repeat: what
    has an end is read again and again.
    """

    paths: Sequence[Path | str]
    preprocessing: Preprocessing
    watch: bool = False
    wait: Callable[[float], bool] = _sleep
    repeat: bool = False
    _folders: Folders = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for path in self.paths:
            if path == "-":
                check_stdin()
            if _is_stream(path):
                continue
            try:
                Path(path).stat()
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}, expected a file or a folder") from None
        if any(_is_video(path) for path in self.paths):
            _opencv()
        # Which they are is settled here: one that is gone for a while is still a folder.
        roots = [Path(path) for path in self.paths if not _is_stream(path) and os.path.isdir(path)]  # noqa: PTH112
        object.__setattr__(self, "_folders", Folders(roots))
        if self.watch and not roots:
            raise ConfigError("--watch: expected a folder to watch")
        if self.repeat and (self.watch or any(_is_stream(path) for path in self.paths)):
            raise ConfigError(
                "--repeat: expected folders and files, which have an end; not --watch, - or a camera"
            )

    def count(self) -> int | None:
        """How many images there are, for a progress bar; None if only reading would tell."""
        if (
            self.watch
            or self.repeat
            or any(
                path == "-" or _is_video(path) or Path(path).suffix.lower() == ".npz" for path in self.paths
            )
        ):
            return None
        return sum(
            self._folders.count(Path(path)) if Path(path) in self._folders else len(_files(Path(path)))
            for path in self.paths
        )

    @property
    def passed_over(self) -> dict[str, int]:
        """Files in the folders that are no pictures by their names: how many, by suffix."""
        return dict(self._folders.passed_over.most_common())

    def __iter__(self) -> Iterator[Item]:
        yield from self._once(first=True)
        while self.repeat:
            found = False
            for item in self._once(first=False):
                found |= not isinstance(item.image, DataError)
                yield item
            # Folders that are empty or cannot be read, for now.
            if not found and self.wait(WATCH_SECONDS):
                return

    def _once(self, first: bool) -> Iterator[Item]:
        for path in self.paths:
            if path == "-":
                yield from self._read_stdin()
            elif _is_live(path):
                yield from _live(str(path), self.preprocessing, self.wait)
            elif Path(path) not in self._folders:
                yield from self._read_named(Path(path), first)
            elif not self.watch:
                found, faults = self._folders.look(Path(path))
                yield from (Item(str(folder), fault) for folder, fault in faults.items())
                for file in found.pictures:
                    yield from self._read(file)
        if self.watch:
            yield from self._read_watched()

    def _read_stdin(self) -> Iterator[Item]:
        try:
            for line in stdin_paths(self.wait):
                yield from self._read(Path(line))
        except DataError as error:
            yield Item("-", error)

    def _read_named(self, path: Path, first: bool) -> Iterator[Item]:
        try:
            files = _files(path)
        except ConfigError as error:
            if first:
                raise
            yield Item(str(path), DataError(str(error)))
            return
        for file in files:
            yield from self._read(file)

    def _read_watched(self) -> Iterator[Item]:
        watch = Watch()
        while True:
            found, faults = self._folders.look_at_all()
            yield from (Item(str(folder), fault) for folder, fault in faults.items())
            yield from watch.whole(found, self._read_whole)
            if self.wait(WATCH_SECONDS):
                return

    def _read_whole(self, path: Path, last: bool) -> Item | None:
        """A picture in a watched folder; None where it may still be written and this is not the last try."""
        try:
            data = _read_file(path, FILE_BYTES)
            if not last and missing(data):
                return None
            if is_hollow(data):
                seconds = PATIENCE * WATCH_SECONDS
                raise DataError(
                    f"{path}: is not whole: zeros at its end, and unchanged for {seconds:g} s, "
                    "expected a picture that was written to its end"
                )
            return Item(str(path), decode(str(path), data, self.preprocessing))
        except DataError as error:
            return Item(str(path), error) if last else None

    def _read(self, path: Path) -> Iterator[Item]:
        if path.suffix.lower() == ".npz":
            yield from _read_npz(path, self.preprocessing)
        elif path.suffix.lower() in VIDEO_EXTENSIONS:
            yield from _read_video(path, self.preprocessing)
        else:
            yield _read_picture(path, self.preprocessing)


def _is_live(path: Path | str) -> bool:
    return str(path).startswith(("camera:", "rtsp://", "rtsps://"))


def _is_stream(path: Path | str) -> bool:
    return path == "-" or _is_live(path)


def _is_video(path: Path | str) -> bool:
    return _is_live(path) or Path(path).suffix.lower() in VIDEO_EXTENSIONS


def _files(path: Path) -> list[Path]:
    """The file, or those that a list names. Raises ConfigError for a list that cannot be read."""
    if path.suffix.lower() != ".txt":
        return [path]
    try:
        return list(paths_of(path, _read_file(path, LIST_BYTES)))
    except DataError as error:
        raise ConfigError(str(error)) from None


def _read_file(path: Path, limit: int) -> bytes:
    """The whole of one plain file of 1 … limit bytes. Raises DataError naming it."""
    data = read_bounded(path, limit, error=DataError)
    if not data:
        raise DataError(f"{path}: is empty, expected 1 … {limit} bytes")
    return data


def _read_picture(path: Path, preprocessing: Preprocessing) -> Item:
    try:
        data = _read_file(path, FILE_BYTES)
        start = time.perf_counter()
        pixels = decode(str(path), data, preprocessing)
    except DataError as error:
        return Item(str(path), error)
    return Item(str(path), pixels, time.perf_counter() - start)


def _read_npz(path: Path, preprocessing: Preprocessing) -> Iterator[Item]:
    """The array ``images`` of an ``.npz``, uint8 as in ``check_stack``, one image at a time.

    It is read as a stream: neither the file's claims nor its compression decide how much memory it takes.
    """
    try:
        with (
            open_plain(path, DataError) as file,
            zipfile.ZipFile(file) as archive,
            archive.open("images.npy") as array,
        ):
            shape, channels_first = _npy_shape(path, array)
            size = int(np.prod(shape[1:], dtype=np.int64))
            for index in range(shape[0]):
                data = array.read(size)
                name = f"{path}[{index}]"
                if len(data) < size:
                    yield Item(
                        name, DataError(f"{name}: the array ends early, its header says {shape[0]} images")
                    )
                    return
                start = time.perf_counter()
                pixels = np.frombuffer(data, np.uint8).reshape(shape[1:])
                if channels_first:
                    pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
                picture = Image.fromarray(pixels[..., 0] if shape[-1] == 1 and len(shape) == 4 else pixels)
                image = to_input(picture, preprocessing)
                yield Item(name, image, time.perf_counter() - start)
    except KeyError:
        yield Item(str(path), DataError(f"{path}: has no array named 'images'"))
    except DataError as error:
        yield Item(str(path), error)
    except Exception as error:  # zipfile, its decompressors and NumPy's header reader raise what they like
        yield Item(str(path), DataError(f"{path}: is a damaged .npz: {error}"))


def _npy_shape(path: Path, array: zipfile.ZipExtFile | object) -> tuple[tuple[int, ...], bool]:
    """The stack's shape, and whether its channels come before its rows."""
    version = np.lib.format.read_magic(array)  # type: ignore[arg-type]
    # Version 2.0 is for headers above 64 KiB, and NumPy reads one of up to 4 GiB before it refuses it.
    if version != (1, 0):
        raise DataError(f"{path}: 'images' is .npy version {version}, expected (1, 0)")
    # Python's integers: NumPy's would wrap around.
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(array)  # type: ignore[arg-type]
    shown = f"{path}: 'images' is {dtype} {shape}"
    if dtype != np.uint8 or fortran:
        raise DataError(f"{shown}{' in Fortran order' * fortran}, expected uint8 in C order")
    if min(shape, default=0) < 0:
        raise DataError(f"{shown}, expected at least 1×1 pixels and no negative side")
    try:
        channels_first = check_stack(shape)
        height, width = shape[2:4] if channels_first else shape[1:3]
        check_size(width, height)
    except Refused as error:
        raise DataError(f"{shown} and {error}") from None
    return shape, channels_first


def _opencv() -> Any:
    """OpenCV. Raises ConfigError where it is not installed."""
    # Its own messages would go to stderr, past our log.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
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


def _read_video(path: Path, preprocessing: Preprocessing) -> Iterator[Item]:
    """Every frame of a video file."""
    try:
        open_plain(path, DataError).close()
        cv2 = _opencv()
        video = cv2.VideoCapture(str(path))
        try:
            if not video.isOpened():
                raise DataError(f"{path}: is no video that OpenCV reads")
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
        self._cv2 = _opencv()
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


def _live(address: str, preprocessing: Preprocessing, wait: Callable[[float], bool]) -> Iterator[Item]:
    """A camera's frames, the newest each time, until told to stop. It is opened again when it fails."""
    camera = _Camera(address)
    index = 0
    told = 0
    try:
        while True:
            frame = camera.take()
            if frame is not None:
                yield _to_pixels(f"{address}[{index}]", frame, preprocessing)
                index += 1
            elif camera.failed > told and camera.opened == told:
                yield Item(address, DataError(f"{address}: cannot be opened; trying again"))
                told = sys.maxsize
            elif wait(LIVE_SECONDS):
                return
    finally:
        camera.close()
