"""What a container or a shell limits: processes, open files. The server says so, and ends or serves."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.cpus import require_threads
from offramp.common.errors import ConfigError
from offramp.server import batch, plan
from offramp.server.descriptors import RESERVE, SPARE_CONNECTIONS, fit
from tests.processes import WAIT, Processes, until
from tests.server.client import Ended, Stream, channel_to

Launcher = Callable[[int], list[str]]


@pytest.fixture
def limited() -> Iterator[Launcher]:
    """Starts Python where it may have so many threads, in a control group of this machine."""
    for top in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        folder = top / f"offramp-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / "pids.max").write_text("max")
        except OSError:
            if folder.exists():
                folder.rmdir()
            continue

        def python(limit: int, folder: Path = folder) -> list[str]:
            (folder / "pids.max").write_text(str(limit))
            join = 'echo 0 > "$1"; shift; exec "$@"'
            return ["sh", "-c", join, "sh", str(folder / "cgroup.procs"), sys.executable]

        yield python
        folder.rmdir()
        return
    pytest.skip("control groups cannot be made here")


@pytest.mark.parametrize("limit", [1, 5, 20, 40, 70])
def test_too_few_threads_end_the_server_with_a_status(
    limit: int, limited: Launcher, toy_bundle: Bundle
) -> None:
    command = [*limited(limit), "-m", "offramp.server.app", "--bundle", str(toy_bundle.path)]
    done = subprocess.run(
        [*command, "--listen", "127.0.0.1:0", "--metrics-port", "0", "--threads", "64"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "threads can be started here" in done.stderr and "pids_limit" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_threads_end_a_device_with_a_status(
    limited: Launcher, toy_bundle: Bundle, toy_images: Path
) -> None:
    command = [*limited(10), "-m", "offramp.device.app", "--bundle", str(toy_bundle.path)]
    done = subprocess.run(
        [*command, "--threads", "64", str(toy_images)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "threads can be started here" in done.stderr


def few_threads(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    import threading

    start, running = threading.Thread.start, [room]

    def refuse(self: threading.Thread) -> None:
        if running[0] == 0:
            raise RuntimeError("can't start new thread")
        running[0] -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)


class Tail:
    """Any tail."""

    def tail(self, symbols: object) -> object:
        return symbols


@pytest.mark.parametrize("room", [0, 1, 3])
def test_runs_that_wait_for_others_end_where_those_cannot_start(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_threads(monkeypatch, room)
    with pytest.raises(ConfigError, match="4 runs of the tail at once need a thread each"):
        plan.batch_curve(Tail(), (1, 1, 1), 4)  # type: ignore[arg-type]


def test_the_other_layout_serves_where_one_gets_no_threads(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = plan.batch_curve

    def refused(
        tail: batch.Tail, shape: tuple[int, int, int], workers: int, *more: Any, **others: Any
    ) -> plan.Curve:
        if workers > 1:
            raise ConfigError("no threads")
        return real(tail, shape, workers, *more, **others)

    monkeypatch.setattr(plan, "batch_curve", refused)
    assert plan.make_plan(toy_bundle, 2)[0].workers == 1
    with pytest.raises(ConfigError, match="no threads"):
        plan.make_plan(toy_bundle, 2, workers=2)


def test_trying_for_threads_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = len(os.listdir("/proc/self/task"))
    require_threads(40)
    # Other tests' threads may end meanwhile.
    assert len(os.listdir("/proc/self/task")) <= tasks
    few_threads(monkeypatch, 3)
    with pytest.raises(ConfigError, match=r"^3 threads can be started here, 5 are needed"):
        require_threads(5)
    assert len(os.listdir("/proc/self/task")) <= tasks


# --- open files ---


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
