"""Standard output and error that end a command in one clear way when nobody takes what it prints.

A closed pipe or a full disk behind stdout is an ``OutputError`` at the write that meets it; behind stderr it
is nothing: messages are lost, results are not.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from offramp.common.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Results(io.FileIO):
    """Raises OutputError once; what is still buffered then is dropped, so that exiting raises nothing."""

    _gone = False

    def write(self, data: ReadableBuffer, /) -> int:
        if not self._gone:
            try:
                return super().write(data)
            except OSError as error:
                self._gone = True
                raise OutputError(f"stdout: {error.strerror}; stopped") from None
        return memoryview(data).nbytes


class _Messages(io.FileIO):
    """Never fails."""

    def write(self, data: ReadableBuffer, /) -> int:
        with suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def guard_output() -> None:
    """Put these in the place of the process's own streams; others, such as a test's, stay."""
    for name, raw in (("stdout", _Results), ("stderr", _Messages)):
        stream = getattr(sys, name)
        if stream is None:
            # It was closed before we began.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open until the process ends
        elif stream is getattr(sys, f"__{name}__"):
            with suppress(OSError):
                stream.flush()
            file = raw(stream.fileno(), "wb", closefd=False)
            guarded = io.TextIOWrapper(
                io.BufferedWriter(file),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=name == "stderr" or file.isatty(),
            )
            setattr(sys, name, guarded)
