"""The device's whole flow: image → head → early exit → encode → link → result.

>>> with Device(load_bundle("models/digits-mobilenetv2-exit12"), server="127.0.0.1:50051") as device:
...     future = device.submit(image)  # uint8 [3, H, W]
...     print(future.result().label)
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle import Bundle
from offramp.common.config import require_secure, split_address
from offramp.common.engine import Engine
from offramp.common.errors import ExitCode, OfframpError
from offramp.common.telemetry import timed
from offramp.device.head import EarlyExit, run_head
from offramp.device.link import Answer, Link, Outcome
from offramp.device.metrics import DeviceMetrics
from offramp.device.wire_bytes import WireBytes

Source = Literal["early_exit", "server", "fallback"]


@dataclass(frozen=True, slots=True)
class Result:
    """The one answer to one image. Byte figures are 0 for an image that was not sent."""

    label: str
    class_index: int
    confidence: float
    """Softmax probability of the class, by whoever answered."""
    source: Source
    latency_seconds: float
    """From handing the image in to its answer."""
    payload_bytes: int
    """The coded activation, sent."""
    message_bytes: float
    """Share of the serialized protobuf messages, both directions."""
    wire_bytes: float
    """The same with gRPC prefix and HTTP/2 DATA header."""
    reason: str | None
    """Why a ``fallback`` is one."""


class Device:
    """One bundle's head, its early exit and the link to a server.

    server: HOST:PORT. threshold: T_c, by default the bundle's. timeout: seconds an image waits for the
    server. window: unanswered frames at most. insecure: allow plaintext beyond this machine.

    Raises BundleError for a head that is not what the manifest says, ConfigError for a wrong address.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        server: str,
        threshold: float | None = None,
        timeout: float = 2.0,
        window: int = 16,
        threads: int = 1,
        insecure: bool = False,
    ) -> None:
        host, port = split_address("--server", server)
        require_secure("--server", host, insecure)
        self.bundle = bundle
        self.threshold = bundle.manifest.threshold if threshold is None else threshold
        self.metrics = DeviceMetrics(bundle)
        self.metrics.threshold.set(self.threshold)
        self._codec = bundle.codec
        self._engine = Engine(bundle, threads)
        self._engine.load_head()
        self._link = Link(
            server,
            port,
            bundle.digest,
            len(bundle.manifest.classes),
            self._codec.raw_bytes,
            self.metrics,
            timeout=timeout,
            window=window,
        )

    def submit(self, image: NDArray[np.uint8]) -> Future[Result]:
        """Start one image, uint8 [3, H, W]. The future is done at once if it takes the early exit.

        It blocks while the window is full. The future never fails: without the server the early exit
        answers, as ``fallback``.
        """
        start = time.perf_counter()
        future: Future[Result] = Future()
        with timed(self.metrics.stage_seconds.labels("head")):
            exit_ = run_head(self._engine, image)
        if exit_.is_confident(self.threshold):
            self._finish(future, start, exit_, "early_exit")
            return future
        with timed(self.metrics.stage_seconds.labels("encode")):
            codec, payload = self._codec.encode(exit_.symbols)

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Answer):
                self._finish(future, start, exit_, "server", len(payload), outcome)
            else:
                sent = len(payload) if outcome.sent else 0
                self._finish(future, start, exit_, "fallback", sent, reason=outcome.reason)

        self._link.offload(codec, payload, done)
        return future

    def infer(self, image: NDArray[np.uint8]) -> Result:
        """One image, uint8 [3, H, W], and its result; at most ``timeout`` later."""
        return self.submit(image).result()

    def wire_bytes(self) -> WireBytes | None:
        """What the connection has sent and received so far; None where the system cannot tell."""
        return self._link.wire.total()

    @property
    def failure(self) -> OfframpError | None:
        """Why the link was last down; None if it never was."""
        return self._link.failure

    def close(self) -> None:
        """Wait for what is under way and end the connection."""
        self._link.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(
        self,
        future: Future[Result],
        start: float,
        exit_: EarlyExit,
        source: Source,
        payload_bytes: int = 0,
        answer: Answer | None = None,
        reason: str | None = None,
    ) -> None:
        best = exit_.class_index if answer is None else answer.class_index
        self.metrics.images.labels(source).inc()
        future.set_result(
            Result(
                label=self.bundle.manifest.classes[best],
                class_index=best,
                confidence=exit_.confidence if answer is None else answer.probability,
                source=source,
                latency_seconds=time.perf_counter() - start,
                payload_bytes=payload_bytes,
                message_bytes=0.0 if answer is None else answer.message_bytes,
                wire_bytes=0.0 if answer is None else answer.wire_bytes,
                reason=reason,
            )
        )


def exit_code(fallbacks: int, unreadable: int, failure: OfframpError | None) -> ExitCode:
    """What a run's exit status tells: the worst of what happened to its images."""
    if fallbacks:
        return ExitCode.UNAVAILABLE if failure is None else failure.exit_code
    return ExitCode.DATA if unreadable else ExitCode.OK
