"""Batches: every activation gets its own answer, a failing batch only its own error, the queue is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.bundle import Bundle
from offramp.common.engine import Engine
from offramp.common.errors import OverloadError
from offramp.server.batch import Batcher
from offramp.server.metrics import ServerMetrics
from tests import toy
from tests.processes import WAIT


class Tail:
    """Stands in for the engine: answers with the activation's first symbol, when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Event()
        self.batches: list[int] = []

    def tail(self, symbols: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(len(symbols))
        self.started.set()
        assert self.go.wait(WAIT)
        if (symbols == 99).any():
            raise ValueError("99")
        return symbols.reshape(len(symbols), -1)[:, :1].astype(np.float32)


def activation(value: int) -> NDArray[np.uint8]:
    return np.full(toy.SHAPE, value, np.uint8)


def with_batcher(
    toy_bundle: Bundle,
    engine: object,
    max_batch: int,
    queue: int,
    scenario: Callable[[Batcher], Awaitable[None]],
) -> ServerMetrics:
    metrics = ServerMetrics(toy_bundle)

    async def run() -> None:
        batcher = Batcher(cast(Engine, engine), metrics, max_batch, queue)
        try:
            async with asyncio.timeout(WAIT):
                await scenario(batcher)
        finally:
            batcher.close()

    asyncio.run(run())
    return metrics


async def behind_a_running_batch(
    batcher: Batcher, tail: Tail, values: list[int]
) -> list[NDArray[np.float32] | BaseException]:
    """Hand these in while a batch of one is being run, then let all run."""
    first = asyncio.create_task(batcher.run(activation(0)))
    await asyncio.to_thread(tail.started.wait, WAIT)
    tasks = [asyncio.create_task(batcher.run(activation(value))) for value in values]
    await asyncio.sleep(0)
    tail.go.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_what_waits_shares_the_next_run(toy_bundle: Bundle) -> None:
    tail = Tail()

    async def scenario(batcher: Batcher) -> None:
        answers = await behind_a_running_batch(batcher, tail, list(range(1, 11)))
        assert [float(np.ravel(cast(NDArray[np.float32], a))[0]) for a in answers] == list(range(1, 11))

    metrics = with_batcher(toy_bundle, tail, 4, 100, scenario)
    assert tail.batches == [1, 4, 4, 2]
    assert metrics.registry.get_sample_value("offramp_server_batch_size_count") == 4
    assert metrics.registry.get_sample_value("offramp_server_queue_seconds_count") == 11
    assert metrics.registry.get_sample_value("offramp_server_inference_seconds_count") == 4


def test_a_failing_batch_fails_its_own_frames_only(toy_bundle: Bundle) -> None:
    tail = Tail()

    async def scenario(batcher: Batcher) -> None:
        answers = await behind_a_running_batch(batcher, tail, [1, 99, 3, 4])
        assert [isinstance(answer, ValueError) for answer in answers] == [True, True, False, False]
        assert float((await batcher.run(activation(7)))[0]) == 7

    with_batcher(toy_bundle, tail, 2, 100, scenario)


def test_the_queue_refuses_what_does_not_fit(toy_bundle: Bundle) -> None:
    tail = Tail()

    async def scenario(batcher: Batcher) -> None:
        answers = await behind_a_running_batch(batcher, tail, [1, 2, 3, 4, 5])
        assert [isinstance(answer, OverloadError) for answer in answers] == [False] * 3 + [True] * 2
        assert str(answers[-1]) == "3 frames wait for the tail already, the most that may"
        assert float((await batcher.run(activation(7)))[0]) == 7

    with_batcher(toy_bundle, tail, 8, 3, scenario)


def test_a_caller_that_gives_up_takes_no_other_with_it(toy_bundle: Bundle) -> None:
    tail = Tail()

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.run(activation(1)))
        await asyncio.to_thread(tail.started.wait, WAIT)
        second, third = (asyncio.create_task(batcher.run(activation(value))) for value in (2, 3))
        await asyncio.sleep(0)
        second.cancel()
        tail.go.set()
        assert float((await first)[0]) == 1 and float((await third)[0]) == 3
        with pytest.raises(asyncio.CancelledError):
            await second

    with_batcher(toy_bundle, tail, 8, 8, scenario)


def test_answers_do_not_depend_on_the_batch(toy_bundle: Bundle, toy_engine: Engine) -> None:
    symbols, _ = toy_engine.head(toy.images(100))
    alone = np.concatenate([toy_engine.tail(each[None]) for each in symbols])

    async def scenario(batcher: Batcher) -> None:
        answers = await asyncio.gather(*(batcher.run(each) for each in symbols))
        np.testing.assert_allclose(answers, alone, atol=1e-6)
        np.testing.assert_array_equal(np.argmax(answers, axis=1), alone.argmax(axis=1))

    with_batcher(toy_bundle, toy_engine, 16, 100, scenario)
