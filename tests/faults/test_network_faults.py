"""A network that swallows, breaks and comes back, between real processes: each image has its one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.load import FAST, SERVER, frames_of, load
from tests.faults.proxy import STEPS, bad_network
from tests.processes import WAIT, Processes, until


def test_a_black_hole_in_mid_stream(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST)
    with (
        bad_network(server.port) as (peer, network),
        load(run, toy_images, "--server", f"127.0.0.1:{peer.port}", "--timeout", 0.5) as device,
    ):
        device.warmed_up()
        for _ in range(2):
            network.hole.set()
            device.more("fallback", 100)
            network.hole.clear()
            device.more("server")
        account = device.finish()
        until(lambda: server.metrics()[f"{SERVER}open_streams"] == 0, "its streams to end")
    causes = account.unanswered()
    assert account.audits["lost"] > 0
    # The first timeout tells; after it frames are turned away at once, and their bytes are not spent.
    assert 0 < causes["timeout"] < causes["unavailable"] + causes["breaker"]
    assert account.value("breaker_opens_total") >= 2
    assert any("silent for" in record["reason"] for record in account.fallbacks)
    frames = frames_of(server)
    assert account.by["server"] <= frames["answered"] <= frames["total"] <= account.sends


@pytest.mark.parametrize("spooled", [False, True], ids=["without a spool", "with a spool"])
def test_an_outage(run: Processes, toy_images: Path, tmp_path: Path, spooled: bool) -> None:
    server = run.server(*FAST)
    flags: list[Any] = ["--timeout", WAIT]
    if spooled:
        flags += ["--spool", tmp_path / "spool"]
    with (
        bad_network(server.port) as (peer, network),
        load(run, toy_images, "--server", f"127.0.0.1:{peer.port}", *flags) as device,
    ):
        device.warmed_up()
        for _ in range(2):
            network.down.set()
            device.more("fallback", 60)
            if spooled:
                until(lambda: device.value("spool_entries") > 30, "activations in the spool")
            network.down.clear()
            device.more("server")
        if spooled:
            until(lambda: device.value("spool_entries") == 0, "an empty spool")
        account = device.finish()
    assert account.unanswered()["timeout"] == 0 and account.status == 3
    missed = sorted(record["index"] for record in account.fallbacks)
    assert len(missed) >= 120
    # With a spool each of them is corrected once, and no other image is.
    corrected = sorted(record["index"] for record in account.corrections)
    assert corrected == (missed if spooled else [])
    assert account.value("spooled_total") == len(corrected)
    assert sum(account.value(f"spool_dropped_total{{cause={c}}}") for c in ("full", "refused", "busy")) == 0
    names = {record["index"]: record["image"] for record in account.records}
    assert all(each["spooled"] and each["image"] == names[each["index"]] for each in account.corrections)


def test_a_connection_that_is_reset_at_each_step(run: Processes, toy_images: Path) -> None:
    """Three times each. What is lost with a connection is sent again, or answered by the early exit."""
    server = run.server(*FAST)
    times = 3
    with (
        bad_network(server.port) as (peer, network),
        load(run, toy_images, "--server", f"127.0.0.1:{peer.port}", "--timeout", WAIT) as device,
    ):
        device.warmed_up()
        for step in STEPS:
            network.done = 0
            network.step, network.resets = step, times
            # The connection that is open now ends first.
            network.down.set()
            until(lambda: device.value("connected") == 0, "the connection to end")
            network.down.clear()
            until(lambda: network.done == times, f"resets at {step}")
            device.more("server", 5)
        account = device.finish()
        until(lambda: server.metrics()[f"{SERVER}open_streams"] == 0, "its streams to end")
    causes = account.unanswered()
    assert causes == {**dict.fromkeys(causes, 0), "unavailable": len(account.fallbacks)}
    # Frames that had been sent were sent again, no frame more than three times.
    assert account.value("frames_resent_total") > 0
    assert all(record.get("sends", 1) <= 3 for record in account.records)
    page = server.metrics()
    assert all(value == 0 for name, value in page.items() if name.startswith(f"{SERVER}rejected_total"))
    assert frames_of(server)["total"] <= account.sends
