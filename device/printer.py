"""Between the answers, which come from several threads, and the report, which one thread writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from offramp.common.errors import DataError
from offramp.device.report import Report
from offramp.device.result import Correction, Result
from offramp.device.stop import Stop
from offramp.device.totals import Totals

BATCH = 256
"""Answers that are written to stdout at once, at most."""
PENDING = 8192
"""Images whose answers are not printed yet, at most: then the next one waits for the reader of stdout."""


class Printer:
    """Prints answers as they come, on a thread of its own.

    A slow reader of stdout delays no image before ``PENDING`` answers wait for it. seen: each is called with
    every answer at once, from whichever thread it comes; it must not wait.
    """

    def __init__(
        self,
        report: Report,
        totals: Totals,
        raw_bytes: int,
        stop: Stop,
        seen: Sequence[Callable[[int, str, Result], None]] = (),
    ) -> None:
        self._report = report
        self._totals = totals
        self._raw_bytes = raw_bytes
        self._stop = stop
        self._seen = seen
        self._ready: SimpleQueue[tuple[int, str, Result | DataError] | Correction | None] = SimpleQueue()
        self._failure: BaseException | None = None
        # Each is written by one thread alone.
        self._handed_in = self._printed = 0
        self._thread = threading.Thread(target=self._print, name="offramp-report", daemon=True)
        self._thread.start()

    def wait_for_room(self) -> bool:
        """Wait until another image may be handed in; False where a signal came first."""
        while self._handed_in - self._printed >= PENDING:
            if self._stop.wait(0.005):
                return False
        return True

    def expect(self, index: int, name: str, future: Future[Result]) -> None:
        """Print this image's result once it is there."""
        self._handed_in += 1
        future.add_done_callback(partial(self._done, index, name))

    def unreadable(self, index: int, name: str, error: DataError) -> None:
        """Print that this image could not be used."""
        self._handed_in += 1
        self._ready.put((index, name, error))

    def correct(self, correction: Correction) -> None:
        """Print what the server answered after all."""
        self._ready.put(correction)

    def finish(self) -> None:
        """Wait until all is printed. Raises what printing raised."""
        self._ready.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _done(self, index: int, name: str, future: Future[Result]) -> None:
        result = future.result()
        for seen in self._seen:
            seen(index, name, result)
        self._ready.put((index, name, result))

    def _print(self) -> None:
        going = True
        while going:
            ready = [self._ready.get()]
            # What is ready together is written together: a line of its own costs more than its image's exit.
            with suppress(Empty):
                while len(ready) < BATCH:
                    ready.append(self._ready.get_nowait())
            if self._failure is not None:  # each write would wait again for a reader that reads nothing
                going = None not in ready
                continue
            try:
                with self._report.batch():
                    for answer in ready:
                        if answer is None:
                            going = False
                        else:
                            self._print_one(answer)
            except Exception as error:  # mostly an OutputError
                going = going and None not in ready
                self._failure = error
                self._stop.set()
            self._printed += sum(isinstance(answer, tuple) for answer in ready)

    def _print_one(self, answer: tuple[int, str, Result | DataError] | Correction) -> None:
        if not isinstance(answer, tuple):
            self._totals.corrections += 1
            self._report.correction(answer)
            return
        index, name, result = answer
        if isinstance(result, DataError):
            self._totals.unreadable += 1
            self._report.unreadable(index, name, result)
        else:
            self._totals.add(result, self._raw_bytes)
            self._report.result(index, name, result)
