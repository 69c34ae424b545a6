"""The program's three standard streams, so that no answer depends on who reads them.

stderr: a full disk, a dead or a stuck log pipe loses log lines and nothing else. stdout: a reader may be slow
for as long as it likes, but one that takes nothing does not keep a signal from ending the run.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import TextIO

LINES = 1000
"""Writes to stderr that wait for its reader, at most; what comes on top is lost."""
FLUSH_SECONDS = 2.0
"""How long the end of the program waits for the reader of stderr."""
STUCK_SECONDS = 2.0
"""After a signal: how long stdout may take nothing."""
PIECE = 4096
"""A pipe that polls as writable takes this much without blocking (Linux: PIPE_BUF)."""


def ready_streams() -> Log | None:
    """Make all three usable: Python has None for a closed one, and file names hold any byte.

    stdin stays None where it is closed. Returns the new stderr, to be closed at the end.
    """
    # Whatever is opened next would get the number of a closed one, and what a library writes to it.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stderr, io.TextIOWrapper):
        return None  # replaced by whoever called us
    sys.stderr = log = Log(sys.stderr)
    return log


class Log(io.TextIOBase):
    """stderr that never fails and never blocks: a thread of its own does the writing, a terminal excepted.

    Only there the order of what comes on stdout and on stderr can be seen.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._lines: Queue[str | None] = Queue(LINES)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's own."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._terminal

    def fileno(self) -> int:
        """The stream's own."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Write, or lose, the text. Raises nothing."""
        if self._terminal:
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
            return len(text)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="offramp-log", daemon=True)
                self._thread.start()
        with suppress(Full):
            self._lines.put_nowait(text)
        return len(text)

    def end(self) -> None:
        """Wait until all is written, no longer than ``FLUSH_SECONDS``; then the stream is what it was."""
        sys.stderr = self._stream
        if self._thread is not None:
            with suppress(Full):
                self._lines.put(None, timeout=FLUSH_SECONDS)
            self._thread.join(FLUSH_SECONDS)

    def _write_all(self) -> None:
        # Past Python's buffers: their locks would be held by a write that is stuck when the process ends.
        while (text := self._lines.get()) is not None:
            texts = [text]
            with suppress(Empty):
                while (more := self._lines.get_nowait()) is not None:
                    texts.append(more)
                self._lines.put(None)
            data = "".join(texts).encode(self._stream.encoding, "backslashreplace")
            with suppress(OSError, ValueError):
                while data:
                    data = data[os.write(self._stream.fileno(), data) :]


class Answers(io.TextIOBase):
    """stdout, written past Python's buffers.

    stopping: whether a signal has come. From then on a reader that takes nothing for ``STUCK_SECONDS`` makes
    ``write`` raise OSError.
    """

    def __init__(self, stream: TextIO, stopping: Callable[[], bool]) -> None:
        self._stream = stream
        self._stopping = stopping

    def write(self, text: str) -> int:
        """Write all of the text. Raises OSError."""
        handle = self._stream.fileno()
        data = memoryview(text.encode(self._stream.encoding, "backslashreplace"))
        poll = select.poll()
        poll.register(handle, select.POLLOUT)
        since: float | None = None
        while data:
            if poll.poll(100):
                data = data[os.write(handle, data[:PIECE]) :]
                since = None
            elif self._stopping():
                since = time.monotonic() if since is None else since
                if time.monotonic() - since > STUCK_SECONDS:
                    raise OSError(errno.EAGAIN, "nobody reads it")
        return len(text)

    def writable(self) -> bool:
        """Always."""
        return True


def stdout_until(stopping: Callable[[], bool]) -> TextIO:
    """What answers are written to; see ``Answers``. A stdout without a descriptor is taken as it is."""
    stream = sys.stdout
    try:
        stream.flush()
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream
    return Answers(stream, stopping)  # type: ignore[return-value]
