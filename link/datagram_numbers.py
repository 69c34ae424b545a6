"""Sequence numbers of datagrams: each once, with a key also across restarts.

With a key a number that is used for two payloads would break the encryption (AES-CCM), so the file says from
where on none was used: it is written, and synchronized with the disk, before a number above is given out.
After a crash up to ``BLOCK`` numbers are left out.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
from pathlib import Path

from offramp.common.errors import ConfigError, OutputError
from offramp.common.wire.datagram import SEALED_SEQUENCES, SEQUENCES

BLOCK = 256
_FLAG = "--sequence-file"


class Numbers:
    """Gives out numbers, from any thread.

    path: None: numbers of datagrams without a key, from a random one on, again from 0 after 65,535. Else one
    process at a time has the file. Raises ConfigError for a file that is not ours, or is another process's.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._path = path
        self._next = random.randrange(SEQUENCES)
        self._reserved = 0
        if path is not None:
            self._next = self._reserved = self._open(path)

    def take(self) -> int:
        """The next number. Raises ConfigError where all are used up, OutputError where the disk fails."""
        with self._lock:
            number = self._next
            if self._path is None:
                self._next = (number + 1) % SEQUENCES
                return number
            if self._descriptor is None:
                raise ConfigError(f"{_FLAG} {self._path}: is closed")
            if number >= SEALED_SEQUENCES:
                raise ConfigError(f"{_FLAG} {self._path}: all numbers are used, expected another key")
            if number >= self._reserved:
                self._write(number + BLOCK)
                self._reserved = number + BLOCK
            self._next = number + 1
            return number

    def close(self) -> None:
        """Leave the file to others; it then has the next number itself."""
        with self._lock:
            if self._descriptor is not None:
                if self._reserved > self._next:
                    self._write(self._next)
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self, path: Path | str) -> int:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = os.read(self._descriptor, 64)
        except BlockingIOError:
            self._forget()
            raise ConfigError(f"{_FLAG} {path}: another process has it, expected a file of its own") from None
        except OSError as error:
            self._forget()
            raise ConfigError(f"{_FLAG} {path}: cannot be opened: {error.strerror}") from None
        line = text.strip()
        if text and (not line.isdigit() or int(line) > SEALED_SEQUENCES):
            self._forget()
            raise ConfigError(f"{_FLAG} {path}: expected one number of 0 … {SEALED_SEQUENCES}")
        return int(line or b"0")

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, number: int) -> None:
        """Of the same length each time, so that a torn write is a number still, and never a smaller one."""
        assert self._descriptor is not None
        try:
            os.pwrite(self._descriptor, f"{min(number, SEALED_SEQUENCES):010d}\n".encode(), 0)
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise OutputError(f"{_FLAG} {self._path}: cannot be written: {error.strerror}") from None
