"""What systemd hears of a command that a follower runs: a change of bundles is not an end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from offramp.cli.follow import notify
from offramp.cli.follow.child import Child
from offramp.cli.follow.notify import Relay
from tests.processes import WAIT, until

SAYS = "import os, socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n" + (
    "for said in sys.argv[1:]: s.sendto(said.encode(), os.environ['NOTIFY_SOCKET'])"
)


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    """Listens as systemd does."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(tmp_path / "notify"))
    made.settimeout(WAIT)
    return made


def environment(folder: Path) -> dict[str, str]:
    """What systemd gives a service whose watchdog waits a fifth of a second."""
    return os.environ | {
        "NOTIFY_SOCKET": str(folder / "notify"),
        "WATCHDOG_USEC": "200000",
        "WATCHDOG_PID": str(os.getpid()),
    }


def heard(manager: socket.socket) -> list[str]:
    """What has come until now."""
    said = []
    manager.setblocking(False)
    try:
        while True:
            said.append(manager.recv(256).decode())
    except BlockingIOError:
        return said


def test_systemd_hears_that_the_command_is_ready_and_not_that_it_stops(
    manager: socket.socket, tmp_path: Path
) -> None:
    async def run() -> None:
        async with Relay(environment(tmp_path)) as relay:
            given = relay.environment
            assert given is not None and "WATCHDOG_PID" not in given
            words = [sys.executable, "-S", "-c", SAYS, "STOPPING=1", "STATUS=x\nREADY=1", "WATCHDOG=1"]
            child = await Child.start(words, given)
            relay.started()
            assert await child.ended == 0
            while "READY=1" not in said:
                await asyncio.sleep(0.01)
                said.extend(heard(manager))
            relay.stopping()

    said: list[str] = []
    asyncio.run(run())
    said += heard(manager)
    assert said.count("READY=1") == 1 and said[-1] == "STOPPING=1"
    assert set(said[:-1]) == {"READY=1", "WATCHDOG=1"}
    manager.close()


def test_the_follower_is_alive_until_its_command_has_to_say_so(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "READY_SECONDS", 0.1)

    async def run() -> None:
        async with Relay(environment(tmp_path)) as relay:
            await asyncio.to_thread(lambda: [manager.recv(256) for _ in range(2)])
            relay.started()
            # One that never gets ready is systemd's to end.
            await asyncio.sleep(0.3)
            heard(manager)
            await asyncio.sleep(0.3)
            assert heard(manager) == []
            relay.ends()
            await asyncio.to_thread(lambda: until(lambda: heard(manager), "a sign of life"))

    asyncio.run(run())
    manager.close()


def test_without_a_manager_the_command_has_our_environment() -> None:
    async def run() -> None:
        async with Relay({"WATCHDOG_USEC": "1000"}) as relay:
            assert relay.environment is None
            relay.stopping()

    asyncio.run(run())
