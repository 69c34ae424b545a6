"""The device's whole flow: image → head → early exit → encode → link (→ picture → link) → result.

>>> from offramp.common.bundle.load import load_bundle
>>> from offramp.device import Device
>>> with Device(load_bundle("models/digits-mobilenetv2-exit12"), server="127.0.0.1:50051") as device:
...     print(device.infer(image).label)  # uint8 [3, H, W]
...     for result in device.map(images):  # in order, several under way
...         print(result.label, result.source)

>>> async with Device(bundle, server="127.0.0.1:50051", link=LinkOptions(timeout=0.5)) as device:
...     print((await device.infer_async(image)).label)
...     async for result in device.map_async(images):
...         print(result.label, result.source)
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import HEAD
from offramp.common.codec.activation import CodecId
from offramp.common.errors import ConfigError, OfframpError
from offramp.common.inputs.prepare import prepare
from offramp.common.part.engine import Engine
from offramp.common.part.providers import providers_of
from offramp.common.part.unknown import UnknownScore
from offramp.common.tracing import Tracing
from offramp.device.audits import Audits
from offramp.device.corrections import Corrections
from offramp.device.datagrams import Connectionless, DatagramDesk
from offramp.device.head import EarlyExit, run_head
from offramp.device.image import Begun, Sent
from offramp.device.inputs import Input, require_runnable
from offramp.device.inquiry import AskPicture, Inquiry, Settled, Verdict
from offramp.device.ledger import Cost, Ledger
from offramp.device.lifetime import Lifetime
from offramp.device.many import in_order, in_order_async
from offramp.device.metrics import DeviceMetrics
from offramp.device.options import (
    AuditOptions,
    DatagramOptions,
    KeepOptions,
    LinkOptions,
    PictureOptions,
    SpoolOptions,
    SteeringOptions,
    addresses,
    check_option,
    group,
)
from offramp.device.pictures import PictureWriter
from offramp.device.result import Correction, Result
from offramp.device.samples.samples import Samples, Taken
from offramp.device.settings import DeviceSettings
from offramp.device.spans import start_span
from offramp.device.spool.spool import Spool
from offramp.device.spool.store import INDEX_MOST, Entry, rules_of
from offramp.link.datagram_numbers import Numbers
from offramp.link.outcome import Answer, Outcome
from offramp.link.wire_bytes import WireBytes

log = logging.getLogger("offramp.edge-device")


class Device(Connectionless):
    """One bundle's head, its early exit and the link to a server.

    server: HOST:PORT, or several in the order in which they are tried; a gateway's URL; None: none, for
    ``encode``. threshold: T_c, by default the bundle's. threads: for the head. providers: what runs it, in
    order of preference (``part/providers.py``). link, steering, pictures, spool, audits, keep, datagrams: see
    ``options.py``; by default T_c is not steered, no picture is sent, nothing is spooled, audited or kept.
    on_correction: called, from another thread, with what the server answers too late. tracing: starts a span
    for each image, below the caller's.

    ``submit`` and ``infer`` may be called from several threads, but not in a process that was forked after
    the device was made: its threads and its connection stay in the parent. Raises BundleError for a head that
    is not what the manifest says, ConfigError for a wrong address, certificate, token, type or range; images
    of a closed or forked device raise ConfigError too.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        server: str | Sequence[str] | None,
        threshold: float | None = None,
        threads: int = 1,
        providers: str | Sequence[str] = "cpu",
        link: LinkOptions | None = None,
        steering: SteeringOptions | None = None,
        pictures: PictureOptions | None = None,
        spool: SpoolOptions | None = None,
        audits: AuditOptions | None = None,
        keep: KeepOptions | None = None,
        datagrams: DatagramOptions | None = None,
        on_correction: Callable[[Correction], None] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        check_option("threshold", threshold)
        check_option("threads", threads)
        on = providers_of(providers)
        link = group(LinkOptions, "link", link)
        steering = group(SteeringOptions, "steering", steering)
        pictures = group(PictureOptions, "pictures", pictures)
        spool = group(SpoolOptions, "spool", spool)
        audits = group(AuditOptions, "audits", audits)
        keep = group(KeepOptions, "keep", keep)
        datagrams = group(DatagramOptions, "datagrams", datagrams)
        require_runnable(bundle, pictures)
        if on_correction is not None and not callable(on_correction):
            raise ConfigError(f"on_correction={on_correction!r:.80}: expected a function of one Correction")
        servers, identity = addresses(server), datagrams.identity()
        manifest = bundle.manifest
        self.bundle = bundle
        self.metrics = DeviceMetrics(bundle)
        self._options = link
        self._corrections = Corrections(bundle, self.metrics, on_correction)
        self._audits = Audits(audits.audit, audits.audit_seed, self.metrics)
        self._tracing = tracing
        self._indices = count()
        self._lifetime = Lifetime()
        self._thread = ThreadPoolExecutor(1, "offramp-submit")
        """For callers with an event loop; it starts with the first of them."""
        self._numbers = Numbers(datagrams.sequence_file)
        sends_pictures = pictures.picture_threshold is not None
        self._link = link.link_to(
            bundle, servers, self.metrics.link, datagrams, self._numbers, pictures=sends_pictures
        )
        self._ledger = Ledger(
            manifest,
            manifest.threshold if threshold is None else threshold,
            steering,
            wait_seconds=link.timeout,
            now=time.monotonic(),
            connection_bytes=self._link.wire.total,
        )
        self.metrics.threshold.set(self._ledger.threshold)
        self.metrics.watch_threshold(lambda: self._ledger.threshold)
        self._engine = Engine(bundle, threads, providers=on)
        self._unknown = UnknownScore.of(bundle)
        self._engine.load_head()
        self._engine.log_placements(log, HEAD)
        self.metrics.providers.show(HEAD, self._engine.placements[HEAD])
        self._desk = DatagramDesk(
            bundle, identity, self._numbers, self.metrics, (self._run_head, self._steer, self._finish)
        )
        self._picture_threshold = pictures.picture_threshold
        self._pictures: PictureWriter | None = None
        if self._picture_threshold is not None:
            self._pictures = PictureWriter(pictures.picture_quality, manifest.preprocessing, self.metrics)
        self._samples = Samples(keep, bundle, self.metrics)
        self._spool: Spool | None = None
        if spool.spool is not None:
            self._spool = Spool(
                spool.spool, spool.spool_bytes, rules_of(bundle), self._link, self.metrics, self._unspooled
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
            threads=settings.threads,
            providers=settings.providers,
            link=LinkOptions.of(settings),
            steering=SteeringOptions.of(settings),
            pictures=PictureOptions.of(settings),
            spool=SpoolOptions.of(settings),
            audits=AuditOptions.of(settings),
            keep=KeepOptions.of(settings),
            datagrams=DatagramOptions.of(settings),
            on_correction=on_correction,
            tracing=tracing,
        )

    # --- one image ---

    def submit(
        self,
        image: Input,
        *,
        name: str = "",
        index: int | None = None,
        decode_seconds: float = 0.0,
        file: bytes | None = None,
    ) -> Future[Result]:
        """Start one image. The future is done at once if it takes the early exit.

        image: as the head takes it, or whatever ``preprocess`` takes. It blocks while the window is
        full; then the image is the caller's again. The future never fails: without the server the early exit
        answers, as ``fallback``. name, index: repeated by a correction; index is by default the number of
        images before this one. decode_seconds: what decoding has taken already. file: what was decoded, to be
        kept in its place (``keep``). Raises DataError for what is not one input, ConfigError where the device
        is closed or was made before this process was forked, and for a name or index that is not one.
        """
        if not isinstance(name, str):
            raise ConfigError(f"name={name!r:.80}: expected a string")
        if index is not None and (not isinstance(index, int) or not 0 <= index <= INDEX_MOST):
            raise ConfigError(f"index={index!r:.80}: expected a whole number, 0 … {INDEX_MOST}")
        return self._lifetime.within(self._submit, image, name, index, decode_seconds, file)

    def _submit(
        self,
        given: Input,
        name: str = "",
        index: int | None = None,
        decode_seconds: float = 0.0,
        file: bytes | None = None,
    ) -> Future[Result]:
        start = time.perf_counter()
        image = prepare(given, self.bundle.manifest.input, name)
        if image is not given:
            decode_seconds += time.perf_counter() - start
        if decode_seconds:
            self.metrics.decode_seconds.observe(decode_seconds)
        audited = self._audits.draw()
        future: Future[Result] = Future()
        # Under way from here on: a caller's cancel() changes nothing, since its outcome comes in any case.
        future.set_running_or_notify_cancel()
        trace = start_span(self._tracing, future)
        exit_ = self._run_head(image)
        number = next(self._indices) if index is None else index
        threshold = self._steer()
        self.metrics.drift.count(exit_, threshold)
        own = Verdict(exit_.class_index, exit_.confidence)
        exits = exit_.is_confident(threshold)
        file = given if file is None else file
        taken = self._samples.take(exit_, image, name, number, file, held=audited or not exits)
        begun = Begun(future, start, threshold, exit_.unknown, taken)
        if exits:
            cost = Cost(decode_seconds=decode_seconds)
            result = self._finish(begun, cost, Settled("early_exit", own))
            if audited:
                self._audit(exit_, result, taken)
            else:
                self._samples.answered(taken, result)
            return future
        codec, payload = self._encode(exit_)
        manifest = self.bundle.manifest
        early = exit_.probabilities.tobytes() if manifest.sent_answer == "both" else b""
        inquiry = Inquiry(
            own,
            early,
            len(manifest.classes),
            picture_threshold=self._picture_threshold,
            decode_seconds=decode_seconds,
        )
        kept = None if self._pictures is None else image.copy()
        entry = Entry(codec, payload, number, name, early)
        self._send(Sent(inquiry, entry, begun, trace, kept))
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
        self._lifetime.check()
        return in_order(images, self.submit, self._options.window)

    def map_async(self, images: Iterable[Input] | AsyncIterable[Input]) -> AsyncIterator[Result]:
        """As ``map``, over an iterable or an asynchronous one, such as a camera's."""
        self._lifetime.check()
        return in_order_async(images, self._submit_async, self._options.window)

    async def _submit_async(self, image: Input) -> Future[Result]:
        # The caller's span, if there is one, goes along to the thread.
        submit = partial(contextvars.copy_context().run, self._submit, image)
        self._lifetime.enter()
        try:
            submitted = asyncio.get_running_loop().run_in_executor(self._thread, submit)
        finally:
            self._lifetime.leave()
        return await submitted

    # --- its state ---

    @property
    def threshold(self) -> float:
        """T_c in force."""
        return self._ledger.threshold

    def set_threshold(self, threshold: float) -> None:
        """Set T_c, 0 … 1, for images from now on. Raises ConfigError, also where T_c is steered."""
        check_option("threshold", threshold)
        self._ledger.set(float(threshold))
        self.metrics.threshold.set(self._ledger.threshold)

    def wire_bytes(self) -> WireBytes | None:
        """What the connection has sent and received so far; None where the system does not say."""
        self._lifetime.check_process()
        return self._link.wire.total()

    def audit_counts(self) -> dict[str, int]:
        """Audits so far, by result: ``agrees``, ``differs``, ``lost``."""
        return self._audits.counts()

    @property
    def failure(self) -> OfframpError | None:
        """Why the link was last down; None if it never was."""
        return self._link.failure

    def wait_spool(self, seconds: float) -> bool:
        """Wait until the spool's activations are answered, no longer than this; whether they are."""
        self._lifetime.check_process()
        return self._spool is None or self._spool.wait_empty(seconds)

    def late_replies_due(self) -> bool:
        """Whether an image that was answered here may still be corrected by a late reply."""
        self._lifetime.check_process()
        return self._link.late_replies_due()

    def close(self) -> None:
        """Wait for what is under way and end the connection; what is in the spool stays there.

        Images that are handed in later raise ConfigError. In a process that was forked after the device was
        made, ``close`` does too, and changes nothing; leaving a ``with`` block there is fine.
        """
        self._lifetime.close()
        self._thread.shutdown()
        if self._spool is not None:
            self._spool.hold()
        self._link.wait_idle()
        self._lifetime.wait_for_images()
        if self._pictures is not None:
            self._pictures.close()
        if self._spool is not None:
            self._spool.close()
        self._link.close()
        self._numbers.close()
        self._samples.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._lifetime.is_forked:
            self.close()

    async def __aenter__(self) -> Device:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._lifetime.is_forked:
            await asyncio.get_running_loop().run_in_executor(None, self.close)

    # --- an image that is sent ---

    def _send(self, sent: Sent) -> None:
        """Ask the server about the activation. Waits while the window is full."""
        # Images that wait for the picture's answer are in no window.
        self._lifetime.start_image(None if self._pictures is None else 2 * self._options.window)
        late = partial(self._late, sent.inquiry, sent.entry) if self._corrections.wanted else None
        replied = partial(self._replied, sent)
        self._offload(sent.entry.codec, sent.entry.payload, replied, sent.trace, late)

    def _audit(self, exit_: EarlyExit, result: Result, taken: Taken | None) -> None:
        """Ask the server about an image that has its answer. It waits for nothing."""
        if self._ledger.owes():
            self._audits.lost("the budget is overdrawn")
            self._samples.answered(taken, result)
            return
        codec, payload = self._encode(exit_)
        self._offload(codec, payload, partial(self._audited, result, taken), behind=True)

    def _audited(self, result: Result, taken: Taken | None, outcome: Outcome) -> None:
        self._audits.replied(result.class_index, outcome)
        self._samples.answered(taken, result, outcome)

    def _encode(self, exit_: EarlyExit) -> tuple[CodecId, bytes]:
        before = time.perf_counter()
        coded = self.bundle.codec.encode(exit_.symbols)
        self.metrics.encode_seconds.observe(time.perf_counter() - before)
        return coded

    def _offload(
        self,
        codec: CodecId,
        payload: bytes,
        done: Callable[[Outcome], None],
        trace: bytes = b"",
        late: Callable[[Answer], None] | None = None,
        deadline: float | None = None,
        behind: bool = False,
    ) -> None:
        """Hand one frame to the link, and charge the budget for it."""
        if self._ledger.steers:
            done = partial(self._charged, self._ledger.send(len(payload)), done)
        self._link.offload(codec, payload, done, late=late, behind=behind, deadline=deadline, trace=trace)

    def _charged(self, expected: float, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        self._ledger.settle(expected, outcome)
        done(outcome)

    def _replied(self, sent: Sent, outcome: Outcome) -> None:
        """The activation's outcome: finish the image, or ask again with its picture."""
        may_ask = sent.image is not None and not self._ledger.owes()
        step = sent.inquiry.replied(len(sent.entry.payload), outcome, may_ask=may_ask)
        if not isinstance(step, AskPicture):
            if step.keep and self._spool is not None:
                self._spool.put(sent.entry)
            self._settle(sent, step)
            return
        assert self._pictures is not None and sent.image is not None
        # From the first answer on, so that what waits for the picture's thread is in it.
        deadline = time.monotonic() + self._options.timeout
        self._pictures.write(
            sent.image, partial(self._send_picture, sent, deadline), partial(self._give_up_picture, sent)
        )

    def _send_picture(self, sent: Sent, deadline: float, payload: bytes) -> None:
        replied = partial(self._picture_replied, sent, len(payload))
        self._offload(CodecId.PICTURE, payload, replied, sent.trace, deadline=deadline)

    def _picture_replied(self, sent: Sent, size: int, outcome: Outcome) -> None:
        if isinstance(outcome, Answer):
            self.metrics.pictures_answered.inc()
        else:
            log.debug("picture without an answer: %s", outcome.reason)
            self.metrics.pictures_unanswered.inc()
        self._settle(sent, sent.inquiry.picture_replied(size, outcome))

    def _give_up_picture(self, sent: Sent) -> None:
        self.metrics.pictures_unanswered.inc()
        self._settle(sent, sent.inquiry.picture_given_up())

    def _settle(self, sent: Sent, settled: Settled) -> None:
        result = self._finish(sent.begun, sent.inquiry.cost, settled)
        self._samples.answered(sent.begun.taken, result)
        self._lifetime.end_image()

    # --- an image that is answered again ---

    def _late(self, inquiry: Inquiry, entry: Entry, answer: Answer) -> None:
        """The server answered a frame that was given up."""
        if self._spool is not None:
            self._spool.forget(entry)
        self._corrections.correct(inquiry, entry, answer, spooled=False)

    def _unspooled(self, entry: Entry, answer: Answer) -> None:
        """The server answered an activation out of the spool."""
        self._ledger.spooled(answer)
        inquiry = Inquiry.of_spooled(entry.early, len(self.bundle.manifest.classes))
        self._corrections.correct(inquiry, entry, answer, spooled=True)

    # --- inside ---

    def _run_head(self, image: Input) -> EarlyExit:
        before = time.perf_counter()
        exit_ = run_head(self._engine, image, self._unknown)
        self.metrics.head_seconds.observe(time.perf_counter() - before)
        return exit_

    def _steer(self) -> float:
        """T_c for an image that is at its early exit now."""
        if not self._ledger.steers:
            return self._ledger.threshold
        threshold = self._ledger.steer(time.monotonic())
        self.metrics.threshold.set(threshold)
        return threshold

    def _finish(self, begun: Begun, cost: Cost, settled: Settled) -> Result:
        latency = time.perf_counter() - begun.start
        self.metrics.answered_by[settled.source].inc()
        self.metrics.answered(settled.part, settled.cut_short)
        if begun.unknown:
            self.metrics.unknown.inc()
        self._ledger.answered(latency)
        threshold = begun.threshold if self._ledger.varies else None
        label = self.bundle.manifest.classes[settled.verdict.class_index]
        result = Result.of(label, settled, cost, latency, threshold, begun.unknown)
        begun.future.set_result(result)
        return result
