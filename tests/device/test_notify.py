"""What a service manager hears: ready, alive, stopping. Its socket is a real one."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.device.notify import Notifier
from tests.processes import WAIT, Processes, until


class Manager:
    """Listens as systemd does."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(WAIT)

    def hear(self) -> str:
        """The next message."""
        return self._socket.recv(256).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


def test_a_device_says_that_it_is_ready_alive_and_stopping(
    run: Processes, manager: Manager, tmp_path: Path, toy_images: Path
) -> None:
    """It waits for pictures in an empty folder: signs of life come also where nothing else does."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    device = run.start_device("--threshold", 0, "--watch", "--quiet", inbox, env=environment)
    assert manager.hear() == "READY=1"
    assert [manager.hear() for _ in range(5)] == ["WATCHDOG=1"] * 5
    device.send(signal.SIGTERM)
    said = manager.hear()
    while said == "WATCHDOG=1":
        said = manager.hear()
    assert said == "STOPPING=1"
    assert device.wait() == 130


def test_a_device_that_is_held_lives(
    run: Processes, manager: Manager, tmp_path: Path, toy_images: Path
) -> None:
    environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    device = run.start_device("--threshold", 0, "--hold", "--quiet", toy_images, env=environment)
    until(lambda: device.stdout, "the summary")
    assert manager.hear() == "READY=1"
    assert [manager.hear() for _ in range(5)] == ["WATCHDOG=1"] * 5
    device.send(signal.SIGTERM)
    assert device.wait() == 0


def test_an_abstract_socket_is_heard_on() -> None:
    name = f"offramp-test-{os.getpid()}-{time.monotonic_ns()}"
    manager = Manager("\0" + name)
    Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
    assert manager.hear() == "READY=1"
    manager.close()


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}],
)
def test_nobody_waits_for_signs_of_life(watchdog: dict[str, str]) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/nowhere"} | watchdog)
    assert notifier.interval is None
    notifier.beat()


def test_a_manager_that_is_gone_is_no_error() -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000000"})
    assert notifier.interval == 0.5
    notifier.ready()
    notifier.beat()
