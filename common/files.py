"""One bounded read of a plain file, for everything small that is read whole: settings, keys, tokens, bundles.

Whoever may write beside such a file may put anything in its place. A named pipe must not be waited for, a
device has no end, and a sparse file may say any size: none of them costs more than the stated limit.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from offramp.common.errors import ConfigError, OfframpError

CHUNK_BYTES = 1 << 20


def read_bounded(
    path: Path | str,
    limit: int,
    *,
    name: str | None = None,
    folder: int | None = None,
    follow: bool = True,
    expected: str = "",
    error: type[OfframpError] = ConfigError,
) -> bytes:
    """The whole of one plain file of at most ``limit`` bytes; never blocks on a pipe or a device.

    name: what errors call it (default: the path). folder: descriptor of the directory that ``path`` is in.
    follow: whether ``path`` may be a symbolic link. error: what is raised, with one line that names the file,
    what is wrong and what was expected (default: a plain file).
    """
    shown = str(path) if name is None else name
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags, dir_fd=folder)
    except (OSError, ValueError) as problem:
        reason = _reason(problem, path, folder, follow)
        if expected:
            raise error(f"{shown}: {reason}, expected {expected}") from None
        cannot = "cannot be read: " if isinstance(problem, OSError) and reason == problem.strerror else ""
        raise error(f"{shown}: {cannot}{reason}, expected a plain file") from None
    # A plain descriptor: os.fdopen raises for a directory, and leaves it open.
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            if expected:
                raise error(f"{shown}: is {_kind(status.st_mode)}, expected {expected}")
            raise error(f"{shown}: is no plain file, expected one")
        if status.st_size > limit:
            raise error(f"{shown}: is longer than {limit} bytes, expected at most that")
        # The size is not believed: the file may grow, and some report 0.
        chunks, room = [], limit + 1
        while room and (chunk := os.read(handle, min(room, CHUNK_BYTES))):
            chunks.append(chunk)
            room -= len(chunk)
    except OSError as problem:
        raise error(f"{shown}: cannot be read: {problem.strerror}, expected a plain file") from None
    finally:
        os.close(handle)
    if not room:
        raise error(f"{shown}: is longer than {limit} bytes, expected at most that")
    return b"".join(chunks)


def _reason(problem: OSError | ValueError, path: Path | str, folder: int | None, follow: bool) -> str:
    if not isinstance(problem, OSError):
        return "is not a path"  # a NUL in it
    if not follow and problem.errno == errno.ELOOP and _is_link(path, folder):
        return "is a symbolic link"
    if problem.errno == errno.ENXIO:
        return "is a socket or a device without a driver"
    return str(problem.strerror)


def _is_link(path: Path | str, folder: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path, dir_fd=folder).st_mode)
    except OSError:
        return False


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return kind
    return "a socket"
