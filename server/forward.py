"""The next hop: what a part's exit is unsure of goes on to the server that runs the part behind it.

    frame → decode → batch → part ── sure ────────────────────────────────▶ reply
                               └──── unsure → encode → link ── answer ────▶ reply
                                                         └──── no answer ─▶ reply of this exit, a fallback

The link is a device's (``offramp.link``): one stream for all devices, with its window, breaker, failover and
deadlines. What this module adds:
- A frame's time upstream is a share of what its device still waits, so that there is time for a fallback.
- A full window refuses frames before they are decoded to the devices, as a full queue does.
- Outcomes come on the link's threads and are settled on the event loop, many at a time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram

from offramp.common.codec.activation import CodecId
from offramp.common.errors import OverloadError
from offramp.common.metrics import STAGE_BUCKETS, timed
from offramp.common.part.chain import fold
from offramp.common.part.engine import Engine
from offramp.link.link import Link
from offramp.link.metrics import LinkMetrics
from offramp.link.outcome import Answer, Outcome
from offramp.server.batch import RETRY_MS_MAX, RETRY_MS_MIN, SMOOTHING, Answers, Job

SHARE = 0.8
"""Of the time that a frame's device still waits, what the servers behind may take. The rest is for the way
back of this exit's answer, where they do not answer."""


class ForwardMetrics:
    """What a server with an upstream counts beside the others."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.link = LinkMetrics(registry, "offramp_server_upstream")
        answers = Counter(
            "offramp_server_answers",
            "Frames answered by a part with others behind it, by who answered: its exit, those behind it, or "
            "its exit because they did not.",
            ["by"],
            registry=registry,
        )
        self.by_exit, self.by_upstream, self.by_fallback = map(
            answers.labels, ("exit", "upstream", "fallback")
        )
        self.encode_seconds = Histogram(
            "offramp_server_encode_seconds",
            "Time to encode what goes on of one batch.",
            buckets=STAGE_BUCKETS,
            registry=registry,
        )


class Middle:
    """A part with an exit, and others behind it. Its calls come from several threads at once."""

    def __init__(self, engine: Engine, number: int, threshold: float | None = None) -> None:
        manifest = engine.manifest
        exit_ = manifest.parts[number - 1].exit
        assert exit_ is not None
        self.number = number
        self.threshold = exit_.threshold if threshold is None else threshold
        self.folds = manifest.answers == "all"
        self._engine = engine
        self._codec = engine.bundle.codec_of(number - 1)

    def tail(self, symbols: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """See ``batch.Tail``; for measuring."""
        return self.run(symbols)[1]

    def run(self, symbols: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Symbols, uint8 [N, …] → those of the next crossing, uint8 [N, …]; probabilities, float32 [N, K]."""
        following, probabilities = self._engine.part(self.number, symbols)
        assert following is not None and probabilities is not None
        return following, probabilities

    def encode(
        self, symbols: NDArray[np.uint8], confidence: NDArray[np.float32]
    ) -> list[tuple[CodecId, bytes] | None]:
        """What goes on of N inputs; None where the exit is sure enough. confidence: float32 [N]."""
        return [
            None if sure > self.threshold else self._codec.encode(each)
            for each, sure in zip(symbols, confidence.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Own:
    """What this part's exit says of one input."""

    best: int
    probability: float
    probabilities: NDArray[np.float32] | None
    """Of all classes, float32 [K], where they are folded into the answer that comes back."""


class Forward:
    """Sends on what a part is unsure of. All of it belongs to one event loop, but ``infer``.

    most: frames without an outcome, at most; the link's window.
    """

    def __init__(self, middle: Middle, link: Link, most: int, metrics: ForwardMetrics) -> None:
        self.outstanding = 0
        self._middle = middle
        self._link = link
        self._most = most
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._outcomes: deque[tuple[Job, Own, float, Outcome]] = deque()
        self._woken = False
        self._seconds = 0.0
        """A running mean of how long an outcome takes."""

    # --- what the lane calls ---

    def check_room(self) -> None:
        """Raises OverloadError while the window is full."""
        if self.outstanding >= self._most:
            wait = min(max(RETRY_MS_MIN, math.ceil(self._seconds * 1e3)), RETRY_MS_MAX)
            raise OverloadError(
                f"{self._most} frames wait for the upstream server already, the most that may", wait
            )

    def infer(self, symbols: NDArray[np.uint8], run_seconds: Histogram) -> Answers:
        """Run the part and encode what goes on; on a worker's thread."""
        with timed(run_seconds):
            following, probabilities = self._middle.run(symbols)
        confidence = probabilities.max(axis=1)
        with timed(self._metrics.encode_seconds):
            coded = self._middle.encode(following, confidence)
        return Answers(probabilities.argmax(axis=1).tolist(), confidence.tolist(), coded, probabilities)

    def deliver(self, batch: Sequence[Job], answers: Answers) -> None:
        """Answer what the exit is sure of, and send the rest on."""
        rows = answers.rows
        assert answers.coded is not None and rows is not None
        for place, (job, coded) in enumerate(zip(batch, answers.coded, strict=True)):
            best, probability = answers.best[place], answers.probabilities[place]
            if coded is None or job.owner.gone:
                self._answer(job, best, probability, self._metrics.by_exit)
            else:
                # A row of its own: the batch's would be kept as long as any of them.
                own = rows[place].copy() if self._middle.folds else None
                self._send(job, Own(best, probability, own), coded)

    async def close(self) -> None:
        """End the link, once no device waits for an answer."""
        await asyncio.to_thread(self._link.close, wait=False)

    # --- inside ---

    def _send(self, job: Job, own: Own, coded: tuple[CodecId, bytes]) -> None:
        self.outstanding += 1
        start = time.monotonic()
        left = (job.deadline - time.perf_counter()) * SHARE
        due = min(start + self._link.timeout, start + left)
        done = partial(self._done, job, own, start)
        self._link.offload(*coded, done, deadline=due, trace=job.trace)

    def _done(self, job: Job, own: Own, start: float, outcome: Outcome) -> None:
        """On any thread."""
        self._outcomes.append((job, own, start, outcome))
        # Set before the loop looks, cleared before it takes: at worst it is woken for nothing.
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._woken = False
        now = time.monotonic()
        while self._outcomes:
            job, own, start, outcome = self._outcomes.popleft()
            self.outstanding -= 1
            self._seconds += SMOOTHING * (now - start - self._seconds)
            if not isinstance(outcome, Answer):
                self._answer(job, own.best, own.probability, self._metrics.by_fallback, fallback=True)
                continue
            said = outcome.class_index, outcome.probability
            if own.probabilities is not None:
                said = fold(own.probabilities, *said)
            counted = self._metrics.by_upstream
            self._answer(job, *said, counted, part=outcome.part, fallback=outcome.fallback)

    def _answer(
        self,
        job: Job,
        best: int,
        probability: float,
        counter: Counter,
        *,
        part: int = 0,
        fallback: bool = False,
    ) -> None:
        if not job.owner.gone:
            counter.inc()
        job.owner.answered(job, best, probability, part, fallback)
