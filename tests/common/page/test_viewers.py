"""Those who look: the same state for all, no more than fit, and one that does not read is let go."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from offramp.common.page import viewers as module
from offramp.common.page.viewers import VIEWERS, Viewers
from tests.processes import WAIT, until


class States:
    """Makes states, and counts them."""

    def __init__(self) -> None:
        self.made = 0
        self.text = b"{}"
        self.fails = False

    def __call__(self) -> bytes:
        self.made += 1
        if self.fails:
            raise ValueError("broken")
        return self.text


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> States:
    monkeypatch.setattr(module, "PERIOD_SECONDS", 0.01)
    return States()


@pytest.fixture
def viewers(states: States) -> Iterator[Viewers]:
    made = Viewers(states)
    yield made
    made.close()
    assert not any(thread.name == "offramp-page" for thread in threading.enumerate())


def look(viewers: Viewers) -> socket.socket:
    ours, theirs = socket.socketpair()
    ours.settimeout(WAIT)
    assert viewers.add(theirs, b"head\r\n\r\n")
    return ours


def read(viewer: socket.socket, events: int) -> bytes:
    """What it has been sent, once so many events are there."""
    said = b""
    while said.count(b"\n\n") < events:
        said += viewer.recv(1 << 16)
    return said


def test_each_is_sent_the_head_and_then_states(viewers: Viewers, states: States) -> None:
    with look(viewers) as one, look(viewers) as other:
        for viewer in (one, other):
            assert read(viewer, 3).startswith(b"head\r\n\r\ndata: {}\n\ndata: {}\n\n")


def test_without_a_viewer_nothing_is_made(viewers: Viewers, states: States) -> None:
    assert not threading.Event().wait(0.05)
    assert states.made == 0
    with look(viewers) as one:
        read(one, 1)
    until(lambda: not len(viewers), "the viewer to be gone")
    made = states.made
    assert not threading.Event().wait(0.05)
    assert states.made <= made + 1


def test_one_too_many_is_refused_until_another_has_gone(viewers: Viewers) -> None:
    all_of_them = [look(viewers) for _ in range(VIEWERS)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not viewers.add(theirs, b"")
        all_of_them.pop().close()
        until(lambda: len(viewers) < VIEWERS, "room")
        assert viewers.add(theirs, b"")
    for viewer in all_of_them:
        viewer.close()


def test_one_that_does_not_read_misses_states_and_is_let_go(
    viewers: Viewers, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    states.text = b"x" * (1 << 20)
    with look(viewers) as slow, look(viewers) as reader:
        read(reader, 3)
        assert len(viewers) == 2
        monkeypatch.setattr(module, "STUCK_SECONDS", 0.0)
        until(lambda: len(viewers) <= 1, "the slow one to be gone")
        while slow.recv(1 << 20):
            pass


def test_one_that_talks_is_not_listened_to(viewers: Viewers) -> None:
    with look(viewers) as one:
        one.sendall(b"x" * 4096)
        read(one, 5)
        assert len(viewers) == 1


def test_a_state_that_cannot_be_made_is_said_once(
    viewers: Viewers, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    states.fails = True
    with look(viewers) as one:
        assert b"data" not in read(one, 3)
        states.fails = False
        while b"data: {}" not in read(one, 1):
            pass
    assert caplog.text.count("could not be made") == 1


def test_at_the_end_all_are_let_go(states: States) -> None:
    viewers = Viewers(states)
    with look(viewers) as one:
        viewers.close()
        while one.recv(1 << 16):
            pass
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert not viewers.add(theirs, b"")
