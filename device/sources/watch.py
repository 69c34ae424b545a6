"""Watched folders: each picture once it is whole, and again once it was replaced.

The rule, for whoever writes the files: a file that is written beside the folder and renamed into it, or that
is written in one go and closed, is answered at the second look that sees it.
No event of the file system is used, so that it holds on network and container mounts too. In detail:

- A file is whole when two looks (every ``WATCH_SECONDS``) saw the same inode, size and modification time, it
  has not changed while it was read, and its format's end is there (``missing``).
- One that is stable and not whole, because it was preallocated or grows slower than the looks follow each
  other, is left until it has not changed for ``PATIENCE`` looks. Then it is answered if it decodes, and
  reported if it does not, or if zeros stand where a compressed format has its end (``is_hollow``).
- BMP and TIFF have no end mark, and black pixels are zeros: half a preallocated one that stays so cannot be
  distinguished from a whole picture with a black edge, so after ``PATIENCE`` looks it is answered as it is.
- A file that was answered is answered again once it was replaced, or written again.

Time is counted in looks, and a file's times are only compared with themselves, so that no clock matters.
"""

from __future__ import annotations

import errno
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from offramp.common.errors import DataError
from offramp.common.inputs.folder import Found
from offramp.common.inputs.headers import sniff
from offramp.common.inputs.pictures import FILE_BYTES
from offramp.common.inputs.prepare import Spec, decode
from offramp.common.inputs.tensors import NPY, npy_bytes
from offramp.common.inputs.wav import UNKNOWN_SIZE, is_wav
from offramp.device.sources.files import read_file
from offramp.device.sources.item import Item

WATCH_SECONDS = 0.2
"""Between two looks at a watched folder."""
PATIENCE = 50
"""Looks for which a file that is not whole has to be unchanged before it is reported: 10 s."""
HOLE = bytes(4096)
"""No coder writes this: a page that has not been written yet."""

GONE = (errno.ENOENT, errno.ENOTDIR)
NO_INODE = -1

T = TypeVar("T")
Stamp = tuple[int, int, int]


@dataclass
class _Seen:
    stamp: Stamp
    looks: int = 0
    """How many looks in a row saw this stamp after the first."""
    done: bool = False


class Watch:
    """What was seen of the files in watched folders. Memory holds what the folders hold."""

    def __init__(self) -> None:
        self._seen: dict[Path, _Seen] = {}

    def whole(self, found: Found, read: Callable[[Path, bool], T | None]) -> Iterator[T]:
        """Take one look into account: yields what ``read`` makes of each file that is new and whole.

        found: what the folders hold now. read: gets a path and whether it is the last try; returns None for a
        file that is not whole and is to be tried again.
        """
        now: dict[Path, _Seen] = {}
        # What a folder holds that cannot be listed for now is not gone: it would be answered again.
        lost = {folder for folder, fault in found.faults.items() if fault.errno not in GONE}
        if lost:
            now = {path: seen for path, seen in self._seen.items() if not lost.isdisjoint(path.parents)}
        for path in dict.fromkeys(found.files):
            seen = self._seen.get(path)
            stamp = _stamp(path)
            if stamp is None:
                continue
            if seen is not None and (seen.stamp == stamp or (seen.done and stamp[0] == NO_INODE)):
                seen.looks += 1
                now[path] = seen
            else:
                now[path] = _Seen(stamp)
        self._seen = now
        for path, seen in now.items():
            if seen.done or not seen.stamp[1] or seen.looks not in (1, PATIENCE):
                continue
            last = seen.looks == PATIENCE
            item = read(path, last)
            # Changed while it was read: the next looks see the other stamp.
            if item is not None and _stamp(path) == seen.stamp:
                seen.done = True
                yield item


def _stamp(path: Path) -> Stamp | None:
    """What differs between two states of a file; None for a file that is gone."""
    try:
        status = path.stat()
    except OSError as error:
        # A link too long, a server that does not answer: reading it will say so.
        return None if error.errno in GONE else (NO_INODE, error.errno or 1, 0)
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_whole(spec: Spec, path: Path, last: bool) -> Item | None:
    """An input in a watched folder; None where it may still be written and this is not the last try."""
    try:
        data = read_file(path, FILE_BYTES)
        if not last and missing(data):
            return None
        if is_hollow(data):
            seconds = PATIENCE * WATCH_SECONDS
            raise DataError(
                f"{path}: is not whole: zeros at its end, and unchanged for {seconds:g} s, "
                "expected a picture that was written to its end"
            )
        return Item(str(path), decode(str(path), data, spec), file=data)
    except DataError as error:
        return Item(str(path), error) if last else None


def missing(data: bytes) -> str | None:
    """What a file lacks that a whole one of its format has; None where nothing seems to be missing.

    It may be wrong about an odd file, so it only delays. What it does not know the decoder still refuses.
    """
    kind = sniff(data)
    if is_wav(data):
        size = int.from_bytes(data[4:8], "little")
        # A program that cannot go back leaves 0 or this in its header.
        return "is shorter than its header says" if len(data) - 8 < size != UNKNOWN_SIZE else None
    if data.startswith(NPY):
        whole = npy_bytes(data)
        return None if whole is None or whole <= len(data) else "is shorter than its header says"
    if kind == "PNG":
        return _missing_of_png(data)
    if kind == "JPEG":
        return None if _has_jpeg_end(data) else "has no end marker"
    if kind == "GIF" and not data.rstrip(b"\0").endswith(b";"):
        return "has no trailer"
    stated = {"WEBP": 8 + int.from_bytes(data[4:8], "little"), "BMP": int.from_bytes(data[2:6], "little")}
    if kind in stated and stated[kind] > len(data):
        return "is shorter than its header says"
    if kind == "WEBP" and data.endswith(bytes(64)):
        return "ends in zeros"
    return "ends in zeros" if data.endswith(HOLE) or not data.strip(b"\0") else None


def is_hollow(data: bytes) -> bool:
    """Whether the end of a compressed picture was never written, though a decoder may make pixels of it."""
    return sniff(data) in ("PNG", "JPEG", "GIF", "WEBP") and (
        data.endswith(bytes(64)) and missing(data) is not None
    )


_JPEG_CODE = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)


def _has_jpeg_end(data: bytes) -> bool:
    """Whether a JPEG's marker EOI is there, by its segments: a thumbnail in one of them has its own."""
    at, scan = 2, len(data)
    while found := _JPEG_CODE.search(data, at):
        at = found.end()
        marker = data[at - 1]
        if marker == 0xD9:
            return data.find(HOLE, scan, at) < 0
        if marker == 0xDA:
            scan = min(scan, at)
        if marker != 0x01:
            at += int.from_bytes(data[at : at + 2], "big")
    return False


def _missing_of_png(data: bytes) -> str | None:
    at = 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + size
        kind = data[at + 4 : at + 8]
        if end > len(data) or zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            return "has a chunk that is not whole"
        if kind == b"IEND":
            return None
        at = end
    return "has no end chunk"
