"""Whatever a step meets, it is logged and counted, and the following goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from offramp.common.errors import BundleError
from offramp.server.follower import Follower
from offramp.server.metrics import ServerMetrics
from tests.processes import WAIT


def failed(metrics: ServerMetrics, what: str) -> float | None:
    return metrics.registry.get_sample_value(
        "offramp_server_reloads_total", {"what": what, "result": "failed"}
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: MemoryError("10 TB"), "bundle not read again, what serves goes on: MemoryError: 10 TB"),
        (lambda: PermissionError(13, "Permission denied"), "PermissionError: "),
        (lambda: BundleError("it is damaged"), "what serves goes on: it is damaged"),
        (lambda: ValueError("a\nb"), r"ValueError: a\nb"),
    ],
)
def test_a_step_that_fails_stops_neither_itself_nor_others(
    error: Callable[[], Exception], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = ServerMetrics()
    calls = {"bundle": 0, "tokens": 0}

    async def run() -> None:
        done = asyncio.Event()

        async def bundles(again: bool) -> None:
            calls["bundle"] += 1
            raise error()

        async def tokens(again: bool) -> None:
            calls["tokens"] += 1
            if calls["tokens"] == 3:
                done.set()

        follower = Follower(0.001, asyncio.Event(), {"bundle": bundles, "tokens": tokens}, metrics)
        task = asyncio.create_task(follower.run())
        await asyncio.wait_for(done.wait(), WAIT)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.ERROR, "offramp.cloud-server"):
        asyncio.run(run())
    assert calls["bundle"] == calls["tokens"] == 3
    assert failed(metrics, "bundle") == 3 and failed(metrics, "tokens") == 0
    (record,) = caplog.records
    assert message in record.getMessage()


def test_a_signal_asks_for_what_failed_as_well() -> None:
    async def run() -> list[bool]:
        event, seen, done = asyncio.Event(), list[bool](), asyncio.Event()

        async def step(again: bool) -> None:
            seen.append(again)
            done.set()

        task = asyncio.create_task(Follower(3600, event, {"bundle": step}, ServerMetrics()).run())
        event.set()
        await asyncio.wait_for(done.wait(), WAIT)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return seen

    assert asyncio.run(run()) == [True]
