"""Windows on disk: after a restart too, one gateway at a time, and no file of others."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from offramp.common.errors import ConfigError, OutputError
from offramp.gateway.state import State


def test_after_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "windows.db")
    state = State(path)
    for number in (5, 3, 4_000_000_000):
        state.take(7, number)
    with pytest.raises(ConfigError, match="cannot be used: database is locked"):
        State(path)
    state.close()
    again = State(path)
    assert again.windows[7].highest == 4_000_000_000
    assert not again.windows[7].is_new(4_000_000_000) and again.windows[7].is_new(4_000_000_001)
    again.close()


def test_a_process_that_died(tmp_path: Path) -> None:
    """Nothing waits to be written at the end."""
    path = tmp_path / "windows.db"
    state = State(str(path))
    state.take(7, 5)
    copy = tmp_path / "copy.db"
    for suffix in ("", "-wal"):
        (tmp_path / f"copy.db{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    state.close()
    after = State(str(copy))
    assert not after.windows[7].is_new(5)
    after.close()


@pytest.mark.parametrize(
    "row",
    [
        "'x', 1, zeroblob(8)",
        "1, -1, zeroblob(8)",
        "1, 1, zeroblob(8)",
        "1, 1, x'01'",
        "70000, 1, x'0100000000000000'",
    ],
)
def test_rows_that_no_gateway_writes(tmp_path: Path, row: str) -> None:
    path = tmp_path / "windows.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE windows (device, highest, seen)")
        database.execute(f"INSERT INTO windows VALUES ({row})")
    database.close()
    with pytest.raises(ConfigError, match="a row that no gateway writes"):
        State(str(path))


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to look like one" * 9)
    for path in (tmp_path / "text", tmp_path / "missing" / "file"):
        with pytest.raises(ConfigError, match=r"--state .*cannot be used"):
            State(str(path))


def test_a_disk_that_fails(tmp_path: Path) -> None:
    state = State(str(tmp_path / "windows.db"))
    assert state._database is not None
    state._database.execute("DROP TABLE windows")
    with pytest.raises(OutputError, match="cannot be written"):
        state.take(1, 1)
    state.close()
