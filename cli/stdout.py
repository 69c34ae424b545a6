"""stdout for every command: a reader that goes away, or a full disk, is one error and never a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from offramp.common.errors import OutputError


class Stdout(io.TextIOBase):
    """Passes all on; raises OutputError, once, where the stream takes no more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """The stream's own."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's own."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Raises OutputError."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise self._gone(error) from None

    def flush(self) -> None:
        """Raises OutputError."""
        try:
            self._stream.flush()
        except OSError as error:
            raise self._gone(error) from None

    def _gone(self, error: OSError) -> OutputError:
        self.failed = True
        # Python flushes what is left once more at the end, and would complain then.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        return OutputError(f"stdout: {error.strerror}; stopped")


@contextmanager
def checked_stdout() -> Iterator[Stdout]:
    """``sys.stdout`` is a ``Stdout`` while the block runs, and written to its end after it."""
    before = sys.stdout
    # Python has None for a closed one.
    stdout = Stdout(before if before is not None else io.StringIO())
    sys.stdout = stdout  # type: ignore[assignment]
    try:
        yield stdout
    finally:
        sys.stdout = before
        try:
            stdout.flush()
        except OutputError as error:
            print(f"offramp: {error}", file=sys.stderr)
