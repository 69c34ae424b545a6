"""Audits under faults: each image has its one answer, and each audit its one outcome."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.faults.load import FAST, Account, frames_of, load
from tests.faults.proxy import bad_network
from tests.processes import Processes

AUDITED = ("--threshold", 0.6, "--audit", 1)
"""About half of the toy's images exit early; each of them is audited."""


def check(account: Account) -> dict[str, int]:
    """What holds of audits in every fault; how many there were of each kind."""
    audits: dict[str, int] = account.summary["audits"]
    assert audits == {
        result: int(account.value(f"audits_total{{result={result}}}"))
        for result in ("agrees", "differs", "lost")
    }
    assert sum(audits.values()) == account.by["early_exit"] > 0
    assert audits["agrees"] + audits["differs"] > 0
    # They are no image's bytes, and no image waited for them.
    assert all(not record["payload_bytes"] for record in account.records if record["source"] == "early_exit")
    return audits


def test_a_server_that_is_killed_and_replaced(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST)
    with load(run, toy_images, "--server", server.address, *AUDITED) as device:
        device.warmed_up()
        for _ in range(2):
            server.send(signal.SIGKILL)
            device.more("fallback")
            server = run.server(*FAST, listen=server.address)
            device.more("server")
        account = device.finish()
    assert check(account)["lost"] > 0
    assert frames_of(server)["refused"] == 0


def test_a_network_that_swallows_and_breaks(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST)
    with (
        bad_network(server.port) as (peer, network),
        load(run, toy_images, "--server", f"127.0.0.1:{peer.port}", "--timeout", 0.5, *AUDITED) as device,
    ):
        device.warmed_up()
        for event in (network.hole, network.down):
            event.set()
            device.more("fallback", 60)
            event.clear()
            device.more("server")
        account = device.finish()
    assert check(account)["lost"] > 0


def test_a_server_that_drains_and_one_that_is_overloaded(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST, "--max-stream-age", 0.5, "--queue", 1)
    with load(run, toy_images, "--server", server.address, *AUDITED) as device:
        device.warmed_up()
        device.more("server", 60)
        account = device.finish()
    check(account)
    assert account.value("connects_total") > 1


def test_a_spool_never_keeps_audits(run: Processes, toy_images: Path, tmp_path: Path) -> None:
    server = run.server(*FAST)
    with (
        bad_network(server.port) as (peer, network),
        load(
            run,
            toy_images,
            *("--server", f"127.0.0.1:{peer.port}", *AUDITED, "--spool", tmp_path / "spool"),
        ) as device,
    ):
        device.warmed_up()
        network.down.set()
        device.more("fallback", 40)
        network.down.clear()
        device.more("server")
        account = device.finish()
    check(account)
    assert account.value("spooled_total") <= len(account.fallbacks)
    assert {record["index"] for record in account.corrections} <= {
        record["index"] for record in account.fallbacks
    }
