"""How many streams fit the limit on open files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.server.descriptors import RESERVE, SPARE_CONNECTIONS, fit
from tests.processes import WAIT, Processes, until
from tests.server.client import Ended, Stream, channel_to

NEEDED = 1024 + SPARE_CONNECTIONS + RESERVE
INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (INFINITE, INFINITE, (1024, 1280, INFINITE)),
        (NEEDED, NEEDED, (1024, 1280, NEEDED)),
        (1024, 524_288, (1024, 1280, NEEDED)),
        (1024, INFINITE, (1024, 1280, NEEDED)),
        (256, NEEDED, (1024, 1280, NEEDED)),
        (1024, 1024, (743, 928, 1024)),
        (256, 1024, (743, 928, 1024)),
        (NEEDED - 1, NEEDED - 1, (1024, 1279, NEEDED - 1)),
        (RESERVE + 2, RESERVE + 2, (1, 2, RESERVE + 2)),
    ],
)
def test_streams_fit_the_open_files(soft: int, hard: int, expected: tuple[int, int, int]) -> None:
    room = fit(1024, soft, hard)
    assert (room.streams, room.connections, room.files) == expected


def test_what_is_open_already_counts_and_none_at_all_is_an_error() -> None:
    assert fit(1024, 1024, 1024, open_files=148).connections == 928 - 100
    with pytest.raises(ConfigError, match=f"the limit on open files is 97, expected {RESERVE + 2} at least"):
        fit(1024, 97, 97)


def limit_files(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_files_for_one_stream_are_exit_2(toy_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "offramp.server.app", "--bundle", str(toy_bundle.path)]
    done = subprocess.run(
        [*command, "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        preexec_fn=limit_files(60, 60),
    )
    assert done.returncode == 2 and "the limit on open files is 60" in done.stderr, done.stderr


def test_the_soft_limit_is_raised(run: Processes) -> None:
    server = run.server("--max-streams", 300, preexec_fn=limit_files(128, 2000))
    _, line = Path(f"/proc/{server.pid}/limits").read_text().split("Max open files", 1)
    assert int(line.split()[0]) >= 300 + SPARE_CONNECTIONS + RESERVE
    assert server.metrics()["offramp_server_limit{limit=streams}"] == 300
    assert "--max-streams" not in server.errors


def test_more_devices_than_files_are_refused_with_a_status(run: Processes, toy_bundle: Bundle) -> None:
    """And who is in, and the metrics page, notices nothing."""
    server = run.server(preexec_fn=limit_files(200, 200))
    server.wait_for(r"WARNING \d+ streams at most in place of --max-streams 1024: .* open files is 200")
    streams = int(server.metrics()["offramp_server_limit{limit=streams}"])
    assert 10 <= streams < 104
    outcomes: list[str] = []
    with ExitStack() as stack:
        for _ in range(250):
            channel = stack.enter_context(channel_to(server.address))
            stream = Stream(channel, toy_bundle)
            stack.callback(stream.half_close)
            try:
                stream.hello()
                outcomes.append("accepted")
            except Ended as ended:
                outcomes.append(ended.status)
        assert outcomes == ["accepted"] * streams + outcomes[streams:]
        assert set(outcomes[streams:]) <= {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
        assert outcomes[streams] == "RESOURCE_EXHAUSTED"
        page = server.metrics()
        assert page["offramp_server_open_streams"] == streams
        assert len(os.listdir(f"/proc/{server.pid}/fd")) <= 200
    until(lambda: server.metrics()["offramp_server_open_streams"] == 0, "room again")
    assert server.drain() == 0
