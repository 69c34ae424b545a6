"""Datagrams that the caller carries: an unsure input becomes bytes, and the reply's bytes its result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from offramp.common.bundle.load import Bundle
from offramp.common.errors import PeerError, SequenceError
from offramp.common.inputs.prepare import prepare
from offramp.common.wire.datagram import SEQUENCES, Datagrams, error_name, reply_sequence
from offramp.device.head import EarlyExit
from offramp.device.image import Begun
from offramp.device.inputs import Input
from offramp.device.inquiry import Inquiry, Settled, Verdict
from offramp.device.ledger import Cost
from offramp.device.lifetime import Lifetime
from offramp.device.metrics import DeviceMetrics
from offramp.device.result import Result
from offramp.link.datagram_link import Identity, outcome_of
from offramp.link.datagram_numbers import Numbers
from offramp.link.outcome import Cause, Outcome, Refusal

OPEN_MOST = 1024
"""Datagrams whose reply is waited for, at most; the oldest is forgotten first."""


@dataclass(slots=True)
class _Open:
    """An input from its datagram to its reply."""

    sequence: int
    datagram: bytes
    size: int
    inquiry: Inquiry
    begun: Begun


class DatagramDesk:
    """Writes datagrams and reads replies, for one device; from any thread.

    steps: the device's own: run the head on a prepared input; T_c for an input now; the result of one that is
    settled.
    """

    def __init__(
        self,
        bundle: Bundle,
        identity: Identity,
        numbers: Numbers,
        metrics: DeviceMetrics,
        steps: tuple[
            Callable[[Input], EarlyExit], Callable[[], float], Callable[[Begun, Cost, Settled], Result]
        ],
    ) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._identity = identity
        self._numbers = numbers
        self._metrics = metrics
        self._head, self._steer, self._finish = steps
        self._parts = len(manifest.parts)
        self._datagrams = Datagrams(bundle.digest, len(manifest.classes), self._parts)
        self._lock = threading.Lock()
        self._open: dict[int, _Open] = {}

    def encode(self, given: Input) -> Result | bytes:
        """See ``Device.encode``."""
        start = time.perf_counter()
        manifest = self._bundle.manifest
        image = prepare(given, manifest.input, "")
        decode_seconds = time.perf_counter() - start if image is not given else 0.0
        exit_ = self._head(image)
        threshold = self._steer()
        self._metrics.drift.count(exit_, threshold)
        begun = Begun(Future(), start, threshold, exit_.unknown, None)
        own = Verdict(exit_.class_index, exit_.confidence)
        if exit_.is_confident(threshold):
            return self._finish(begun, Cost(decode_seconds=decode_seconds), Settled("early_exit", own))
        codec, payload = self._bundle.codec.encode(exit_.symbols)
        early = exit_.probabilities.tobytes() if manifest.sent_answer == "both" else b""
        inquiry = Inquiry(own, early, len(manifest.classes), decode_seconds=decode_seconds)
        with self._lock:
            sequence = self._numbers.take()
            key, number = self._identity.key, self._identity.number
            datagram = self._datagrams.request(sequence, codec, payload, number, key)
            self._open.pop(sequence % SEQUENCES, None)
            self._open[sequence % SEQUENCES] = _Open(sequence, datagram, len(payload), inquiry, begun)
            if len(self._open) > OPEN_MOST:
                del self._open[next(iter(self._open))]
        self._metrics.link.payload_bytes.inc(len(payload))
        self._metrics.link.message_bytes_sent.inc(len(datagram))
        return datagram

    def resolve(self, data: bytes) -> Result:
        """See ``Device.resolve``."""
        low = reply_sequence(data)
        key, number = self._identity.key, self._identity.number
        with self._lock:
            waiting = self._open.get(low)
            if waiting is None:
                raise SequenceError(f"a reply to datagram {low}, expected one that waits for its reply")
            reply = self._datagrams.read_reply(data, waiting.sequence, number, key)
            del self._open[low]
        self._metrics.link.message_bytes_received.inc(len(data))
        if reply.error:
            self._metrics.link.frames_refused.labels(error_name(reply.error)).inc()
        both = len(waiting.datagram) + len(data)
        return self._settle(waiting, outcome_of(reply, self._parts, both, both))

    def give_up(self, datagram: bytes) -> Result:
        """See ``Device.give_up``."""
        with self._lock:
            found = next((low for low, each in self._open.items() if each.datagram == datagram), None)
            if found is None:
                raise SequenceError("a datagram that does not wait for a reply, expected one that does")
            waiting = self._open.pop(found)
        self._metrics.link.unanswered.labels(Cause.TIMEOUT).inc()
        return self._settle(waiting, Refusal("no reply in time", Cause.TIMEOUT, 1))

    def _settle(self, waiting: _Open, outcome: Outcome) -> Result:
        step = waiting.inquiry.replied(waiting.size, outcome, may_ask=False)
        if not isinstance(step, Settled):
            raise PeerError("a reply that asks for a picture, expected an answer")
        return self._finish(waiting.begun, waiting.inquiry.cost, step)


class Connectionless:
    """The calls of a device whose caller carries the datagrams."""

    _desk: DatagramDesk
    _lifetime: Lifetime

    def encode(self, image: Input) -> Result | bytes:
        """One image: its result if it takes the early exit, else a datagram for a gateway, in one piece.

        image: as ``submit`` takes it. The datagram's bytes may be sent again, and go in pieces where the link
        needs them (``offramp.common.wire.fragments``). Its result is what ``resolve`` or ``give_up`` returns;
        of over 1,024 that wait the oldest are forgotten. Neither audits nor samples are made. Raises as
        ``submit``, and OutputError where the sequence file cannot be written.
        """
        return self._lifetime.within(self._desk.encode, image)

    def resolve(self, reply: bytes) -> Result:
        """The result of an encoded image by the gateway's reply: the server's, or a ``fallback``.

        Raises PeerError for what is not the one reply to a datagram that waits; that goes on waiting.
        """
        return self._lifetime.within(self._desk.resolve, reply)

    def give_up(self, datagram: bytes) -> Result:
        """The result of an encoded image that got no reply: a ``fallback``. Raises PeerError."""
        return self._lifetime.within(self._desk.give_up, datagram)
