"""Audits beside streams that end often: each has its one outcome. For other faults see ``load.py``."""

from __future__ import annotations

from pathlib import Path

from tests.faults.load import FAST, load
from tests.processes import Processes


def test_a_server_that_drains_and_is_overloaded(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST, "--max-stream-age", 0.5, "--queue", 1)
    with load(run, toy_images, "--server", server.address, "--threshold", 0.6) as device:
        device.warmed_up()
        device.more("server", 60)
        account = device.finish()
    assert account.audits["agrees"] + account.audits["differs"] > 0
    assert account.value("connects_total") > 1
