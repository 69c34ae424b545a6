"""One bounded read of a plain file, for whatever is read whole: settings, keys, tokens, bundles, pictures.

Whoever may write beside such a file may put anything in its place. A named pipe must not be waited for, a
device has no end, and a sparse file may say any size: none of them costs more than the stated limit.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

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
    handle = _open_plain(path, shown, folder, follow, expected, error)
    # A plain descriptor: os.fdopen raises for a directory, and leaves it open.
    try:
        # The size is not believed: the file may grow, and some report 0.
        chunks, room = [], limit + 1
        if os.fstat(handle).st_size > limit:
            room = 0
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


def open_plain(path: Path | str, error: type[OfframpError] = ConfigError) -> BinaryIO:
    """One plain file, open for reading piece by piece; its size is the caller's to bound.

    Never blocks on a pipe or a device. error: what is raised, as by ``read_bounded``.
    """
    return os.fdopen(_open_plain(path, str(path), None, True, "", error), "rb")


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, and have its bytes on the disk. Raises OSError."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open_plain(
    path: Path | str, shown: str, folder: int | None, follow: bool, expected: str, error: type[OfframpError]
) -> int:
    """A descriptor of a plain file."""
    # O_NONBLOCK: opening a named pipe must not wait for its writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    wanted = expected or "a plain file"
    try:
        handle = os.open(path, flags, dir_fd=folder)
    except (OSError, ValueError) as problem:
        reason = _reason(problem, path, folder, follow)
        cannot = not expected and isinstance(problem, OSError) and reason == problem.strerror
        raise error(f"{shown}: {'cannot be read: ' * cannot}{reason}, expected {wanted}") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise error(f"{shown}: is {_kind(mode)}, expected {wanted}")
    return handle


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
