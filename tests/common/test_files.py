"""What may stand in place of a file that is read whole: each is one clear error, at once."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from offramp.common.errors import BundleError, ConfigError, DataError
from offramp.common.files import open_plain, read_bounded, replace_file

LIMIT = 100


def test_a_plain_file_of_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * LIMIT)
    assert read_bounded(path, LIMIT) == b"x" * LIMIT
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_bounded(link, LIMIT) == b"x" * LIMIT
    path.write_bytes(b"")
    assert read_bounded(path, LIMIT) == b""
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert read_bounded("link", LIMIT, folder=folder) == b""
        with pytest.raises(BundleError, match=r"^link: is a symbolic link, expected a plain file$"):
            read_bounded("link", LIMIT, folder=folder, follow=False, error=BundleError)
    finally:
        os.close(folder)


def test_a_plain_file_is_opened_for_reading_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with open_plain(path) as file:
        assert (file.read(2), file.read()) == (b"ab", b"c")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        replace_file(path, b"new")
        assert (reader.read(), path.read_bytes()) == (b"old", b"new")
    assert list(tmp_path.iterdir()) == [path]


def make(kind: str, path: Path) -> Path:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "zero":
        return Path("/dev/zero")
    elif kind == "tty":
        return Path("/dev/tty")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(10 << 40)
    elif kind == "long":
        path.write_bytes(b"x" * (LIMIT + 1))
    elif kind == "socket":
        holder = socket.socket(socket.AF_UNIX)
        holder.bind(os.path.relpath(path))
        holder.close()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(path.with_name("gone"))
    elif kind == "name":
        return path.with_name("n" * 300)
    elif kind == "nul":
        return path.with_name("a\0b")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is a named pipe, expected a plain file$"),
        ("directory", "is a directory, expected a plain file$"),
        ("zero", "is a device, expected a plain file$"),
        ("tty", "expected"),
        ("sparse", "is longer than 100 bytes, expected at most that"),
        ("long", "is longer than 100 bytes, expected at most that"),
        ("socket", "is a socket or a device without a driver, expected a plain file"),
        ("loop", "cannot be read: Too many levels of symbolic links, expected a plain file"),
        ("dangling", "cannot be read: No such file or directory, expected a plain file"),
        ("missing", "cannot be read: No such file or directory, expected a plain file"),
        ("name", "cannot be read: File name too long, expected a plain file"),
        ("nul", "is not a path, expected a plain file"),
    ],
)
def test_what_is_no_such_file_is_one_error(tmp_path: Path, kind: str, message: str) -> None:
    path = make(kind, tmp_path / "file")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=message) as wrong:
        read_bounded(path, LIMIT)
    assert str(wrong.value).startswith(f"{path}: ")
    if kind not in ("sparse", "long"):
        with pytest.raises(DataError, match=message):
            open_plain(path, DataError)
    with pytest.raises(ConfigError, match=r"^--flag x: ") as named:
        read_bounded(path, LIMIT, name="--flag x", expected="a key")
    kinds = {"pipe": "a named pipe", "directory": "a directory", "zero": "a device"}
    assert kind not in kinds or str(named.value) == f"--flag x: is {kinds[kind]}, expected a key"
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_stated_size_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of /proc say 0; a file may grow while it is read."""
    assert read_bounded("/proc/self/cgroup", 1 << 20)
    with pytest.raises(ConfigError, match="longer than 3 bytes"):
        read_bounded("/proc/self/status", 3)
    path = tmp_path / "file"
    path.write_bytes(b"")
    real = os.fstat

    def grow(handle: int) -> os.stat_result:
        status = real(handle)
        path.write_bytes(b"x" * 5000)
        return status

    monkeypatch.setattr(os, "fstat", grow)
    with pytest.raises(ConfigError, match=f"longer than {LIMIT} bytes"):
        read_bounded(path, LIMIT)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", broken)
    with pytest.raises(ConfigError, match="cannot be read: Input/output error"):
        read_bounded(path, LIMIT)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(0)
    assert not path.stat().st_mode & stat.S_IRUSR
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        read_bounded(path, LIMIT)
