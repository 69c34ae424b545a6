"""Batches: every job gets its own answer, a failing batch only its own error, the queue is bounded, late
jobs cost nothing."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from offramp.common.errors import ExpiredError, OverloadError
from offramp.common.part.engine import Engine
from offramp.server.batch import RETRY_MS_MAX, RETRY_MS_MIN, Batcher, Job, Lane, Shape
from offramp.server.batch import Tail as Runs
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


class Collector:
    """Owns jobs, and keeps what the batcher says of them."""

    def __init__(self) -> None:
        self.gone = False
        self.outcomes: dict[int, tuple[int, float] | Exception] = {}

    def answered(
        self, job: Job, class_index: int, probability: float, part: int = 0, fallback: bool = False
    ) -> None:
        assert not part and not fallback
        assert job.sequence not in self.outcomes
        self.outcomes[job.sequence] = class_index, probability

    def refused(self, job: Job, error: Exception) -> None:
        assert job.sequence not in self.outcomes
        self.outcomes[job.sequence] = error

    def job(self, value: int, deadline: float = math.inf) -> Job:
        return Job(self, value, activation(value), time.perf_counter(), deadline)

    async def heard_of(self, count: int) -> None:
        while len(self.outcomes) < count:
            await asyncio.sleep(0.001)


def in_loop(
    tail: Runs,
    scenario: Callable[[Batcher, Lane], Awaitable[None]],
    *,
    max_batch: int = 8,
    max_wait: float = 0.0,
    frame_seconds: float = 0.0,
    limit: int = 100,
    workers: int = 1,
) -> ServerMetrics:
    metrics = ServerMetrics()

    async def run() -> None:
        batcher = Batcher(metrics, workers, limit)
        lane = batcher.add(tail, Shape(max_batch, max_wait, frame_seconds))
        try:
            async with asyncio.timeout(WAIT):
                await scenario(batcher, lane)
        finally:
            batcher.close()

    asyncio.run(run())
    return metrics


def offer(batcher: Batcher, lane: Lane, jobs: list[Job]) -> list[OverloadError]:
    """Hand these in; what did not fit."""
    refused = []
    for job in jobs:
        try:
            lane.offer(job)
        except OverloadError as error:
            refused.append(error)
    batcher.schedule()
    return refused


async def behind_a_running_batch(batcher: Batcher, lane: Lane, tail: Tail, owner: Collector) -> None:
    """Have a batch of one (number 0) run until ``tail.go``."""
    offer(batcher, lane, [owner.job(0)])
    await asyncio.to_thread(tail.started.wait, WAIT)


def test_what_waits_shares_the_next_run() -> None:
    tail, owner = Tail(), Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        await behind_a_running_batch(batcher, lane, tail, owner)
        assert not offer(batcher, lane, [owner.job(value) for value in range(1, 11)])
        await asyncio.sleep(0)
        tail.go.set()
        await owner.heard_of(11)
        assert owner.outcomes == {value: (0, value) for value in range(11)}

    metrics = in_loop(tail, scenario, max_batch=4)
    assert tail.batches == [1, 4, 4, 2]
    assert metrics.registry.get_sample_value("offramp_server_batch_size_count") == 4
    assert metrics.registry.get_sample_value("offramp_server_queue_seconds_count") == 11
    assert metrics.registry.get_sample_value("offramp_server_inference_seconds_count") == 4
    assert metrics.registry.get_sample_value("offramp_server_queue_depth") == 0


def test_the_first_waits_for_company() -> None:
    """With a wait that no test outlives, only a full batch runs."""
    tail, owner = Tail(), Collector()
    tail.go.set()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        for value in (1, 2):
            offer(batcher, lane, [owner.job(value)])
            await asyncio.sleep(0.05)
        assert not owner.outcomes
        offer(batcher, lane, [owner.job(3)])
        await owner.heard_of(3)

    in_loop(tail, scenario, max_batch=3, max_wait=WAIT * 10)
    assert tail.batches == [3]


def test_the_first_waits_no_longer_than_it_may() -> None:
    tail, owner = Tail(), Collector()
    tail.go.set()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        start = time.perf_counter()
        offer(batcher, lane, [owner.job(1)])
        await owner.heard_of(1)
        assert time.perf_counter() - start >= 0.02

    in_loop(tail, scenario, max_wait=0.02)
    assert tail.batches == [1]


def test_workers_run_at_once() -> None:
    tail, owner = Tail(), Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        for value in range(3):
            offer(batcher, lane, [owner.job(value)])
            while len(tail.batches) <= value:
                await asyncio.sleep(0.001)
        tail.go.set()
        await owner.heard_of(3)

    in_loop(tail, scenario, workers=3)
    assert tail.batches == [1, 1, 1]


def test_bundles_take_turns() -> None:
    first, second, owner = Tail(), Tail(), Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        other = batcher.add(second, Shape(1, 0.0, 0.0))
        await behind_a_running_batch(batcher, lane, first, owner)
        offer(batcher, lane, [owner.job(value) for value in range(1, 9)])
        offer(batcher, other, [owner.job(value) for value in range(11, 15)])
        first.go.set()
        second.go.set()
        await owner.heard_of(13)
        # The lane that came second did not wait for all of the first.
        done = list(owner.outcomes)
        assert done.index(11) < done.index(8)

    in_loop(first, scenario, max_batch=1)


def test_a_failing_batch_fails_its_own_frames_only() -> None:
    tail, owner = Tail(), Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        await behind_a_running_batch(batcher, lane, tail, owner)
        offer(batcher, lane, [owner.job(value) for value in (1, 99, 3, 4)])
        tail.go.set()
        await owner.heard_of(5)
        assert [isinstance(owner.outcomes[n], ValueError) for n in (1, 99, 3, 4)] == [
            True,
            True,
            False,
            False,
        ]

    in_loop(tail, scenario, max_batch=2)


def test_the_queue_refuses_what_does_not_fit() -> None:
    tail, owner = Tail(), Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        await behind_a_running_batch(batcher, lane, tail, owner)
        refused = offer(batcher, lane, [owner.job(value) for value in range(1, 6)])
        assert [str(e) for e in refused] == ["3 frames wait for the tail already, the most that may"] * 2
        assert all(RETRY_MS_MIN <= e.retry_after_ms <= RETRY_MS_MAX for e in refused)
        tail.go.set()
        await owner.heard_of(4)
        offer(batcher, lane, [owner.job(7)])
        await owner.heard_of(5)

    in_loop(tail, scenario, limit=3)


def test_what_would_be_late_is_refused_at_once() -> None:
    """A frame costs 10 s, so the one behind another waits longer than 5 s."""
    tail, owner = Tail(), Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        await behind_a_running_batch(batcher, lane, tail, owner)
        soon = time.perf_counter() + 5
        refused = offer(batcher, lane, [owner.job(1, soon), owner.job(2, soon), owner.job(3)])
        assert [e.retry_after_ms for e in refused] == [RETRY_MS_MAX]
        assert str(refused[0]) == "1 frames wait for the tail already, longer than this one can"
        tail.go.set()
        await owner.heard_of(3)
        assert owner.outcomes.keys() == {0, 1, 3}

    in_loop(tail, scenario, frame_seconds=10)


def test_what_is_late_does_not_cost_the_tail() -> None:
    tail, owner = Tail(), Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        await behind_a_running_batch(batcher, lane, tail, owner)
        jobs = [
            owner.job(1, time.perf_counter() + 0.05),
            owner.job(2, time.perf_counter() + WAIT),
            owner.job(3),
        ]
        assert not offer(batcher, lane, jobs)
        await asyncio.sleep(0.1)
        tail.go.set()
        await owner.heard_of(4)
        assert isinstance(owner.outcomes[1], ExpiredError)
        assert {n: owner.outcomes[n] for n in (2, 3)} == {2: (0, 2), 3: (0, 3)}

    in_loop(tail, scenario)
    assert tail.batches == [1, 2]


def test_jobs_of_a_stream_that_is_gone_do_not_cost_the_tail() -> None:
    tail, owner, left = Tail(), Collector(), Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        await behind_a_running_batch(batcher, lane, tail, owner)
        offer(batcher, lane, [left.job(1), owner.job(2), left.job(3)])
        left.gone = True
        tail.go.set()
        await owner.heard_of(2)

    metrics = in_loop(tail, scenario)
    assert tail.batches == [1, 1] and not left.outcomes
    assert metrics.registry.get_sample_value("offramp_server_frames_total", {"result": "abandoned"}) == 2


def test_answers_do_not_depend_on_the_batch(toy_engine: Engine) -> None:
    symbols, _ = toy_engine.head(toy.images(100))
    alone = np.concatenate([toy_engine.tail(each[None]) for each in symbols])
    owner = Collector()

    async def scenario(batcher: Batcher, lane: Lane) -> None:
        offer(batcher, lane, [Job(owner, i, each, 0.0) for i, each in enumerate(symbols)])
        await owner.heard_of(100)

    in_loop(toy_engine, scenario, max_batch=16)
    found = [owner.outcomes[i] for i in range(100)]
    assert all(isinstance(each, tuple) for each in found)
    best, probabilities = zip(*(each for each in found if isinstance(each, tuple)), strict=True)
    np.testing.assert_array_equal(best, alone.argmax(axis=1))
    np.testing.assert_allclose(probabilities, alone.max(axis=1), atol=1e-6)
