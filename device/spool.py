"""Unsure activations on disk, for hours without a server: a bounded queue in one SQLite file.

Rules this module keeps:
- Nothing here delays or stops an answer: ``put`` hands over to a thread and returns. A disk that is full or
  a file that is damaged is said once, counted, and tried again; meanwhile activations are given up, counted.
- Memory and disk are bounded. Where the file is full, the oldest activations go first; where the disk is too
  slow, the newest do.
- They are sent oldest first, and only while the link has nothing better to do (``Link.offload``,
  ``background``). One that is answered, or that the server refuses for good, is deleted. A device that dies
  between answer and deletion gets that correction a second time: nothing is lost, and none is wrong.
- Only one process at a time has the file.
- Rows of another bundle stay until that bundle runs again, or until they are the oldest and must go.
- The time in a row is the wall clock's, for whoever reads the file; nothing here decides by it.

The file is this user's only: activations may tell what the camera saw.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from offramp.common.codec import CodecId
from offramp.device.link import Answer, Link, Outcome, Refusal
from offramp.device.metrics import DeviceMetrics

log = logging.getLogger("offramp.edge-device")

WAITING_MOST = 256
"""Activations in memory on their way to the disk."""
ROW_BYTES = 128
"""What a row takes beside its payload and its name, about: bytes of SQLite's own and of the digest."""
PAGE_BYTES = 4096
SENDING_MOST = 8
"""Spooled frames under way at a time."""
RETRY_SECONDS, RETRY_SECONDS_MOST = 0.25, 30.0
"""How long the thread sleeps while the link does not take frames; after the disk failed, doubled each time up
to the second."""
QUIET_SECONDS = 600.0
"""Between two complaints of the disk."""
NAME_BYTES = 4096
STOP_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS activations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  digest BLOB NOT NULL, codec INTEGER NOT NULL, payload BLOB NOT NULL,
  image_index INTEGER NOT NULL, name TEXT NOT NULL, wall_time REAL NOT NULL,
  early BLOB NOT NULL DEFAULT x''
)
"""
_HELD = "LENGTH(payload) + LENGTH(early) + LENGTH(CAST(name AS BLOB))"


@dataclass(frozen=True, slots=True)
class Entry:
    """One activation whose image was answered by the early exit."""

    codec: CodecId
    payload: bytes
    index: int
    name: str
    early: bytes = b""
    """The early exit's probabilities, float32 [K], where the answer is both exits'; else empty."""

    @property
    def size(self) -> int:
        """What it takes of the spool's bytes."""
        return len(self.payload) + len(self.early) + len(_text(self.name).encode()) + ROW_BYTES


class Spool:
    """One file, and the thread that writes it and sends what is in it.

    capacity: bytes. deliver: called from this thread or from the link's with each answer.
    """

    def __init__(
        self,
        path: Path | str,
        capacity: int,
        digest: bytes,
        link: Link,
        metrics: DeviceMetrics,
        deliver: Callable[[Entry, Answer], None],
    ) -> None:
        self._path = Path(path)
        self._capacity = capacity
        self._digest = digest
        self._link = link
        self._metrics = metrics
        self._deliver = deliver
        self._fresh: queue.Queue[Entry] = queue.Queue(WAITING_MOST)
        self._late: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        self._under_way: dict[int, Entry] = {}
        self._unwanted: dict[int, int] = {}
        """Rows to delete, and their sizes; none of them is sent or delivered again."""
        self._wake = threading.Event()
        self._sending = True
        self._stop = False
        self._database: sqlite3.Connection | None = None
        self._bytes = 0
        self._rows = 0
        self._failing = False
        self._pause = RETRY_SECONDS
        self._retry_at = 0.0
        self._quiet_until = -math.inf
        self._empty = threading.Event()
        self._thread = threading.Thread(target=self._work, name="offramp-spool", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Keep an activation for later; it never waits and never fails."""
        try:
            self._fresh.put_nowait(entry)
        except queue.Full:
            self._metrics.spool_dropped.labels("busy").inc()
        self._empty.clear()
        self._wake.set()

    def forget(self, entry: Entry) -> None:
        """An activation that was put here was answered after all."""
        self._late.put(entry)
        self._wake.set()

    def hold(self) -> None:
        """Send nothing more; what is under way is still delivered."""
        self._sending = False

    def wait_empty(self, seconds: float) -> bool:
        """Wait until all of this bundle's activations are answered, no longer than this; whether they are."""
        return self._empty.wait(seconds)

    def close(self) -> None:
        """Write what is still in memory, and stop; what is on disk stays there for the next run."""
        self._stop = True
        self._wake.set()
        self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        while True:
            # What comes in from here on wakes the thread once more.
            self._wake.clear()
            stopping = self._stop
            waiting = time.monotonic() < self._retry_at and not stopping
            busy = waiting
            try:
                if waiting:
                    self._give_up_fresh()
                if self._database is not None or not waiting:
                    self._open()
                    self._settle()
                    if not waiting:
                        self._store()
                    if self._database is None:
                        busy = True
                    elif self._sending and not stopping:
                        busy |= self._send()
            except (sqlite3.Error, OSError) as error:
                self._fail(error)
                self._disconnect()
                if _is_damage(error):
                    self._set_aside()
                busy = True
            if stopping:
                self._disconnect()
                return
            self._wake.wait(RETRY_SECONDS if busy else None)

    # --- the file ---

    def _open(self) -> None:
        if self._database is not None:
            return
        # SQLite would make it readable for all.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            # Two devices with one spool would send everything twice.
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(f"PRAGMA journal_size_limit={min(self._capacity, 1 << 20)}")
            (page,) = database.execute("PRAGMA page_size").fetchone()
            # A second bound, for what ROW_BYTES does not know of.
            database.execute(f"PRAGMA max_page_count={2 * self._capacity // page + 16}")
            database.execute(_SCHEMA)
            if "early" not in [row[1] for row in database.execute("PRAGMA table_info(activations)")]:
                # A file of an older release.
                database.execute("ALTER TABLE activations ADD COLUMN early BLOB NOT NULL DEFAULT x''")
            with closing(database.execute("PRAGMA quick_check(1)")) as check:
                if check.fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("its pages are damaged")
            sums = f"SELECT COUNT(*), COALESCE(SUM({_HELD}), 0)"
            rows, held = database.execute(f"{sums} FROM activations").fetchone()
        except sqlite3.Error:
            database.close()
            raise
        self._database, self._rows, self._bytes = database, rows, held + rows * ROW_BYTES
        self._count()

    def _disconnect(self) -> None:
        if self._database is not None:
            try:
                self._database.close()
            except sqlite3.Error as error:
                log.debug("closing the spool %s: %s", self._path, error)
        self._database = None

    def _fail(self, error: sqlite3.Error | OSError) -> None:
        self._metrics.spool_errors.inc()
        # A disk that is nearly full takes one and refuses the next.
        news = not self._failing and time.monotonic() >= self._quiet_until
        level = logging.WARNING if news else logging.DEBUG
        log.log(level, "the spool %s fails: %s; answers go on without it", self._path, error)
        if news:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
        self._failing = True
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, RETRY_SECONDS_MOST)
        self._give_up_fresh()

    def _set_aside(self) -> None:
        """Start over with a new file; the damaged one is kept for whoever wants to look."""
        try:
            self._unlink("-wal", "-shm")
            os.replace(self._path, self._path.with_name(self._path.name + ".damaged"))
        except OSError as error:
            log.debug("the spool %s cannot be set aside: %s", self._path, error)
            return
        self._metrics.spool_dropped.labels("damaged").inc(self._rows)
        self._forget_rows()

    def _start_over(self) -> None:
        """Give a full disk its room back: nothing in the file is needed any more."""
        self._disconnect()
        self._unlink("", "-wal", "-shm")
        self._forget_rows()

    def _unlink(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _forget_rows(self) -> None:
        self._rows = self._bytes = 0
        self._under_way.clear()
        self._unwanted.clear()
        self._retry_at = 0.0
        self._count()

    def _give_up_fresh(self) -> None:
        """What waits for a disk that takes nothing must not pile up."""
        while not self._fresh.empty():
            self._fresh.get_nowait()
            self._metrics.spool_dropped.labels("busy").inc()

    def _store(self) -> None:
        """Write what is new and delete what is done with. A disk that takes nothing can still be read."""
        try:
            if self._write():
                self._failing, self._pause = False, RETRY_SECONDS
            self._delete_unwanted()
        except sqlite3.OperationalError as error:
            self._fail(error)
            full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            if full and self._rows == len(self._unwanted) and not self._under_way:
                self._start_over()

    def _write(self) -> bool:
        """Write what waits; whether that was something."""
        assert self._database is not None
        entries = []
        while not self._fresh.empty():
            entry = self._fresh.get_nowait()
            if entry.size <= self._capacity and len(entry.name) <= NAME_BYTES:
                entries.append(entry)
            else:
                self._metrics.spool_dropped.labels("full").inc()
        if not entries:
            return False
        database, now = self._database, time.time()
        try:
            database.execute("BEGIN IMMEDIATE")
            rows, held, dropped = self._rows, self._bytes, 0
            need = sum(entry.size for entry in entries)
            while rows and held + need > self._capacity:
                number, size = database.execute(
                    f"SELECT id, {_HELD} FROM activations ORDER BY id LIMIT 1"
                ).fetchone()
                database.execute("DELETE FROM activations WHERE id = ?", (number,))
                rows, held, dropped = rows - 1, held - size - ROW_BYTES, dropped + 1
            while need > self._capacity:
                need -= entries.pop(0).size
                dropped += 1
            database.executemany(
                "INSERT INTO activations (digest, codec, payload, image_index, name, wall_time, early) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (self._digest, int(e.codec), e.payload, e.index, _text(e.name), now, e.early)
                    for e in entries
                ],
            )
            database.execute("COMMIT")
        except sqlite3.Error:
            self._metrics.spool_dropped.labels("busy").inc(len(entries))
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self._rows, self._bytes = rows + len(entries), held + need
        self._metrics.spooled.inc(len(entries))
        self._metrics.spool_dropped.labels("full").inc(dropped)
        self._count()
        return True

    def _delete_unwanted(self) -> None:
        assert self._database is not None
        for number, size in list(self._unwanted.items()):
            gone = self._database.execute("DELETE FROM activations WHERE id = ?", (number,)).rowcount
            del self._unwanted[number]
            self._rows -= gone
            self._bytes -= gone * size
        self._count()

    def _count(self) -> None:
        self._metrics.spool_entries.set(self._rows)
        self._metrics.spool_bytes.set(self._bytes)

    # --- the link ---

    def _send(self) -> bool:
        """Hand the oldest to the link while it takes them; whether it did not take all."""
        assert self._database is not None
        skip = [*self._under_way, *self._unwanted]
        rows = self._database.execute(
            "SELECT id, codec, payload, image_index, name, early FROM activations "
            f"WHERE digest = ? AND id NOT IN ({', '.join('?' * len(skip))}) ORDER BY id LIMIT ?",
            (self._digest, *skip, SENDING_MOST - len(self._under_way)),
        ).fetchall()
        if not rows and not self._under_way and self._fresh.empty():
            self._empty.set()
        for number, codec, payload, index, name, early in rows:
            turned_away: list[Outcome] = []

            def done(
                outcome: Outcome, number: int = number, turned_away: list[Outcome] = turned_away
            ) -> None:
                turned_away.append(outcome)
                self._answered.put((number, outcome))
                self._wake.set()

            self._under_way[number] = entry = Entry(CodecId(codec), payload, index, name, early)
            self._link.offload(entry.codec, entry.payload, done, background=True)
            if turned_away and isinstance(turned_away[0], Refusal) and not turned_away[0].sends:
                # The wake that this caused is not news; the next try comes after a while.
                self._under_way.pop(number, None)
                self._wake.clear()
                return True
        return False

    def _settle(self) -> None:
        """What came back since the last time."""
        assert self._database is not None
        while not self._answered.empty():
            number, outcome = self._answered.get_nowait()
            entry = self._under_way.pop(number, None)
            if entry is None:
                continue
            if isinstance(outcome, Answer):
                self._unwanted[number] = entry.size
                self._deliver(entry, outcome)
            elif outcome.final:
                self._unwanted[number] = entry.size
                self._metrics.spool_dropped.labels("refused").inc()
        while not self._late.empty():
            entry = self._late.get_nowait()
            row = self._database.execute(
                "SELECT id FROM activations WHERE image_index = ? AND name = ? AND payload = ? "
                "ORDER BY id DESC LIMIT 1",
                (entry.index, _text(entry.name), entry.payload),
            ).fetchone()
            if row is not None:
                self._under_way.pop(row[0], None)
                self._unwanted[row[0]] = entry.size


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is no good, rather than the disk or the moment."""
    passing = sqlite3.OperationalError | sqlite3.IntegrityError | sqlite3.ProgrammingError
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, passing)


def _text(name: str) -> str:
    """A file's name may hold bytes that are no text, which SQLite does not take."""
    return name.encode("utf-8", "backslashreplace").decode()
