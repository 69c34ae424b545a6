"""From single activations to batches: frames that wait while the tail runs share its next run.

One ``Batcher`` serves all bundles of a process: its threads run the tails, its queue has one bound. Each
bundle has a ``Lane`` in it, since a batch is of one bundle; lanes take turns. All of it belongs to one event
loop; only ``Lane.infer`` runs elsewhere. There is no task and no future for a frame: a batch that is
done calls the owner of each job, in one sweep.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram

from offramp.common.codec.activation import CodecId
from offramp.common.errors import ExpiredError, OverloadError
from offramp.common.metrics import timed
from offramp.server.metrics import ServerMetrics

RETRY_MS_MIN, RETRY_MS_MAX = 20, 10_000
"""Bounds of how long a refused device is asked to wait, milliseconds."""
SMOOTHING = 0.1
"""Weight of the newest run in the running mean of a frame's cost."""


class Tail(Protocol):
    """What runs a batch; ``engine.Engine`` does. It is called from several threads at once."""

    def tail(self, symbols: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Symbols, uint8 [N, C, h, w] → class probabilities, float32 [N, K]."""


class Onward(Protocol):
    """Runs a part that has others behind it, in the place of a tail; ``forward.Forward`` does."""

    def check_room(self) -> None:
        """Raises OverloadError while too many frames wait for those behind."""

    def infer(self, symbols: NDArray[np.uint8], run_seconds: Histogram) -> Answers:
        """Run a batch, uint8 [N, …]; on a worker's thread. run_seconds: counts how long the run takes."""

    def deliver(self, batch: Sequence[Job], answers: Answers) -> None:
        """See that each job gets its answer."""


class Owner(Protocol):
    """What handed a job in: for each job exactly one of these is called, or it is gone."""

    gone: bool
    """It takes no more answers: jobs that still wait are dropped."""

    def answered(
        self, job: Job, class_index: int, probability: float, part: int = 0, fallback: bool = False
    ) -> None:
        """The answer, of the part that was asked (0) or of a later one; fallback: see ``Reply``."""

    def refused(self, job: Job, error: Exception) -> None:
        """Why the job has no answer."""


@dataclass(slots=True, eq=False)
class Job:
    """One decoded activation on its way through the tail. Times are ``time.perf_counter``'s."""

    owner: Owner
    sequence: int
    symbols: NDArray[np.uint8]
    received: float
    deadline: float = math.inf
    """Its device does not wait longer than until then."""
    trace: bytes = b""
    """W3C trace context to send along, where the frame goes on."""
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Shape:
    """How a lane batches."""

    max_batch: int
    """Activations in one run of the tail, at most."""
    max_wait: float
    """How long the first of a batch waits for more to come, seconds."""
    frame_seconds: float
    """Estimate of what one activation costs one worker, seconds; it is measured from then on."""


class Batcher:
    """Runs tails on ``workers`` threads of its own, so that the event loop never waits for one.

    limit: jobs that may wait, of all lanes together; ``Lane.offer`` refuses more.
    """

    def __init__(self, metrics: ServerMetrics, workers: int, limit: int) -> None:
        self.metrics = metrics
        self.limit = limit
        self.workers = workers
        self.waiting = 0
        self._threads = ThreadPoolExecutor(workers, "offramp-tail")
        self._running = 0
        self._done_at = -math.inf
        self._lanes: deque[Lane] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._scheduled = False

    def add(self, tail: Tail, shape: Shape, onward: Onward | None = None) -> Lane:
        """A lane for one bundle's tail, or for a part with others behind it."""
        lane = Lane(self, tail, shape, onward)
        self._lanes.append(lane)
        return lane

    def remove(self, lane: Lane) -> None:
        """Forget a lane that has no jobs."""
        self._lanes.remove(lane)

    def backlog_seconds(self) -> float:
        """How long all that waits keeps the workers busy."""
        return sum(len(lane.jobs) * lane.frame_seconds for lane in self._lanes) / self.workers

    def retry_after_ms(self) -> int:
        """When there is room again, roughly."""
        return min(max(RETRY_MS_MIN, math.ceil(self.backlog_seconds() * 1e3)), RETRY_MS_MAX)

    def close(self) -> None:
        """Let what runs end, and stop the threads."""
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown()

    def schedule(self) -> None:
        """Dispatch once all that has arrived by now has been offered."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.dispatch)

    def dispatch(self) -> None:
        """Start what can start now; wake up when more can."""
        self._scheduled = False
        now = time.perf_counter()
        # One batch above the number of workers, if it is full and so cannot grow any more: a worker that
        # ends one takes the next without waiting for the event loop.
        while self._running <= self.workers:
            lane = self._next(now, full=self._running == self.workers)
            if lane is None:
                break
            if batch := lane.take(now):
                self._start(lane, batch)
        self.metrics.queue_depth.set(self.waiting)
        if self._running < self.workers:
            self._set_timer(min((lane.due for lane in self._lanes), default=math.inf), now)

    def _next(self, now: float, *, full: bool) -> Lane | None:
        for _ in range(len(self._lanes)):
            lane = self._lanes[0]
            self._lanes.rotate(-1)
            if len(lane.jobs) >= lane.shape.max_batch or (not full and lane.due <= now):
                return lane
        return None

    def _start(self, lane: Lane, batch: list[Job]) -> None:
        self._running += 1
        metrics = self.metrics
        now = time.perf_counter()
        for job in batch:
            metrics.queue_seconds.observe(now - job.since)
        metrics.batch_size.observe(len(batch))
        run = asyncio.get_running_loop().run_in_executor(self._threads, lane.infer, batch)
        run.add_done_callback(partial(self._done, lane, batch, now))

    def _done(self, lane: Lane, batch: list[Job], start: float, run: asyncio.Future[Answers]) -> None:
        # What a frame costs shows in how batches follow each other, not in how long the tail runs alone:
        # the event loop takes its share.
        now = time.perf_counter()
        busy = self._running >= self.workers
        seconds = (now - max(start, self._done_at)) * (self.workers if busy else 1)
        self._done_at = now
        lane.frame_seconds += SMOOTHING * (seconds / len(batch) - lane.frame_seconds)
        self._running -= 1
        # First of all the workers have to have work.
        self.dispatch()
        error = run.exception()
        if error is not None:
            # Each frame of the batch reports it; the next batch is tried all the same.
            failure = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
            for job in batch:
                job.owner.refused(job, failure)
            return
        answers = run.result()
        if lane.onward is not None:
            lane.onward.deliver(batch, answers)
            return
        for job, best, probability in zip(batch, answers.best, answers.probabilities, strict=True):
            job.owner.answered(job, best, probability)

    def _set_timer(self, due: float, now: float) -> None:
        if due == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = due
        if due < math.inf:
            self._timer = asyncio.get_running_loop().call_later(due - now, self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.dispatch()


@dataclass(frozen=True, slots=True)
class Answers:
    """What the tail says of one batch: class and probability of each."""

    best: list[int]
    probabilities: list[float]
    coded: list[tuple[CodecId, bytes] | None] | None = None
    """What goes on to the next part, where it does."""
    rows: NDArray[np.float32] | None = None
    """Of a part that others follow: all probabilities, [N, K]."""
    parts: list[int] | None = None
    """The number of the part that answered each, where several run here."""


class Lane:
    """The jobs of one bundle."""

    def __init__(self, batcher: Batcher, tail: Tail, shape: Shape, onward: Onward | None = None) -> None:
        self.shape = shape
        self.onward = onward
        self.jobs: deque[Job] = deque()
        self.frame_seconds = shape.frame_seconds
        self._batcher = batcher
        self._tail = tail

    @property
    def due(self) -> float:
        """When the first job has waited for company long enough; infinity without a job."""
        return self.jobs[0].since + self.shape.max_wait if self.jobs else math.inf

    def offer(self, job: Job) -> None:
        """Take a job; ``Batcher.schedule`` starts it. Raises OverloadError where it would wait in vain."""
        batcher = self._batcher
        if self.onward is not None:
            self.onward.check_room()
        if batcher.waiting >= batcher.limit:
            raise OverloadError(
                f"{batcher.limit} frames wait for the tail already, the most that may",
                batcher.retry_after_ms(),
            )
        if job.deadline < math.inf and self.jobs:
            own = min(len(self.jobs) + 1, self.shape.max_batch) * self.frame_seconds
            expected = batcher.backlog_seconds() + own
            if job.since + expected > job.deadline:
                raise OverloadError(
                    f"{batcher.waiting} frames wait for the tail already, longer than this one can",
                    batcher.retry_after_ms(),
                )
        self.jobs.append(job)
        batcher.waiting += 1

    def take(self, now: float) -> list[Job]:
        """The next batch, without those whose device has given up; it may be empty."""
        batch: list[Job] = []
        while self.jobs and len(batch) < self.shape.max_batch:
            job = self.jobs.popleft()
            self._batcher.waiting -= 1
            if job.owner.gone:
                self._batcher.metrics.abandoned.inc()
            elif job.deadline <= now:
                waited = (now - job.received) * 1e3
                job.owner.refused(job, ExpiredError(f"waited {waited:.0f} ms, its device waits no longer"))
            else:
                batch.append(job)
        return batch

    def infer(self, batch: list[Job]) -> Answers:
        """Run the tail; on a worker's thread."""
        seconds = self._batcher.metrics.inference_seconds
        if self.onward is not None:
            return self.onward.infer(np.stack([job.symbols for job in batch]), seconds)
        with timed(seconds):
            # Not np.stack, which makes a view of each first.
            symbols = np.concatenate([job.symbols for job in batch])
            probabilities = self._tail.tail(symbols.reshape(len(batch), *batch[0].symbols.shape))
        best = probabilities.argmax(axis=1)
        chosen = probabilities[np.arange(len(batch)), best]
        return Answers(best.tolist(), chosen.tolist())
