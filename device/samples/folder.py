"""The folder of samples: bounded, of one device alone, and whole after whatever happened. Synchronous.

Rules this module keeps:
- A file has its name only once it is whole on the disk, and the record comes last: what has no record is
  half of a sample, is listed by nobody, and is deleted when the folder is opened.
- Nothing else in the folder is read, changed or deleted, and no link is followed.
- Before a sample is written, as many old ones go as it takes: the oldest of the reason that holds the most,
  so that one that happens often leaves room for the others.
- Samples are counted in whole blocks of the disk. One process at a time has the folder.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from offramp.common.errors import ConfigError
from offramp.device.samples.choice import REASONS
from offramp.device.samples.record import NUMBERS, STEM, SUFFIXES

LOCK = ".offramp-samples"
ENTRIES_MOST = 65_536
"""Samples, at most."""
BLOCK = 4096
"""What a file takes of the disk is a multiple of this."""
_OURS = re.compile(rf"({STEM.pattern})\.(json|{'|'.join(SUFFIXES)})")
_HALF = re.compile(rf"\.{STEM.pattern}\.[a-z]+\.new")


@dataclass(frozen=True, slots=True)
class _Entry:
    stem: str
    suffix: str
    bytes: int


def charged(size: int) -> int:
    """What a file of so many bytes takes of the disk."""
    return -(-size // BLOCK) * BLOCK


class Folder:
    """One folder; ``entries`` and ``bytes`` say what it holds. capacity: bytes.

    All but ``close`` raise OSError for a disk that fails.
    """

    def __init__(self, path: Path | str, capacity: int) -> None:
        self.path = Path(path)
        self.capacity = capacity
        self.bytes = 0
        self._pools: dict[str, deque[_Entry]] = {reason: deque() for reason in REASONS}
        self._held = dict.fromkeys(REASONS, 0)
        self._next = 1
        self._lock: int | None = None

    @property
    def entries(self) -> int:
        """How many samples it holds."""
        return sum(map(len, self._pools.values()))

    @property
    def is_open(self) -> bool:
        """Whether it is locked."""
        return self._lock is not None

    def open(self) -> None:
        """Make the folder if it is not there, and lock it.

        Raises ConfigError where another process has it or it is not a folder.
        """
        if self._lock is not None:
            return
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        if not self.path.is_dir():
            raise ConfigError("is not a folder, expected one for samples or none yet")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(self.path / LOCK, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigError(f"{LOCK} in it is not a plain file, expected one or none yet")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(
                "is in use by another process, expected a folder for this device alone"
            ) from None
        except BaseException:
            os.close(handle)
            raise
        self._lock = handle

    def scan(self) -> None:
        """Count what is there, and delete the halves of samples that were not written to their end."""
        self.bytes, self._held = 0, dict.fromkeys(REASONS, 0)
        for pool in self._pools.values():
            pool.clear()
        found: dict[str, dict[str, int]] = {}
        halves: list[str] = []
        number = 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _HALF.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    halves.append(entry.name)
                elif (ours := _OURS.fullmatch(entry.name)) and int(ours[2]) < NUMBERS:
                    # Also of what is not a plain file: its name is taken.
                    number = max(number, int(ours[2]))
                    if entry.is_file(follow_symlinks=False):
                        size = entry.stat(follow_symlinks=False).st_size
                        found.setdefault(ours[1], {})[ours[4]] = size
        self._next = number + 1
        for stem, sizes in sorted(found.items()):
            others = [suffix for suffix in sizes if suffix != "json"]
            if sizes.get("json") and len(others) == 1 and sizes[others[0]]:
                self._count(_Entry(stem, others[0], sum(map(charged, sizes.values()))))
            else:
                halves += [f"{stem}.{suffix}" for suffix in sizes]
        for name in halves:
            with suppress(FileNotFoundError):
                (self.path / name).unlink()

    def add(self, reason: str, suffix: str, data: bytes, record: Callable[[str], bytes]) -> bool:
        """Keep a file and its record; False for one that is too large.

        reason: what it counts against. record: gives the record for the file's name.
        """
        stem = f"{self._next:012}-{reason}"
        self._next += 1
        text = record(f"{stem}.{suffix}")
        need = charged(len(data)) + charged(len(text))
        if need > self.capacity:
            return False
        while self.bytes + need > self.capacity or self.entries >= ENTRIES_MOST:
            self._remove_oldest()
        try:
            self._write(f"{stem}.{suffix}", data)
            self._write(f"{stem}.json", text)
        except OSError:
            self._unlink(f"{stem}.json", f"{stem}.{suffix}", failing=True)
            raise
        self._count(_Entry(stem, suffix, need))
        return True

    def close(self) -> None:
        """Let another process have it; what is in it stays."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def _count(self, entry: _Entry) -> None:
        reason = entry.stem.rpartition("-")[2]
        self._pools[reason].append(entry)
        self._held[reason] += entry.bytes
        self.bytes += entry.bytes

    def _remove_oldest(self) -> None:
        reason = max(REASONS, key=self._held.__getitem__)
        entry = self._pools[reason][0]
        # The record first: without it the rest is half of a sample.
        self._unlink(f"{entry.stem}.json", f"{entry.stem}.{entry.suffix}")
        self._pools[reason].popleft()
        self._held[reason] -= entry.bytes
        self.bytes -= entry.bytes

    def _unlink(self, *names: str, failing: bool = False) -> None:
        """Delete these. failing: what cannot be deleted now is a half, and goes when the folder is opened."""
        for name in names:
            with suppress(OSError if failing else FileNotFoundError):
                (self.path / name).unlink()

    def _write(self, name: str, data: bytes) -> None:
        """A file that has its name once its bytes are on the disk."""
        temporary = self.path / f".{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            temporary.rename(self.path / name)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
