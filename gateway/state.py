"""The replay windows on disk: one SQLite table, written before a request is forwarded.

A file of one gateway: several with the same devices share no window, and a replay may then be answered once
by each of them; its device takes one answer only.
"""

from __future__ import annotations

import sqlite3

from offramp.common.errors import ConfigError, OutputError
from offramp.common.wire.datagram import DEVICES, SEALED_SEQUENCES
from offramp.gateway.window import WINDOW, Window

FLAG = "--state"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS windows (device INTEGER PRIMARY KEY, highest INTEGER NOT NULL, "
    "seen BLOB NOT NULL)"
)


class State:
    """The windows of all devices; one thread at a time. path: None: in memory alone.

    Raises ConfigError for a file that is not ours, is damaged, or is another process's.
    """

    def __init__(self, path: str | None) -> None:
        self.windows: dict[int, Window] = {}
        self._path = path
        self._database: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_SCHEMA)
            rows = self._database.execute("SELECT device, highest, seen FROM windows").fetchall()
        except sqlite3.Error as error:
            self.close()
            raise ConfigError(
                f"{FLAG} {path}: cannot be used: {error}, expected a file of a gateway"
            ) from None
        for device, highest, seen in rows:
            self.windows[device] = self._checked(device, highest, seen)

    def take(self, device: int, number: int) -> None:
        """A request of a device was taken. Raises OutputError where that cannot be kept."""
        window = self.windows.setdefault(device, Window())
        window.take(number)
        if self._database is None:
            return
        try:
            self._database.execute(
                "INSERT OR REPLACE INTO windows VALUES (?, ?, ?)",
                (device, window.highest, window.seen.to_bytes(WINDOW // 8, "little")),
            )
        except sqlite3.Error as error:
            raise OutputError(f"{FLAG} {self._path}: cannot be written: {error}") from None

    def close(self) -> None:
        """Leave the file to others."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _checked(self, device: object, highest: object, seen: object) -> Window:
        valid = (
            isinstance(device, int)
            and 0 <= device < DEVICES
            and isinstance(highest, int)
            and 0 <= highest < SEALED_SEQUENCES
            and isinstance(seen, bytes)
            and len(seen) == WINDOW // 8
            and seen[0] & 1
        )
        if not valid:
            self.close()
            raise ConfigError(f"{FLAG} {self._path}: a row that no gateway writes, expected a file of one")
        assert isinstance(highest, int) and isinstance(seen, bytes)
        return Window(highest, int.from_bytes(seen, "little"))
