"""The three standard streams of a program, guarded: no answer depends on who reads what it prints.

stdout: a closed pipe or a full disk is one ``OutputError`` at the write that meets it. A reader may be slow
for as long as it likes, but one that takes nothing does not keep a signal from ending the run. stderr: a full
disk, a dead or a stuck log pipe loses messages and nothing else.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING

from offramp.common.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LINES = 1000
"""Writes to stderr that wait for its reader, at most; further ones are lost."""
FLUSH_SECONDS = 2.0
"""How long the end of the program waits for the reader of stderr."""
STUCK_SECONDS = 2.0
"""After a signal: how long stdout may take nothing."""
PIECE = 4096
"""A pipe that polls as writable takes this much without blocking (Linux: PIPE_BUF)."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard the process's own streams; others, such as a test's, stay.

    stdin stays None where it is closed. When the block ends, what waits for stderr is written, for
    ``FLUSH_SECONDS`` at most, and stderr is what it was; stdout stays guarded, so that the interpreter's last
    flush of it raises nothing.
    """
    # Whatever is opened next would get the number of a closed one, and what a library writes to it.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open until the process ends
    out, messages = sys.stdout, sys.stderr
    if out is sys.__stdout__ and isinstance(out, io.TextIOWrapper):
        with suppress(OSError):
            out.flush()
        file = _Results(out.fileno())
        # No BufferedWriter: its lock would be held by a write that is stuck when the process ends.
        sys.stdout = io.TextIOWrapper(
            file, encoding=out.encoding, errors="backslashreplace", line_buffering=file.isatty()
        )
    log = None
    if messages is sys.__stderr__ and isinstance(messages, io.TextIOWrapper):
        sys.stderr = log = _Messages(messages)
    try:
        yield
    finally:
        if log is not None:
            log.end()
            sys.stderr = messages


def stop_waiting_when(stopping: Callable[[], bool]) -> None:
    """Once this is true, a guarded stdout that takes nothing for ``STUCK_SECONDS`` is an error."""
    file = getattr(sys.stdout, "buffer", None)
    if isinstance(file, _Results):
        file.stopping = stopping


class _Results(io.FileIO):
    """stdout. Raises OutputError once; what is still to be written then is dropped."""

    def __init__(self, handle: int) -> None:
        super().__init__(handle, "wb", closefd=False)
        self.stopping: Callable[[], bool] = lambda: False
        self._gone = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it. Raises OutputError."""
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while left and not self._gone:
                left = left[self._write_some(left) :]
        except OSError as error:
            self._gone = True
            raise OutputError(f"stdout: {error.strerror}; stopped") from None
        return size

    def _write_some(self, data: memoryview) -> int:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        since: float | None = None
        while not poll.poll(100):
            if self.stopping():
                since = time.monotonic() if since is None else since
                if time.monotonic() - since > STUCK_SECONDS:
                    raise OSError(errno.EAGAIN, "nobody reads it")
        return os.write(self.fileno(), data[:PIECE])


class _Messages(io.TextIOBase):
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
        """Wait until all is written, no longer than ``FLUSH_SECONDS``."""
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
