"""The spool's file: activations as rows of one SQLite table. Synchronous, without threads or locks.

Rules this module keeps:
- A store is used by the thread that opened it. While one is opened, no other thread of the process opens one.
- Only one process at a time has the file: the lock is held from ``open`` to ``close``. The file is opened by
  SQLite alone, because closing any other descriptor of it would release that lock.
- The file is input like any other. A table, view or trigger that is not ours is refused and left as it is.
  Rows that a device never writes are deleted at ``open``, by type and length, before any value is read.
- Rows of another bundle stay until that bundle runs again, or until they are the oldest and must go.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.common.errors import ConfigError, PayloadError

ROW_BYTES = 128
"""What a row takes beside its payload and its name, about: bytes of SQLite's own and of the digest."""
NAME_BYTES = 4096
VALUE_BYTES = 1 << 26
"""No value of the file that is longer is ever read."""
INDEX_MOST = (1 << 63) - 1
"""The largest index of an image: SQLite's largest integer."""
_ID_MOST = 1 << 62
"""Room for more ids after it; SQLite takes no row after the largest integer."""
_EARLY_BYTES = 4 * 65_536

_SCHEMA = """
CREATE TABLE activations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  digest BLOB NOT NULL, codec INTEGER NOT NULL, payload BLOB NOT NULL,
  image_index INTEGER NOT NULL, name TEXT NOT NULL, wall_time REAL NOT NULL,
  early BLOB NOT NULL DEFAULT x''
)
"""
_COLUMNS = {"id", "digest", "codec", "payload", "image_index", "name", "wall_time"}
_NAME_HELD = "LENGTH(CAST(name AS BLOB))"
_HELD = f"LENGTH(payload) + LENGTH(early) + {_NAME_HELD}"
# AND stops at the first that does not hold, so a value is looked at only if its type is right.
_VALID = f"""COALESCE(
  id BETWEEN 1 AND {_ID_MOST}
  AND TYPEOF(digest) = 'blob' AND LENGTH(digest) = 32
  AND TYPEOF(codec) = 'integer' AND codec IN ({int(CodecId.BUNDLE)}, {int(CodecId.RAW)})
  AND TYPEOF(payload) = 'blob' AND TYPEOF(early) = 'blob'
  AND TYPEOF(image_index) = 'integer' AND image_index >= 0
  AND TYPEOF(name) = 'text' AND {_NAME_HELD} <= {6 * NAME_BYTES}
  AND TYPEOF(wall_time) IN ('real', 'integer')
  AND CASE WHEN digest = :digest
    THEN LENGTH(payload) <= :payload AND LENGTH(early) IN (0, :early)
    ELSE LENGTH(payload) <= {VALUE_BYTES // 2} AND LENGTH(early) <= {_EARLY_BYTES} END,
  FALSE)"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One activation whose image was answered by the early exit."""

    codec: CodecId
    payload: bytes
    index: int
    name: str
    early: bytes = b""
    """The early exit's probabilities, float32 [K], if both exits answer together; else empty."""

    @property
    def size(self) -> int:
        """What it takes of the spool's bytes."""
        return len(self.payload) + len(self.early) + len(_text(self.name).encode()) + ROW_BYTES


@dataclass(frozen=True, slots=True)
class Rules:
    """What rows of the running bundle have.

    digest: of the bundle, 32 bytes. payload_bytes: of one activation at most. early_bytes: of the early
    exit's probabilities, where a row has some. check: raises PeerError for an entry that is not an
    activation of the bundle.
    """

    digest: bytes
    payload_bytes: int
    early_bytes: int
    check: Callable[[Entry], None]


def rules_of(bundle: Bundle) -> Rules:
    """The rules of a bundle's rows: the payload decodes, and the early exit's answer is probabilities."""
    codec, classes = bundle.codec, len(bundle.manifest.classes)

    def check(entry: Entry) -> None:
        codec.decode(entry.codec, entry.payload)
        if not entry.early:
            return
        early = np.frombuffer(entry.early, np.float32).astype(np.float64)
        # NaN fails every comparison.
        if len(early) != classes or not (early.min() >= 0 and abs(early.sum() - 1) <= 1e-2):
            raise PayloadError(f"the early exit's answer is not {classes} probabilities")

    return Rules(bundle.digest, codec.raw_bytes, 4 * classes, check)


class Store:
    """One file; ``rows`` and ``bytes`` say what it holds. capacity: bytes.

    All but ``close`` raise sqlite3.Error or OSError for a disk that fails, and ``open`` also for damage.
    """

    def __init__(self, path: Path | str, capacity: int, rules: Rules) -> None:
        self.path = Path(path)
        self.capacity = capacity
        self.rules = rules
        self.rows = 0
        self.bytes = 0
        self._limits = {"digest": rules.digest, "payload": rules.payload_bytes, "early": rules.early_bytes}
        self._database: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether the file is open, and locked."""
        return self._database is not None

    def open(self) -> int:
        """Open and lock the file, made if it is not there; how many rows had to be deleted from it.

        Raises ConfigError for a file that is not a spool, which stays as it is.
        """
        if self._database is not None:
            return 0
        self._create()
        database = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            # A name may hold bytes that are not text.
            database.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(VALUE_BYTES, 2 * self.rules.payload_bytes))
            database.execute("PRAGMA trusted_schema=OFF")
            database.execute("PRAGMA cell_size_check=ON")
            # Two devices with one spool would send everything twice.
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            is_new = self._check_schema(database)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(f"PRAGMA journal_size_limit={min(self.capacity, 1 << 20)}")
            (page,) = database.execute("PRAGMA page_size").fetchone()
            # A second bound, for what ROW_BYTES does not know of.
            database.execute(f"PRAGMA max_page_count={2 * self.capacity // page + 16}")
            if is_new:
                database.execute(_SCHEMA)
            elif "early" not in [row[1] for row in database.execute("PRAGMA table_info(activations)")]:
                # A file of an older release.
                database.execute("ALTER TABLE activations ADD COLUMN early BLOB NOT NULL DEFAULT x''")
            removed = self._remove_invalid(database)
            sums = f"SELECT COUNT(*), COALESCE(SUM({_HELD}), 0)"
            rows, held = database.execute(f"{sums} FROM activations").fetchone()
        except Exception:
            database.close()
            raise
        self._database, self.rows, self.bytes = database, rows, held + rows * ROW_BYTES
        return removed

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
        self._database = None

    def write(self, entries: Sequence[Entry]) -> int:
        """Add rows; how many older ones, or of these, had to go for them. All of them fit one by one."""
        database, now = self._opened(), time.time()
        fresh, dropped = list(entries), 0
        try:
            database.execute("BEGIN IMMEDIATE")
            rows, held = self.rows, self.bytes
            need = sum(entry.size for entry in fresh)
            while rows and held + need > self.capacity:
                number, size = database.execute(
                    f"SELECT id, {_HELD} FROM activations ORDER BY id LIMIT 1"
                ).fetchone()
                database.execute("DELETE FROM activations WHERE id = ?", (number,))
                rows, held, dropped = rows - 1, held - size - ROW_BYTES, dropped + 1
            while need > self.capacity:
                need -= fresh.pop(0).size
                dropped += 1
            database.executemany(
                "INSERT INTO activations (digest, codec, payload, image_index, name, wall_time, early) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (self.rules.digest, int(e.codec), e.payload, e.index, _text(e.name), now, e.early)
                    for e in fresh
                ],
            )
            database.execute("COMMIT")
        except Exception:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self.rows, self.bytes = rows + len(fresh), held + need
        return dropped

    def oldest(self, without: Iterable[int], count: int) -> list[tuple[int, Entry]]:
        """The running bundle's oldest rows but these, at most ``count``, with their numbers."""
        skipped = ", ".join(str(int(number)) for number in without)
        found = self._opened().execute(
            "SELECT id, codec, payload, image_index, name, early FROM activations "
            f"WHERE digest = :digest AND {_VALID} AND id NOT IN ({skipped}) ORDER BY id LIMIT :count",
            {**self._limits, "count": count},
        )
        return [(row[0], Entry(CodecId(row[1]), *row[2:])) for row in found]

    def find(self, entry: Entry) -> int | None:
        """The number of the newest row that holds this."""
        row = (
            self._opened()
            .execute(
                "SELECT id FROM activations WHERE image_index = ? AND name = ? AND payload = ? "
                "ORDER BY id DESC LIMIT 1",
                (entry.index, _text(entry.name), entry.payload),
            )
            .fetchone()
        )
        return None if row is None else int(row[0])

    def delete(self, number: int) -> None:
        """Delete a row, if it is there."""
        database = self._opened()
        size = database.execute(f"SELECT {_HELD} FROM activations WHERE id = ?", (number,)).fetchone()
        if size is not None:
            database.execute("DELETE FROM activations WHERE id = ?", (number,))
            self.rows -= 1
            self.bytes -= size[0] + ROW_BYTES

    def set_aside(self) -> None:
        """Rename the file, for whoever wants to look at it; the next ``open`` makes a new one."""
        self.close()
        self._unlink("-wal", "-shm")
        os.replace(self.path, self.path.with_name(self.path.name + ".damaged"))
        self.rows = self.bytes = 0

    def start_over(self) -> None:
        """Delete the file, whose rows are not needed any more: it gives a full disk its room back."""
        self.close()
        self._unlink("", "-wal", "-shm")
        self.rows = self.bytes = 0

    def _opened(self) -> sqlite3.Connection:
        assert self._database is not None
        return self._database

    def _unlink(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _create(self) -> None:
        """Make the file if it is not there; SQLite would make it readable for all."""
        # No other thread has opened the file meanwhile: that would cost it SQLite's lock.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise ConfigError("is not a regular file, expected a file for the spool or none yet")

    def _check_schema(self, database: sqlite3.Connection) -> bool:
        """Whether the database is empty. Raises ConfigError for one that is not a spool's."""
        entries = database.execute(
            "SELECT type, name, SUBSTR(sql, 1, 32) FROM sqlite_master WHERE name NOT GLOB 'sqlite_*' LIMIT 8"
        ).fetchall()
        if not entries:
            return True
        others = [
            f"{kind} {name!r:.40}" for kind, name, _ in entries if (kind, name) != ("table", "activations")
        ]
        if others:
            raise ConfigError(
                f"is not a spool of edge-device: it has the {others[0]}, expected one table, activations"
            )
        columns = {row[1]: row for row in database.execute("PRAGMA table_xinfo(activations)")}
        missing = sorted(_COLUMNS - columns.keys())
        # (number, name, type, not null, default, place in the key, hidden or computed)
        if missing or any(row[6] for row in columns.values()) or entries[0][2].upper().startswith("CREATE V"):
            raise ConfigError(
                "is not a spool of edge-device: its table activations has "
                + (f"no column {missing[0]}" if missing else "computed columns")
            )
        if columns["id"][2].upper() != "INTEGER" or columns["id"][5] != 1:
            raise ConfigError("is not a spool of edge-device: activations.id is not its integer key")
        return False

    def _remove_invalid(self, database: sqlite3.Connection) -> int:
        """Delete rows that a device never writes; how many. Raises sqlite3.DatabaseError for damage."""
        database.execute("BEGIN IMMEDIATE")
        try:
            try:
                where = f"DELETE FROM activations WHERE NOT {_VALID}"
                removed = database.execute(where, self._limits).rowcount
            except sqlite3.DataError:
                removed = self._remove_one_by_one(database)
            if removed:
                # A row with the largest number would leave no room for another one.
                database.execute(
                    "UPDATE sqlite_sequence SET seq = (SELECT COALESCE(MAX(id), 0) FROM activations) "
                    f"WHERE name = 'activations' AND NOT (TYPEOF(seq) = 'integer' AND seq < {_ID_MOST})"
                )
            with closing(database.execute("PRAGMA quick_check(1)")) as check:
                if check.fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("its pages are damaged")
            database.execute("COMMIT")
        except Exception:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        return removed

    def _remove_one_by_one(self, database: sqlite3.Connection) -> int:
        """As ``_remove_invalid``, if a value is longer than may be read."""
        removed, number = 0, None
        while True:
            after = "" if number is None else f"WHERE id > {number}"
            row = database.execute(f"SELECT id FROM activations {after} ORDER BY id LIMIT 1").fetchone()
            if row is None:
                return removed
            number = int(row[0])
            try:
                where = f"DELETE FROM activations WHERE id = {number} AND NOT {_VALID}"
                removed += database.execute(where, self._limits).rowcount
            except sqlite3.DataError:
                removed += database.execute(f"DELETE FROM activations WHERE id = {number}").rowcount


def fits(entry: Entry, capacity: int) -> bool:
    """Whether an entry can be a row of a spool with this capacity."""
    return entry.size <= capacity and len(entry.name) <= NAME_BYTES and 0 <= entry.index <= INDEX_MOST


def is_damage(error: Exception) -> bool:
    """Whether the file itself is damaged, rather than the disk full or the moment wrong."""
    passing = sqlite3.OperationalError | sqlite3.IntegrityError | sqlite3.ProgrammingError
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, passing)


def _text(name: str) -> str:
    """A file's name may hold bytes that are not text, which SQLite does not take."""
    return name.encode("utf-8", "backslashreplace").decode()
