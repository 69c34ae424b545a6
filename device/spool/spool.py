"""Unsure activations on disk, for hours without a server: a bounded queue in one file, and its thread.

Rules this module keeps:
- Nothing here delays or stops an answer: ``put`` and ``forget`` hand over to a thread and return. A disk
  that is full or a file that is damaged is logged, counted, and tried again (``trouble.py``); meanwhile
  activations are given up and counted.
- Memory and disk are bounded. If the file is full, the oldest activations go first; if the disk is too slow,
  the newest do.
- They are sent oldest first, and only while the link has nothing better to do (``Link.offload``,
  ``background``). One that is answered, or that the server refuses for good, is deleted. A correction is
  delivered a second time if the device dies between answer and deletion, or if a late answer came while
  ``FORGET_MOST`` others waited for the disk (counted): nothing is lost, and no correction is wrong.
- A row is checked as a frame from outside is before it is sent; a bad one is dropped and counted.
- The time in a row is the wall clock's, for whoever reads the file; nothing here decides by it.

The file (``store.py``) is this user's only: activations may show what the camera saw.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from offramp.common.errors import OfframpError, PeerError
from offramp.device.metrics import DeviceMetrics
from offramp.device.spool.store import Entry, Rules, Store, fits, is_damage
from offramp.device.spool.trouble import Trouble
from offramp.link.offloader import Offloader
from offramp.link.outcome import Answer, Outcome, Refusal

log = logging.getLogger("offramp.edge-device")

WAITING_MOST = 256
"""Activations in memory on their way to the disk."""
FORGET_MOST = 1024
"""Activations in memory that were answered after all, and whose rows are to be deleted."""
SENDING_MOST = 8
"""Spooled frames under way at a time."""
RETRY_SECONDS = 0.25
"""How long the thread sleeps while the link does not take frames, or the disk has failed."""
UNWANTED_MOST = 1000
"""Rows that wait to be deleted; while there are more, no others are sent."""
STOP_SECONDS = 5.0

_opening = threading.Lock()
"""A file is made and locked by one thread at a time (``store.py``)."""


class Spool:
    """One file, and the thread that writes it and sends what is in it.

    capacity: bytes. rules: of the running bundle's rows. deliver: called from this thread or from the link's
    with each answer.
    """

    def __init__(
        self,
        path: Path | str,
        capacity: int,
        rules: Rules,
        link: Offloader,
        metrics: DeviceMetrics,
        deliver: Callable[[Entry, Answer], None],
    ) -> None:
        self._store = Store(path, capacity, rules)
        self._trouble = Trouble()
        self._link = link
        self._metrics = metrics
        self._deliver = deliver
        self._fresh: queue.Queue[Entry] = queue.Queue(WAITING_MOST)
        self._late: queue.Queue[Entry] = queue.Queue(FORGET_MOST)
        self._answered: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        self._under_way: dict[int, Entry] = {}
        self._unwanted: set[int] = set()
        """Rows to delete; none of them is sent or delivered again."""
        self._wake = threading.Event()
        self._sending = True
        self._stop = False
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
        """An activation that was put here was answered after all; it never waits and never fails."""
        try:
            self._late.put_nowait(entry)
        except queue.Full:  # its row stays, and is answered again
            self._metrics.spool_repeats.inc()
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
            waiting = self._trouble.is_left_alone(time.monotonic()) and not stopping
            busy = waiting
            try:
                if waiting:
                    self._give_up_fresh()
                if self._store.is_open or not waiting:
                    self._open()
                    self._settle()
                    self._update(waiting)
                    if not self._store.is_open:
                        busy = True
                    elif self._sending and not stopping:
                        busy |= self._send()
            except Exception as error:  # whatever it is, the answers to come need this thread
                self._fail(error)
                self._store.close()
                if is_damage(error):
                    self._set_aside()
                busy = True
            if stopping:
                self._store.close()
                return
            self._wake.wait(RETRY_SECONDS if busy else None)

    # --- the file ---

    def _open(self) -> None:
        if self._store.is_open:
            return
        with _opening:
            removed = self._store.open()
        self._count()
        if removed:
            self._drop_bad(removed, "a device never writes their type, length or range")

    def _drop_bad(self, count: int, reason: str) -> None:
        self._metrics.spool_dropped.labels("damaged").inc(count)
        level = self._trouble.bad_rows()
        log.log(level, "the spool %s: %d rows dropped: %s", self._store.path, count, reason)

    def _fail(self, error: Exception) -> None:
        self._metrics.spool_errors.inc()
        level = self._trouble.failed(time.monotonic())
        log.log(level, "the spool %s fails: %s; answers go on without it", self._store.path, _shown(error))
        self._give_up_fresh()

    def _set_aside(self) -> None:
        """Start over with a new file; the damaged one is kept for whoever wants to look."""
        rows = self._store.rows
        try:
            self._store.set_aside()
        except OSError as error:
            log.debug("the spool %s cannot be set aside: %s", self._store.path, error)
            return
        self._metrics.spool_dropped.labels("damaged").inc(rows)
        self._forget_rows()

    def _forget_rows(self) -> None:
        self._under_way.clear()
        self._unwanted.clear()
        self._trouble.starts_over()
        self._count()

    def _give_up_fresh(self) -> None:
        """What waits for a disk that takes nothing must not pile up."""
        while not self._fresh.empty():
            self._fresh.get_nowait()
            self._metrics.spool_dropped.labels("busy").inc()

    def _update(self, waiting: bool) -> None:
        """Write what is new and delete what is done with. A disk that takes nothing can still be read."""
        # Whatever was answered late by now is written below, if it was not before.
        late = [self._late.get_nowait() for _ in range(self._late.qsize())]
        try:
            if not waiting and self._write():
                self._trouble.worked()
            self._forget(late)
            if not waiting:
                self._delete_unwanted()
        except sqlite3.OperationalError as error:
            self._fail(error)
            full = _code(error) == sqlite3.SQLITE_FULL
            if full and self._store.rows == len(self._unwanted) and not self._under_way:
                self._store.start_over()
                self._forget_rows()
            elif late:
                self._forget(late)

    def _forget(self, late: list[Entry]) -> None:
        """The rows of these are not wanted any more."""
        while late:
            row = self._store.find(late.pop())
            if row is not None:
                self._under_way.pop(row, None)
                self._unwanted.add(row)

    def _write(self) -> bool:
        """Write what waits; whether that was something."""
        entries = []
        while not self._fresh.empty():
            entry = self._fresh.get_nowait()
            if fits(entry, self._store.capacity):
                entries.append(entry)
            else:
                self._metrics.spool_dropped.labels("full").inc()
        if not entries:
            return False
        try:
            dropped = self._store.write(entries)
        except Exception:
            self._metrics.spool_dropped.labels("busy").inc(len(entries))
            raise
        self._metrics.spooled.inc(len(entries))
        self._metrics.spool_dropped.labels("full").inc(dropped)
        self._count()
        return True

    def _delete_unwanted(self) -> None:
        for number in list(self._unwanted):
            self._store.delete(number)
            self._unwanted.discard(number)
        self._count()

    def _count(self) -> None:
        self._metrics.spool_entries.set(self._store.rows)
        self._metrics.spool_bytes.set(self._store.bytes)

    # --- the link ---

    def _send(self) -> bool:
        """Hand the oldest to the link while it takes them; whether it did not take all."""
        if len(self._unwanted) > UNWANTED_MOST:
            return True
        room = SENDING_MOST - len(self._under_way)
        rows = self._store.oldest([*self._under_way, *self._unwanted], room)
        if not rows and not self._under_way and self._fresh.empty():
            self._empty.set()
        for number, entry in rows:
            try:
                self._store.rules.check(entry)
            except PeerError as error:
                self._unwanted.add(number)
                self._drop_bad(1, str(error))
                self._wake.set()
                continue
            turned_away: list[Outcome] = []

            def done(
                outcome: Outcome, number: int = number, turned_away: list[Outcome] = turned_away
            ) -> None:
                turned_away.append(outcome)
                self._answered.put((number, outcome))
                self._wake.set()

            self._under_way[number] = entry
            self._link.offload(entry.codec, entry.payload, done, background=True)
            if turned_away and isinstance(turned_away[0], Refusal) and not turned_away[0].sends:
                # The wake that this caused is not news; the next try comes after a while.
                self._under_way.pop(number, None)
                self._wake.clear()
                return True
        return False

    def _settle(self) -> None:
        """What came back since the last time."""
        while not self._answered.empty():
            number, outcome = self._answered.get_nowait()
            entry = self._under_way.pop(number, None)
            if entry is None:
                continue
            if isinstance(outcome, Answer):
                self._unwanted.add(number)
                self._deliver(entry, outcome)
            elif outcome.final:
                self._unwanted.add(number)
                self._metrics.spool_dropped.labels("refused").inc()


def _code(error: Exception) -> int | None:
    """SQLite's code of an error; None for one that is not from SQLite itself."""
    return getattr(error, "sqlite_errorcode", None)


def _shown(error: Exception) -> str:
    """An error for the log; SQLite's own may leave out what to do."""
    if _code(error) == sqlite3.SQLITE_BUSY:
        return f"{error}: another process has it open, expected a file for this device alone"
    if isinstance(error, sqlite3.Error | OSError | OfframpError):
        return str(error)
    return f"{type(error).__name__}: {error}"
