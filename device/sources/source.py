"""Where inputs come from: folders, files, lists, ``.npz`` and ``.npy``, standard input, videos and cameras.

One that cannot be used is an item with an error, so that the ones after it are still answered. What
waits for images (``--watch``, standard input, a camera) does so through ``wait``, which a signal cuts short.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from offramp.common.errors import ConfigError, DataError
from offramp.common.inputs.prepare import Spec, suffixes
from offramp.common.inputs.spec import Preprocessing, TensorInput
from offramp.common.inputs.tensors import SUFFIXES as ARRAYS
from offramp.device.sources.arrays import read_npz, read_tensors
from offramp.device.sources.files import read_one
from offramp.device.sources.folders import Folders
from offramp.device.sources.item import Item
from offramp.device.sources.lists import check_stdin, files_of, stdin_paths
from offramp.device.sources.video import EXTENSIONS, is_live, is_video, opencv, read_live, read_video
from offramp.device.sources.watch import WATCH_SECONDS, Watch, read_whole


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@dataclass(frozen=True)
class Source:
    """All images, sounds or tensors of the command line, in order.

    paths: folders (their files by name, sub-folders too), pictures, WAV files, ``.npz`` and ``.npy`` files,
    ``.txt`` files with one path a line, relative to the list's own folder, video files; ``-`` (a path a line
    on standard input), ``camera:N`` and ``rtsp://…``. watch: folders are looked at again and again for new
    files. wait: sleeps so many seconds; returns True early when there is to be no further image. repeat: what
    has an end is read again and again.
    """

    paths: Sequence[Path | str]
    spec: Spec
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
        if videos := [path for path in self.paths if is_video(path)]:
            if isinstance(self.spec, TensorInput):
                raise ConfigError(f"{videos[0]}: is a video or a camera, this bundle takes {self.spec.what}")
            opencv()
        # Which they are is settled here: one that is gone for a while is still a folder.
        roots = [Path(path) for path in self.paths if not _is_stream(path) and os.path.isdir(path)]  # noqa: PTH112
        what = self.spec.what if isinstance(self.spec, TensorInput) else "pictures"
        object.__setattr__(self, "_folders", Folders(roots, suffixes(self.spec), what))
        if self.watch and not roots:
            raise ConfigError("--watch: expected a folder to watch")
        if self.repeat and (self.watch or any(_is_stream(path) for path in self.paths)):
            raise ConfigError(
                "--repeat: expected folders and files, which have an end; not --watch, - or a camera"
            )

    def count(self) -> int | None:
        """How many images there are, for a progress bar; None where only reading would show it."""
        if (
            self.watch
            or self.repeat
            or any(
                path == "-" or is_video(path) or Path(path).suffix.lower() in ARRAYS for path in self.paths
            )
        ):
            return None
        return sum(
            self._folders.count(Path(path)) if Path(path) in self._folders else len(files_of(Path(path)))
            for path in self.paths
        )

    @property
    def passed_over(self) -> dict[str, int]:
        """Files in the folders that are of another kind by their names: how many, by suffix."""
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
            elif is_live(path):
                assert isinstance(self.spec, Preprocessing)
                yield from read_live(str(path), self.spec, self.wait)
            elif Path(path) not in self._folders:
                yield from self._read_named(Path(path), first)
            elif not self.watch:
                found, faults = self._folders.look(Path(path))
                yield from (Item(str(folder), fault) for folder, fault in faults.items())
                for file in found.files:
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
            files = files_of(path)
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
            yield from watch.whole(found, partial(read_whole, self.spec))
            if self.wait(WATCH_SECONDS):
                return

    def _read(self, path: Path) -> Iterator[Item]:
        suffix = path.suffix.lower()
        if isinstance(self.spec, TensorInput):
            if suffix in ARRAYS:
                yield from read_tensors(path, self.spec)
            else:
                yield read_one(path, self.spec)
        elif suffix == ".npz":
            yield from read_npz(path, self.spec)
        elif suffix in EXTENSIONS:
            yield from read_video(path, self.spec)
        else:
            yield read_one(path, self.spec)


def _is_stream(path: Path | str) -> bool:
    return path == "-" or is_live(path)
