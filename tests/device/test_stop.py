"""The main thread's wait: a signal ends it at once, and a supervisor sees meanwhile that it is alive."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from offramp.device.notify import Notifier
from offramp.device.stop import Stop
from tests.processes import WAIT


class Beats(Notifier):
    """Counts the signs of life."""

    def __init__(self) -> None:
        super().__init__({})
        self.count = 0

    def beat(self) -> None:
        self.count += 1


def test_waiting_ends_when_the_time_is_up() -> None:
    beats = Beats()
    stop = Stop(beats)
    assert not stop.wait(0.01) and not stop.is_set()
    assert beats.count == 1


def test_once_set_nothing_waits() -> None:
    stop = Stop(Beats())
    stop.set()
    stop.set()
    assert stop.is_set() and stop.wait(WAIT) and stop.wait()


def test_another_thread_ends_the_wait() -> None:
    stop = Stop(Beats())
    timer = threading.Timer(0.05, stop.set)
    timer.start()
    assert stop.wait()
    timer.join(WAIT)


def test_a_signal_ends_the_wait() -> None:
    stop = Stop(Beats())
    before = signal.signal(signal.SIGUSR1, lambda *_: stop.set())
    try:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        assert stop.wait(WAIT)
        timer.join(WAIT)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_long_wait_shows_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.device.stop.LOOK_SECONDS", 0.005)
    beats = Beats()
    assert not Stop(beats).wait(0.1)
    assert beats.count > 2
