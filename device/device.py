"""The device's whole flow: image → head → early exit → encode → link (→ picture → link) → result.

>>> from offramp.common.bundle.load import load_bundle
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
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import Preprocessing
from offramp.common.codec.activation import CodecId
from offramp.common.errors import ConfigError, ExitCode, OfframpError
from offramp.common.inputs.arrays import to_pixels
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine
from offramp.common.settings import check_argument
from offramp.common.tracing import Tracing
from offramp.common.wire.address import split_address
from offramp.common.wire.frame import ENVELOPE_BYTES
from offramp.device.adapt import Steering, bounds_of
from offramp.device.head import run_head
from offramp.device.metrics import DeviceMetrics
from offramp.device.pictures import Pictures
from offramp.device.settings import DeviceSettings
from offramp.device.spool.spool import Spool
from offramp.device.spool.store import INDEX_MOST, Entry, rules_of
from offramp.link.link import FRAME_OVERHEAD, Answer, Link, Outcome, Pace, Terms
from offramp.link.security import Security
from offramp.link.wire_bytes import WireBytes

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger("offramp.edge-device")

REPLY_BYTES = 16
"""About what a reply takes, without its envelope."""
EXPECTED_BYTES = FRAME_OVERHEAD + REPLY_BYTES + 2 * ENVELOPE_BYTES
"""What one offloaded image is taken to cost beside its payload, until its answer tells."""

Pixels = NDArray[np.uint8]
Input = Any
"""A picture as ``preprocess`` takes it: a Pillow picture, a file's bytes or an array."""
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
    """From handing the image in to its answer; of a file, without its decoding."""
    payload_bytes: int
    """The coded activation and the picture, each time that they were sent."""
    message_bytes: float
    """Share of the serialized protobuf messages, both directions."""
    wire_bytes: float
    """The same with gRPC prefix and HTTP/2 DATA header."""
    reason: str | None
    """Why a ``fallback`` is one."""
    sends: int = 0
    """How often the activation was sent: more than once where a stream broke."""
    picture_bytes: int = 0
    """What of the payload was its picture; 0 where none was sent."""
    threshold: float | None = None
    """T_c that decided, where it is steered."""
    decode_seconds: float = 0.0
    """From a picture's bytes, or the caller's own kind of picture, to the head's input."""


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


@dataclass(slots=True)
class _Cost:
    """What one image has sent, its share of what came back, and what its decoding took."""

    payload: int = 0
    picture: int = 0
    message: float = 0.0
    wire: float = 0.0
    sends: int = 0
    decode_seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        self.message += answer.message_bytes
        self.wire += answer.wire_bytes


@dataclass(slots=True)
class _Unsure:
    """An image that did not take the early exit, until it has its result."""

    future: Future[Result]
    start: float
    threshold: float
    own: tuple[int, float]
    """The early exit's class and confidence."""
    entry: Entry
    trace: bytes
    image: Pixels | None
    """For a picture of it; None where there will be none."""
    cost: _Cost


class Device:
    """One bundle's head, its early exit and the link to a server.

    server: HOST:PORT, or several in the order in which they are tried. threshold: T_c, by default the
    bundle's. timeout: seconds an image waits for the server. window: unanswered frames at most. insecure:
    allow plaintext beyond this machine. security: TLS and token. coalesce: seconds a frame may wait for
    others to share a message; coalesce_frames: how many are enough. breaker: failures in a row after which
    frames are turned away. byte_budget (bytes a second) and target_latency (seconds) steer T_c between
    threshold_floor and threshold_ceiling (see ``adapt.py``). on_correction: called, from another thread,
    with what the server answers too late. spool: a file for unanswered activations, of at most spool_bytes.
    picture_threshold: an image whose answer from the server is no more confident than this is sent once
    more, as WebP of picture_quality, and waits for that answer as long again; None: never. tracing: starts a
    span for each image, below the caller's.

    ``submit`` and ``infer`` may be called from several threads, but not in a process that was forked after
    the device was made: its threads and its connection stay in the parent. Raises BundleError for a head that
    is not what the manifest says, ConfigError for a wrong address, certificate, token, type or range; images
    of a closed or forked device raise ConfigError too.
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
        picture_threshold: float | None = None,
        picture_quality: int = 20,
        tracing: Tracing | None = None,
    ) -> None:
        _check_arguments(
            threshold=threshold,
            timeout=timeout,
            window=window,
            threads=threads,
            insecure=insecure,
            coalesce=coalesce,
            coalesce_frames=coalesce_frames,
            breaker=breaker,
            byte_budget=byte_budget,
            target_latency=target_latency,
            accuracy_floor=accuracy_floor,
            threshold_floor=threshold_floor,
            threshold_ceiling=threshold_ceiling,
            spool=spool,
            spool_bytes=spool_bytes,
            picture_threshold=picture_threshold,
            picture_quality=picture_quality,
        )
        if not isinstance(bundle, Bundle):
            raise ConfigError(f"bundle={bundle!r:.80}: expected a Bundle, as load_bundle() returns it")
        if on_correction is not None and not callable(on_correction):
            raise ConfigError(f"on_correction={on_correction!r:.80}: expected a function of one Correction")
        servers = _servers(server)
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
        """For the steering, which is for one thread at a time."""
        self._codec = bundle.codec
        self._engine = Engine(bundle, threads)
        self._engine.load_head()
        self._indices = count()
        self._on_correction = on_correction
        self._tracing = tracing
        self._window = window
        self._timeout = timeout
        self._pictures: Pictures | None = None
        if picture_threshold is not None:
            self._pictures = Pictures(
                picture_threshold, picture_quality, manifest.preprocessing, self.metrics
            )
        self._under_way = 0
        self._submitting = 0
        self._closed = False
        self._process = os.getpid()
        self._changed = threading.Condition()
        """An image that was sent has its result."""
        self._thread: ThreadPoolExecutor | None = None
        self._link = Link(
            servers,
            Terms(bundle.digest, len(manifest.classes), self._codec.raw_bytes, self._pictures is not None),
            Pace(timeout, window, coalesce, coalesce_frames),
            self.metrics.link,
            failures=breaker,
            security=security,
            meanwhile="unsure images are answered by the early exit",
        )
        self._spool: Spool | None = None
        if spool is not None:
            self._spool = Spool(
                spool, spool_bytes, rules_of(bundle), self._link, self.metrics, self._unspooled
            )

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
                proxy=settings.proxy,
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
            picture_threshold=settings.picture_threshold,
            picture_quality=settings.picture_quality,
            tracing=tracing,
        )

    # --- one image ---

    def submit(
        self, image: Input, *, name: str = "", index: int | None = None, decode_seconds: float = 0.0
    ) -> Future[Result]:
        """Start one image. The future is done at once if it takes the early exit.

        image: uint8 [3, H, W] as the head takes it, or whatever ``preprocess`` takes. It blocks while the
        window is full; then the image is the caller's again. The future never fails: without the server the
        early exit answers, as ``fallback``. name, index: repeated by a correction; index is by default the
        number of images before this one. decode_seconds: what decoding has taken already. Raises DataError
        for what is not one picture, ConfigError where the device is closed or was made before this process
        was forked, and for a name or index that is not one.
        """
        if not isinstance(name, str):
            raise ConfigError(f"name={name!r:.80}: expected a string")
        if index is not None and (not isinstance(index, int) or not 0 <= index <= INDEX_MOST):
            raise ConfigError(f"index={index!r:.80}: expected a whole number, 0 … {INDEX_MOST}")
        self._check_process()
        with self._changed:
            self._check_open()
            self._submitting += 1
        try:
            return self._submit(image, name, index, decode_seconds)
        finally:
            with self._changed:
                self._submitting -= 1
                self._changed.notify_all()

    def _submit(
        self, image: Input, name: str = "", index: int | None = None, decode_seconds: float = 0.0
    ) -> Future[Result]:
        start = time.perf_counter()
        image, own_seconds = self._as_pixels(image, name)
        cost = _Cost(decode_seconds=decode_seconds + own_seconds)
        if cost.decode_seconds:
            self.metrics.decode_seconds.observe(cost.decode_seconds)
        before_head = time.perf_counter()
        future: Future[Result] = Future()
        trace = b""
        if self._tracing is not None:
            span = self._tracing.start("offramp.image")
            trace = self._tracing.context_of(span)
            future.add_done_callback(partial(_end_span, self._tracing, span))
        exit_ = run_head(self._engine, image)
        self.metrics.head_seconds.observe(time.perf_counter() - before_head)
        number = next(self._indices) if index is None else index
        threshold = self.threshold if self._steering is None else self._steer()
        own = exit_.class_index, exit_.confidence
        if exit_.is_confident(threshold):
            self._finish(future, start, own, "early_exit", threshold, cost)
            return future
        before = time.perf_counter()
        codec, payload = self._codec.encode(exit_.symbols)
        self.metrics.encode_seconds.observe(time.perf_counter() - before)
        entry = Entry(codec, payload, number, name, exit_.probabilities.tobytes() if self._both else b"")
        kept = None if self._pictures is None else image.copy()
        unsure = _Unsure(future, start, threshold, own, entry, trace, kept, cost)
        with self._changed:
            # Images that wait for the picture's answer are in no window.
            if self._pictures is not None:
                self._changed.wait_for(lambda: self._under_way < 2 * self._window)
            self._under_way += 1
        late = None if self._on_correction is None else partial(self._late, entry)
        self._offload(codec, payload, partial(self._replied, unsure), trace, late)
        return future

    def infer(self, image: Input) -> Result:
        """One image, as ``submit`` takes it, and its result; at most ``timeout`` after its head has run.

        Twice that where its picture is sent as well. Raises as ``submit`` does.
        """
        return self.submit(image).result()

    async def infer_async(self, image: Input) -> Result:
        """As ``infer``; the event loop goes on meanwhile."""
        return await asyncio.wrap_future(await self._submit_async(image))

    # --- many images ---

    def map(self, images: Iterable[Input]) -> Iterator[Result]:
        """The images' results, in their order; up to a window of them are under way. Raises as ``submit``."""
        self._check_usable()
        return self._map(images)

    def _map(self, images: Iterable[Input]) -> Iterator[Result]:
        pending: deque[Future[Result]] = deque()
        for image in images:
            pending.append(self.submit(image))
            while pending and (len(pending) > self._window or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def map_async(self, images: Iterable[Input] | AsyncIterable[Input]) -> AsyncIterator[Result]:
        """As ``map``, over an iterable or an asynchronous one, such as a camera's."""
        self._check_usable()
        return self._map_async(images)

    async def _map_async(self, images: Iterable[Input] | AsyncIterable[Input]) -> AsyncIterator[Result]:
        pending: deque[Future[Result]] = deque()
        async for image in _each(images):
            pending.append(await self._submit_async(image))
            while pending and (len(pending) > self._window or pending[0].done()):
                yield await asyncio.wrap_future(pending.popleft())
        while pending:
            yield await asyncio.wrap_future(pending.popleft())

    async def _submit_async(self, image: Input) -> Future[Result]:
        self._check_process()
        # The caller's span, if there is one, goes along to the thread.
        submit = partial(contextvars.copy_context().run, self._submit, image)
        with self._changed:
            self._check_open()
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "offramp-submit")
            submitted = asyncio.get_running_loop().run_in_executor(self._thread, submit)
        return await submitted

    # --- its state ---

    @property
    def threshold(self) -> float:
        """T_c in force."""
        return self._threshold

    def wire_bytes(self) -> WireBytes | None:
        """What the connection has sent and received so far; None where the system cannot tell."""
        self._check_process()
        return self._link.wire.total()

    @property
    def failure(self) -> OfframpError | None:
        """Why the link was last down; None if it never was."""
        return self._link.failure

    def wait_spool(self, seconds: float) -> bool:
        """Wait until the spool's activations are answered, no longer than this; whether they are."""
        self._check_process()
        return self._spool is None or self._spool.wait_empty(seconds)

    def late_replies_due(self) -> bool:
        """Whether an image that was answered here may still be corrected by a late reply."""
        self._check_process()
        return self._link.late_replies_due()

    def close(self) -> None:
        """Wait for what is under way and end the connection; what is in the spool stays there.

        Images that are handed in later raise ConfigError. In a process that was forked after the device was
        made, ``close`` does too, and changes nothing; leaving a ``with`` block there is fine.
        """
        self._check_process()
        with self._changed:
            self._closed = True
        if self._thread is not None:
            self._thread.shutdown()
        with self._changed:
            self._changed.wait_for(lambda: not self._submitting)
        if self._spool is not None:
            self._spool.hold()
        self._link.wait_idle()
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way)
        if self._pictures is not None:
            self._pictures.close()
        if self._spool is not None:
            self._spool.close()
        self._link.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_forked():
            self.close()

    async def __aenter__(self) -> Device:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._is_forked():
            return
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def _is_forked(self) -> bool:
        return os.getpid() != self._process

    def _check_process(self) -> None:
        # Before any lock: in a child, a lock that another thread held at the fork is never released.
        if self._is_forked():
            raise ConfigError(
                f"the device was made in process {self._process}, from which {os.getpid()} was forked: "
                "expected a device that is made after the fork"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("the device is closed, expected one that is open")

    def _check_usable(self) -> None:
        self._check_process()
        self._check_open()

    # --- an image that is sent ---

    def _offload(
        self,
        codec: CodecId,
        payload: bytes,
        done: Callable[[Outcome], None],
        trace: bytes,
        late: Callable[[Answer], None] | None = None,
        deadline: float | None = None,
    ) -> None:
        """Send one frame, and charge the budget for it: a guess at once, the rest when its outcome tells."""
        steered = self._steering is not None
        expected = float(len(payload) + EXPECTED_BYTES)
        if steered:
            self._charge(expected)

        def settled(outcome: Outcome) -> None:
            if steered and isinstance(outcome, Answer):
                self._charge(outcome.wire_bytes - expected)
            elif steered and not outcome.sends:
                self._charge(-expected)
            done(outcome)

        self._link.offload(codec, payload, settled, late=late, deadline=deadline, trace=trace)

    def _replied(self, unsure: _Unsure, outcome: Outcome) -> None:
        """Finish an image, or ask again with its picture."""
        unsure.cost.sends = outcome.sends
        unsure.cost.payload = len(unsure.entry.payload) * outcome.sends
        if not isinstance(outcome, Answer):
            if self._spool is not None and not outcome.final:
                self._spool.put(unsure.entry)
            self._settle(unsure, unsure.own, "fallback", outcome.reason)
            return
        unsure.cost.add(outcome)
        both = self._both_of(unsure.entry.early, outcome)
        told = _best_of(both, outcome)
        pictures = self._pictures
        if pictures is not None and unsure.image is not None and pictures.wants(told[1]) and not self._owes():
            # From the first answer on, so that what waits for the picture's thread is in it.
            send = partial(self._send_picture, unsure, both, told, time.monotonic() + self._timeout)
            pictures.encode(unsure.image, send, partial(self._give_up_picture, unsure, told))
            return
        self._settle(unsure, told, "server")

    def _send_picture(
        self,
        unsure: _Unsure,
        both: NDArray[np.float32],
        told: tuple[int, float],
        deadline: float,
        payload: bytes,
    ) -> None:
        """Ask the server again; what it told first stands where it does not answer."""

        def done(outcome: Outcome) -> None:
            sent = len(payload) * outcome.sends
            unsure.cost.payload += sent
            unsure.cost.picture += sent
            if not isinstance(outcome, Answer):
                log.debug("picture without an answer: %s", outcome.reason)
                self._give_up_picture(unsure, told)
                return
            self.metrics.pictures_answered.inc()
            unsure.cost.add(outcome)
            again = self._both_of(both.tobytes(), outcome)
            self._settle(unsure, _best_of(again, outcome), "server")

        self._offload(CodecId.PICTURE, payload, done, unsure.trace, deadline=deadline)

    def _give_up_picture(self, unsure: _Unsure, told: tuple[int, float]) -> None:
        self.metrics.pictures_unanswered.inc()
        self._settle(unsure, told, "server")

    def _settle(
        self, unsure: _Unsure, told: tuple[int, float], source: Source, reason: str | None = None
    ) -> None:
        self._finish(unsure.future, unsure.start, told, source, unsure.threshold, unsure.cost, reason)
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    # --- inside ---

    def _as_pixels(self, image: Input, name: str) -> tuple[Pixels, float]:
        """The head's input, and the seconds that making it took. Raises DataError."""
        start = time.perf_counter()
        pixels = to_pixels(image, self.bundle.manifest.preprocessing, name or "image")
        return pixels, 0.0 if pixels is image else time.perf_counter() - start

    def _owes(self) -> bool:
        """Whether the budget is overdrawn: then nothing is sent that has an answer already."""
        if self._steering is None:
            return False
        with self._lock:
            return self._steering.owes()

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
        best, probability = _best_of(self._both_of(entry.early, answer), answer)
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

    def _both_of(self, before: bytes, answer: Answer) -> NDArray[np.float32]:
        """What all classes get once a reply is in, float32 [K]; empty where the reply alone counts.

        before: what they had, float32 [K], by the early exit or by an earlier reply too; empty where the
        server answers alone, and in rows that an older release spooled.
        """
        probabilities = np.frombuffer(before, np.float32)
        if len(probabilities) != len(self.bundle.manifest.classes):
            return np.empty(0, np.float32)
        best, probability = np.array([answer.class_index]), np.array([answer.probability], np.float32)
        return np.asarray(both_exits(probabilities[None], best, probability)[0], np.float32)

    def _finish(
        self,
        future: Future[Result],
        start: float,
        told: tuple[int, float],
        source: Source,
        threshold: float,
        cost: _Cost,
        reason: str | None = None,
    ) -> None:
        best, confidence = told
        latency = time.perf_counter() - start
        self.metrics.answered_by[source].inc()
        if self._steering is not None:
            with self._lock:
                self._steering.answered(latency)
        future.set_result(
            Result(
                label=self.bundle.manifest.classes[best],
                class_index=best,
                confidence=confidence,
                source=source,
                latency_seconds=latency,
                payload_bytes=cost.payload,
                message_bytes=cost.message,
                wire_bytes=cost.wire,
                reason=reason,
                sends=cost.sends,
                picture_bytes=cost.picture,
                threshold=None if self._steering is None else threshold,
                decode_seconds=cost.decode_seconds,
            )
        )


def _check_arguments(**given: object) -> None:
    for name, value in given.items():
        seconds = name in ("coalesce", "target_latency")
        check_argument(DeviceSettings, name, value, per_unit=1000 if seconds else 1)


def _servers(server: str | Sequence[str]) -> list[str]:
    servers = [server] if isinstance(server, str) else server
    if not isinstance(servers, Sequence) or not all(isinstance(each, str) for each in servers):
        raise ConfigError(f"server={server!r:.80}: expected HOST:PORT, or a list of them")
    if not servers:
        raise ConfigError("--server: expected at least one HOST:PORT")
    return list(servers)


def _best_of(both: NDArray[np.float32], answer: Answer) -> tuple[int, float]:
    """Class and probability that are told of an image."""
    if not len(both):
        return answer.class_index, answer.probability
    best = int(both.argmax())
    return best, float(both[best])


def _end_span(tracing: Tracing, span: Span, future: Future[Result]) -> None:
    result = future.result()
    tracing.end(
        span,
        result.reason,
        source=result.source,
        label=result.label,
        confidence=result.confidence,
        payload_bytes=result.payload_bytes,
        picture_bytes=result.picture_bytes,
        sends=result.sends,
    )


def preprocess(image: Input, like: Bundle | Preprocessing) -> Pixels:
    """One picture as a bundle's head takes it, uint8 [3, H, W]; what ``Device.infer`` does first.

    image: a picture file's bytes, a Pillow picture, or one array: uint8, uint16 or floats of 0 … 1, as
    [H, W, 3], [3, H, W], [H, W, 4], [4, H, W] or [H, W]. Raises DataError, saying shape and dtype, for what
    is not clearly one picture.
    """
    return to_pixels(image, like.manifest.preprocessing if isinstance(like, Bundle) else like)


async def _each(images: Iterable[Input] | AsyncIterable[Input]) -> AsyncIterator[Input]:
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
