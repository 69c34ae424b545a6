"""The device's whole flow: image → head → early exit → encode → link → result.

>>> from offramp.common.bundle import load_bundle
>>> from offramp.device import Device
>>> with Device(load_bundle("models/digits-mobilenetv2-exit12"), server="127.0.0.1:50051") as device:
...     print(device.infer(image).label)  # uint8 [3, H, W]
...     for result in device.map(images):  # in order, several under way
...         print(result.label, result.source)

>>> async with Device(bundle, server="127.0.0.1:50051") as device:
...     print((await device.infer_async(image)).label)
...     async for result in device.map_async(images):
...         print(result.label, result.source)
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.common.both_exits import both_exits
from offramp.common.bundle import Bundle
from offramp.common.config import DeviceSettings, split_address
from offramp.common.engine import Engine
from offramp.common.errors import ConfigError, ExitCode, OfframpError
from offramp.common.frame import ENVELOPE_BYTES
from offramp.common.tracing import Tracing
from offramp.device.adapt import Steering, bounds_of
from offramp.device.head import run_head
from offramp.device.link import FRAME_OVERHEAD, Answer, Link, Outcome, Refusal
from offramp.device.metrics import DeviceMetrics
from offramp.device.security import Security
from offramp.device.spool import Entry, Spool
from offramp.device.wire_bytes import WireBytes

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger("offramp.edge-device")

REPLY_BYTES = 16
"""About what a reply takes, without its envelope."""
EXPECTED_BYTES = FRAME_OVERHEAD + REPLY_BYTES + 2 * ENVELOPE_BYTES
"""What one offloaded image is taken to cost beside its payload, until its answer tells."""

Pixels = NDArray[np.uint8]
Source = Literal["early_exit", "server", "fallback"]


@dataclass(frozen=True, slots=True)
class Result:
    """The one answer to one image. Byte figures are 0 for an image that was not sent."""

    label: str
    class_index: int
    confidence: float
    """Probability of the class, by whoever answered: one exit, or both (``both_exits.py``)."""
    source: Source
    latency_seconds: float
    """From handing the image in to its answer."""
    payload_bytes: int
    """The coded activation, each time that it was sent."""
    message_bytes: float
    """Share of the serialized protobuf messages, both directions."""
    wire_bytes: float
    """The same with gRPC prefix and HTTP/2 DATA header."""
    reason: str | None
    """Why a ``fallback`` is one."""
    sends: int = 0
    """How often the activation was sent: more than once where a stream broke."""
    threshold: float | None = None
    """T_c that decided, where it is steered."""


@dataclass(frozen=True, slots=True)
class Correction:
    """The server's answer to an image that was a ``fallback`` already: too late, or out of the spool."""

    index: int
    """The image's place in the input, as it was handed in."""
    name: str
    label: str
    class_index: int
    confidence: float
    spooled: bool
    """Whether it comes out of the spool; it may then be of an earlier run."""


class Device:
    """One bundle's head, its early exit and the link to a server.

    server: HOST:PORT, or several in the order in which they are tried. threshold: T_c, by default the
    bundle's. timeout: seconds an image waits for the server. window: unanswered frames at most. insecure:
    allow plaintext beyond this machine. security: TLS and token. coalesce: seconds a frame may wait for
    others to share a message; coalesce_frames: how many are enough. breaker: failures in a row after which
    frames are turned away. byte_budget (bytes a second) and target_latency (seconds) steer T_c between
    threshold_floor and threshold_ceiling (see ``adapt.py``). on_correction: called, from another thread,
    with what the server answers too late. spool: a file for unanswered activations, of at most spool_bytes.
    tracing: starts a span for each image, below the caller's.

    ``submit`` and ``infer`` may be called from several threads. Raises BundleError for a head that is not
    what the manifest says, ConfigError for a wrong address, certificate, token or range.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        server: str | Sequence[str],
        threshold: float | None = None,
        timeout: float = 2.0,
        window: int = 16,
        threads: int = 1,
        insecure: bool = False,
        security: Security | None = None,
        coalesce: float = 0.0,
        coalesce_frames: int = 64,
        breaker: int = 5,
        byte_budget: float | None = None,
        target_latency: float | None = None,
        accuracy_floor: float | None = None,
        threshold_floor: float | None = None,
        threshold_ceiling: float | None = None,
        on_correction: Callable[[Correction], None] | None = None,
        spool: Path | str | None = None,
        spool_bytes: int = 64 << 20,
        tracing: Tracing | None = None,
    ) -> None:
        servers = [server] if isinstance(server, str) else list(server)
        if not servers:
            raise ConfigError("--server: expected at least one HOST:PORT")
        security = security or Security()
        for address in servers:
            security.check(split_address("--server", address)[0], insecure)
        manifest = bundle.manifest
        self.bundle = bundle
        self._both = manifest.sent_answer == "both"
        self.metrics = DeviceMetrics(bundle)
        self._threshold = manifest.threshold if threshold is None else threshold
        self._steering: Steering | None = None
        if byte_budget is not None or target_latency is not None:
            bounds = bounds_of(
                manifest.figures.thresholds,
                manifest.threshold,
                accuracy_floor=accuracy_floor,
                floor=threshold_floor,
                ceiling=threshold_ceiling,
            )
            self._steering = Steering(
                bounds,
                self._threshold,
                time.monotonic(),
                rate=byte_budget,
                target=target_latency,
                frame_bytes=manifest.figures.payload_bytes_mean + EXPECTED_BYTES,
                wait_seconds=timeout,
            )
            self._threshold = self._steering.threshold(time.monotonic())
            log.info("T_c is steered between %g and %g", bounds.floor, bounds.ceiling)
        self.metrics.threshold.set(self._threshold)
        self.metrics.watch_threshold(lambda: self._threshold)
        self._charged = 0.0
        self._control_bytes = 0.0
        self._lock = threading.Lock()
        """For the codec and the steering, which are for one thread at a time."""
        self._codec = bundle.codec
        self._engine = Engine(bundle, threads)
        self._engine.load_head()
        self._indices = count()
        self._on_correction = on_correction
        self._tracing = tracing
        self._window = window
        self._thread: ThreadPoolExecutor | None = None
        self._link = Link(
            servers,
            bundle.digest,
            len(manifest.classes),
            self._codec.raw_bytes,
            self.metrics,
            timeout=timeout,
            window=window,
            coalesce=coalesce,
            coalesce_frames=coalesce_frames,
            failures=breaker,
            security=security,
        )
        self._spool: Spool | None = None
        if spool is not None:
            self._spool = Spool(spool, spool_bytes, bundle.digest, self._link, self.metrics, self._unspooled)

    @classmethod
    def from_settings(
        cls,
        bundle: Bundle,
        settings: DeviceSettings,
        on_correction: Callable[[Correction], None] | None = None,
        tracing: Tracing | None = None,
    ) -> Device:
        """What the command line describes. Raises as ``Device`` does."""
        return cls(
            bundle,
            server=settings.server,
            threshold=settings.threshold,
            timeout=settings.timeout,
            window=settings.window,
            threads=settings.threads,
            insecure=settings.insecure,
            security=Security(
                tls=settings.tls,
                ca=settings.tls_ca,
                certificate=settings.tls_cert,
                key=settings.tls_key,
                server_name=settings.tls_server_name,
                token_file=settings.token_file,
            ),
            coalesce=settings.coalesce / 1000,
            coalesce_frames=settings.coalesce_frames,
            breaker=settings.breaker,
            byte_budget=settings.byte_budget,
            target_latency=None if settings.target_latency is None else settings.target_latency / 1000,
            accuracy_floor=settings.accuracy_floor,
            threshold_floor=settings.threshold_floor,
            threshold_ceiling=settings.threshold_ceiling,
            on_correction=on_correction,
            spool=settings.spool,
            spool_bytes=settings.spool_bytes,
            tracing=tracing,
        )

    # --- one image ---

    def submit(self, image: Pixels, *, name: str = "", index: int | None = None) -> Future[Result]:
        """Start one image, uint8 [3, H, W]. The future is done at once if it takes the early exit.

        It blocks while the window is full. The future never fails: without the server the early exit
        answers, as ``fallback``. name, index: told again by a correction; index is by default the number of
        images before this one.
        """
        start = time.perf_counter()
        future: Future[Result] = Future()
        trace = b""
        if self._tracing is not None:
            span = self._tracing.start("offramp.image")
            trace = self._tracing.context_of(span)
            future.add_done_callback(partial(_end_span, self._tracing, span))
        exit_ = run_head(self._engine, image)
        self.metrics.head_seconds.observe(time.perf_counter() - start)
        number = next(self._indices) if index is None else index
        threshold = self.threshold if self._steering is None else self._steer()
        own = exit_.class_index, exit_.confidence
        if exit_.is_confident(threshold):
            self._finish(future, start, own, "early_exit", threshold)
            return future
        before = time.perf_counter()
        with self._lock:
            codec, payload = self._codec.encode(exit_.symbols)
        self.metrics.encode_seconds.observe(time.perf_counter() - before)
        entry = Entry(codec, payload, number, name, exit_.probabilities.tobytes() if self._both else b"")
        expected = float(len(payload) + EXPECTED_BYTES)
        if self._steering is not None:
            self._charge(expected)

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Answer):
                if self._steering is not None:
                    self._charge(outcome.wire_bytes - expected)
                told = self._told(entry.early, outcome)
                self._finish(future, start, told, "server", threshold, len(payload), outcome)
                return
            if self._steering is not None and not outcome.sends:
                self._charge(-expected)
            if self._spool is not None and not outcome.final:
                self._spool.put(entry)
            sent = len(payload) * outcome.sends
            self._finish(future, start, own, "fallback", threshold, sent, refusal=outcome)

        late = None if self._on_correction is None else partial(self._late, entry)
        self._link.offload(codec, payload, done, late=late, trace=trace)
        return future

    def infer(self, image: Pixels) -> Result:
        """One image, uint8 [3, H, W], and its result; at most ``timeout`` after its head has run."""
        return self.submit(image).result()

    async def infer_async(self, image: Pixels) -> Result:
        """As ``infer``; the event loop goes on meanwhile."""
        return await asyncio.wrap_future(await self._submit_async(image))

    # --- many images ---

    def map(self, images: Iterable[Pixels]) -> Iterator[Result]:
        """The images' results, in their order; up to a window of them are under way."""
        pending: deque[Future[Result]] = deque()
        for image in images:
            pending.append(self.submit(image))
            while pending and (len(pending) > self._window or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    async def map_async(self, images: Iterable[Pixels] | AsyncIterable[Pixels]) -> AsyncIterator[Result]:
        """As ``map``, over an iterable or an asynchronous one, such as a camera's."""
        pending: deque[Future[Result]] = deque()
        async for image in _each(images):
            pending.append(await self._submit_async(image))
            while pending and (len(pending) > self._window or pending[0].done()):
                yield await asyncio.wrap_future(pending.popleft())
        while pending:
            yield await asyncio.wrap_future(pending.popleft())

    async def _submit_async(self, image: Pixels) -> Future[Result]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "offramp-submit")
        # The caller's span, if there is one, goes along to the thread.
        submit = partial(contextvars.copy_context().run, self.submit, image)
        return await asyncio.get_running_loop().run_in_executor(self._thread, submit)

    # --- its state ---

    @property
    def threshold(self) -> float:
        """T_c in force."""
        return self._threshold

    def wire_bytes(self) -> WireBytes | None:
        """What the connection has sent and received so far; None where the system cannot tell."""
        return self._link.wire.total()

    @property
    def failure(self) -> OfframpError | None:
        """Why the link was last down; None if it never was."""
        return self._link.failure

    def wait_spool(self, seconds: float) -> bool:
        """Wait until the spool's activations are answered, no longer than this; whether they are."""
        return self._spool is None or self._spool.wait_empty(seconds)

    def late_replies_due(self) -> bool:
        """Whether an image that was answered here may still be corrected by a late reply."""
        return self._link.late_replies_due()

    def close(self) -> None:
        """Wait for what is under way and end the connection; what is in the spool stays there."""
        if self._thread is not None:
            self._thread.shutdown()
        if self._spool is not None:
            self._spool.hold()
        self._link.wait_idle()
        if self._spool is not None:
            self._spool.close()
        self._link.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Device:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    # --- inside ---

    def _steer(self) -> float:
        assert self._steering is not None
        with self._lock:
            self._threshold = self._steering.threshold(time.monotonic())
        self.metrics.threshold.set(self._threshold)
        return self._threshold

    def _charge(self, amount: float) -> None:
        """Take bytes out of the budget, and what the connection has cost beside its images' shares."""
        assert self._steering is not None
        wire = self._link.wire.total()
        with self._lock:
            self._steering.spend(amount)
            self._charged += amount
            control = 0.0 if wire is None else wire.sent + wire.received - self._charged
            if control > self._control_bytes:
                self._steering.spend(control - self._control_bytes)
                self._control_bytes = control

    def _late(self, entry: Entry, answer: Answer) -> None:
        if self._spool is not None:
            self._spool.forget(entry)
        self._correct(entry, answer, spooled=False)

    def _unspooled(self, entry: Entry, answer: Answer) -> None:
        if self._steering is not None:
            self._charge(answer.wire_bytes)
        self._correct(entry, answer, spooled=True)

    def _correct(self, entry: Entry, answer: Answer, spooled: bool) -> None:
        self.metrics.corrections.inc()
        if self._on_correction is None:
            return
        best, probability = self._told(entry.early, answer)
        correction = Correction(
            index=entry.index,
            name=entry.name,
            label=self.bundle.manifest.classes[best],
            class_index=best,
            confidence=probability,
            spooled=spooled,
        )
        try:
            self._on_correction(correction)
        except Exception:  # somebody else's code, on the link's thread
            log.exception("a correction's callback failed")

    def _told(self, early: bytes, answer: Answer) -> tuple[int, float]:
        """Class and probability of an image that was sent.

        early: its early exit's probabilities, float32 [K]; empty where the server answers alone, and in rows
        that an older release spooled.
        """
        probabilities = np.frombuffer(early, np.float32)
        if len(probabilities) != len(self.bundle.manifest.classes):
            return answer.class_index, answer.probability
        best, probability = np.array([answer.class_index]), np.array([answer.probability], np.float32)
        joint = both_exits(probabilities[None], best, probability)[0]
        chosen = int(joint.argmax())
        return chosen, float(joint[chosen])

    def _finish(
        self,
        future: Future[Result],
        start: float,
        told: tuple[int, float],
        source: Source,
        threshold: float,
        payload_bytes: int = 0,
        answer: Answer | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        best, confidence = told
        outcome = answer or refusal
        latency = time.perf_counter() - start
        self.metrics.answered_by[source].inc()
        if self._steering is not None:
            with self._lock:
                self._steering.answered(latency)
        sends = 0 if outcome is None else outcome.sends
        future.set_result(
            Result(
                label=self.bundle.manifest.classes[best],
                class_index=best,
                confidence=confidence,
                source=source,
                latency_seconds=latency,
                payload_bytes=payload_bytes if answer is None else payload_bytes * sends,
                message_bytes=0.0 if answer is None else answer.message_bytes,
                wire_bytes=0.0 if answer is None else answer.wire_bytes,
                reason=None if refusal is None else refusal.reason,
                sends=sends,
                threshold=None if self._steering is None else threshold,
            )
        )


def _end_span(tracing: Tracing, span: Span, future: Future[Result]) -> None:
    result = future.result()
    tracing.end(
        span,
        result.reason,
        source=result.source,
        label=result.label,
        confidence=result.confidence,
        payload_bytes=result.payload_bytes,
        sends=result.sends,
    )


async def _each(images: Iterable[Pixels] | AsyncIterable[Pixels]) -> AsyncIterator[Pixels]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
        return
    for image in images:
        yield image


def exit_code(fallbacks: int, unreadable: int, failure: OfframpError | None) -> ExitCode:
    """What a run's exit status tells: the worst of what happened to its images."""
    if fallbacks:
        return ExitCode.UNAVAILABLE if failure is None else failure.exit_code
    return ExitCode.DATA if unreadable else ExitCode.OK
