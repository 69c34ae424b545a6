"""Programs that a benchmark starts: where they listen, and that they end."""

import os
from pathlib import Path

import pytest

from offramp.bench.metrics import fetch_metrics
from offramp.bench.processes import pinned, running, running_server
from offramp.common.bundle.load import Bundle
from offramp.common.errors import UnavailableError


def test_a_server_says_where_it_listens_and_ends_well(toy_bundle: Bundle) -> None:
    with running_server(toy_bundle.path, "--metrics-port", 0) as server:
        host, _, port = server.address.rpartition(":")
        assert host == "127.0.0.1" and int(port) > 0
        assert fetch_metrics(server.metrics)["offramp_server_open_streams"] == 0
        assert server.resident_bytes() > 1 << 20 and server.cpu_seconds() > 0
    assert server.process.returncode == 0


def test_one_that_does_not_start_is_named_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(UnavailableError, match=r"offramp.server.app did not start: .*missing"),
        running_server(tmp_path / "missing"),
    ):
        pass


def test_what_is_started_keeps_to_its_cores() -> None:
    one = {min(os.sched_getaffinity(0))}
    before = os.sched_getaffinity(0)
    code = "import os, sys, time; print('listening on', *os.sched_getaffinity(0), file=sys.stderr)\n"
    code += "time.sleep(60)"
    with pinned(one), running("nothing", python=("-c", code)) as program:
        assert program.address == str(*one)
    assert os.sched_getaffinity(0) == before
