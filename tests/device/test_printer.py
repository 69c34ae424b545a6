"""Between the answers and the report: all are printed once, and a stuck reader holds the next image back."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future

import pytest

from offramp.common.errors import DataError, OutputError
from offramp.device import printer as module
from offramp.device.notify import Notifier
from offramp.device.printer import Printer
from offramp.device.report import Report
from offramp.device.result import Correction, Result
from offramp.device.stop import Stop
from offramp.device.totals import Totals
from tests.device.results import result
from tests.processes import WAIT, until


class Stuck(io.StringIO):
    """A stdout that takes nothing until it is read, or fails."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.read_on = threading.Event()
        self._fails = fails

    def write(self, text: str) -> int:
        if self._fails:
            raise OSError(28, "No space left on device")
        assert self.read_on.wait(WAIT)
        return super().write(text)


def printing(out: io.StringIO) -> tuple[Printer, Totals, Stop]:
    totals, stop = Totals(), Stop(Notifier({}))
    return Printer(Report(True, False, None, out), totals, 64, stop), totals, stop


def answered(source: str = "server") -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result("server" if source == "server" else "early_exit"))
    return future


def test_each_answer_is_seen_at_once_whatever_stdout_does() -> None:
    out, seen = Stuck(), list[tuple[int, str, str]]()
    printer = Printer(
        Report(True, False, None, out),
        Totals(),
        64,
        Stop(Notifier({})),
        [lambda index, name, result: seen.append((index, name, result.source))],
    )
    printer.expect(3, "a.png", answered("early"))
    printer.expect(4, "b.png", answered())
    printer.unreadable(5, "c.png", DataError("c.png: no picture"))
    assert seen == [(3, "a.png", "early_exit"), (4, "b.png", "server")]
    out.read_on.set()
    printer.finish()


def test_what_is_handed_in_is_printed_and_counted_once() -> None:
    out = io.StringIO()
    printer, totals, _ = printing(out)
    later: Future[Result] = Future()
    printer.expect(0, "later.png", later)
    printer.expect(1, "now.png", answered())
    printer.unreadable(2, "bad.png", DataError("bad.png: is not a picture"))
    later.set_result(result("early_exit", payload=0))
    printer.correct(Correction(0, "later.png", "cat", 1, 0.5, spooled=False))
    printer.finish()
    assert sorted(line.split('"image": "')[1].split('"')[0] for line in out.getvalue().splitlines()) == [
        "bad.png",
        "later.png",
        "later.png",
        "now.png",
    ]
    assert (totals.images["server"], totals.images["early_exit"]) == (1, 1)
    assert (totals.unreadable, totals.corrections) == (1, 1)


def test_a_reader_that_is_stuck_holds_the_next_image_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING", 3)
    out = Stuck()
    printer, totals, stop = printing(out)
    for index in range(3):
        assert printer.wait_for_room()
        printer.expect(index, "a.png", answered())
    waiting: list[bool] = []
    thread = threading.Thread(target=lambda: waiting.append(printer.wait_for_room()))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    out.read_on.set()
    thread.join(WAIT)
    assert waiting == [True]
    printer.finish()
    assert totals.images["server"] == 3 and not stop.is_set()


def test_a_signal_ends_the_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING", 1)
    out = Stuck()
    printer, _, stop = printing(out)
    printer.expect(0, "a.png", answered())
    stop.set()
    assert not printer.wait_for_room()
    out.read_on.set()
    printer.finish()


def test_a_stdout_that_fails_stops_the_run_and_is_raised_at_its_end() -> None:
    printer, _, stop = printing(Stuck(fails=True))
    printer.expect(0, "a.png", answered())
    until(stop.is_set, "the stop")
    printer.expect(1, "b.png", answered())
    with pytest.raises(OutputError, match="No space left on device"):
        printer.finish()
