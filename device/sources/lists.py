"""Lists of paths: ``.txt`` files and standard input, one path a line.

Lines end with ``\\n`` or ``\\r\\n`` and with nothing else: file names hold any other character. Bytes that
are not UTF-8 are a file name too. A byte order mark at the start is not part of the first name.
"""

from __future__ import annotations

import codecs
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from offramp.common.errors import ConfigError, DataError
from offramp.device.sources.files import read_file

LIST_BYTES = 64 << 20
LINE_BYTES = 1 << 16
STDIN_SECONDS = 0.02


def path_in(line: bytes, first: bool) -> str | None:
    """The path of one line without its ``\\n``; None for a blank one."""
    if first:
        line = line.removeprefix(codecs.BOM_UTF8)
    return os.fsdecode(line.removesuffix(b"\r").strip(b" \t")) or None


def paths_of(path: Path, text: bytes) -> Iterator[Path]:
    """The paths of a list, relative to its own folder. Raises ConfigError for UTF-16 and UTF-32."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ConfigError(f"{path}: is not UTF-8 text but UTF-16 or UTF-32, expected one path a line")
    for number, line in enumerate(text.split(b"\n")):
        if name := path_in(line, first=number == 0):
            yield path.parent / name


def files_of(path: Path) -> list[Path]:
    """The file, or those that a list names. Raises ConfigError for a list that cannot be read."""
    if path.suffix.lower() != ".txt":
        return [path]
    try:
        return list(paths_of(path, read_file(path, LIST_BYTES)))
    except DataError as error:
        raise ConfigError(str(error)) from None


def check_stdin() -> None:
    """Raises ConfigError where this process has no standard input."""
    if sys.stdin is None:
        raise ConfigError("-: standard input is closed, expected one path a line")


def stdin_paths(wait: Callable[[float], bool]) -> Iterator[str]:
    """The paths on standard input. ``wait``: see ``Source``.

    Raises ConfigError for a line that is longer than a path may be, DataError where reading fails.
    """
    handle = sys.stdin.fileno()
    held = b""
    first = True
    while True:
        try:
            # A read alone would go on waiting after a signal.
            if not select.select([handle], [], [], 0)[0]:
                if wait(STDIN_SECONDS):
                    return
                continue
            data = os.read(handle, 1 << 16)
        except OSError as error:
            raise DataError(f"-: cannot be read: {error.strerror}") from None
        *lines, held = (held + data).split(b"\n")
        for line in [*lines, held] if not data else lines:
            if name := path_in(line, first):
                yield name
            first = False
        if not data:
            return
        if len(held) > LINE_BYTES:
            raise ConfigError(f"-: a line of over {LINE_BYTES} bytes, expected one path a line")
