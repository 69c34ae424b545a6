"""From single activations to batches: frames that wait while the tail runs share its next run."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offramp.common.engine import Engine
from offramp.common.errors import OverloadError
from offramp.common.telemetry import timed
from offramp.server.metrics import ServerMetrics


@dataclass(slots=True)
class _Waiting:
    symbols: NDArray[np.uint8]
    answer: asyncio.Future[NDArray[np.float32]]
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Runs the tail on one thread of its own, so that the event loop never waits for it.

    It belongs to one event loop. The queue is bounded; ``run`` refuses what does not fit.
    """

    def __init__(self, engine: Engine, metrics: ServerMetrics, max_batch: int, queue: int) -> None:
        self._engine = engine
        self._metrics = metrics
        self._max_batch = max_batch
        self._limit = queue
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "offramp-tail")
        self._running: asyncio.Task[None] | None = None

    async def run(self, symbols: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities, float32 [K], of one activation, uint8 [C, H, W].

        Raises OverloadError where the queue is full.
        """
        if len(self._waiting) >= self._limit:
            raise OverloadError(f"{self._limit} frames wait for the tail already, the most that may")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(symbols, loop.create_future())
        self._waiting.append(waiting)
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._drain())
        return await waiting.answer

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            now = time.perf_counter()
            for waiting in batch:
                self._metrics.queue_seconds.observe(now - waiting.since)
            self._metrics.batch_size.observe(len(batch))
            try:
                answers = await loop.run_in_executor(self._thread, self._infer, batch)
            except Exception as error:
                # Each frame of the batch reports it; the next batch is tried all the same.
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)

    def _infer(self, batch: list[_Waiting]) -> NDArray[np.float32]:
        with timed(self._metrics.inference_seconds):
            return self._engine.tail(np.stack([waiting.symbols for waiting in batch]))

    def close(self) -> None:
        """Let the current run end and stop the thread."""
        self._thread.shutdown()
