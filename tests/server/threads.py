"""A process that can start few threads."""

from __future__ import annotations

import threading

import pytest


def few_threads(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """From now on so many threads can be started, and no more."""
    start, running = threading.Thread.start, [room]

    def refuse(self: threading.Thread) -> None:
        if running[0] == 0:
            raise RuntimeError("can't start new thread")
        running[0] -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
