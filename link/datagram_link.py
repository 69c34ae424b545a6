"""The link to a gateway: a datagram for each frame, no connection; every frame gets exactly one outcome.

Invariants:
- ``offload`` calls its callback exactly once per frame, within ``Pace.timeout``, whatever the carrier loses,
  doubles, delays or reorders.
- A request is sent again as the same bytes, at even distances, as often as its carrier is worth it; the
  gateway answers the same bytes with the same reply.
- A reply counts once, for a request that waits for it, after all checks of ``datagram.py``; and by a broker
  only with the CRC of that request. Whatever else comes is counted and dropped.
- Timeouts in a row open the breaker (``breaker.py``): without a gateway, images do not wait.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from offramp.common.codec.activation import CodecId
from offramp.common.errors import ConfigError, OfframpError, OutputError, PeerError, UnavailableError
from offramp.common.wire.datagram import (
    SEQUENCES,
    Datagrams,
    Reply,
    ReplyError,
    Seal,
    error_name,
    reply_sequence,
)
from offramp.common.wire.seal import read_key
from offramp.link.breaker import Breaker
from offramp.link.carrier import Carrier, correlation_of
from offramp.link.datagram_numbers import Numbers
from offramp.link.metrics import LinkMetrics
from offramp.link.outbox import LATE_MOST, Pace
from offramp.link.outcome import Answer, Cause, Outcome, Refusal
from offramp.link.session import Terms

log = logging.getLogger("offramp.link")

PASSING = frozenset((ReplyError.OVERLOADED, ReplyError.INTERNAL, ReplyError.EXPIRED, ReplyError.UNAVAILABLE))
"""Errors that say nothing of the frame: another time it may be answered."""


def outcome_of(
    reply: Reply, parts: int, message_bytes: float, wire_bytes: float, sends: int = 1
) -> Answer | Refusal:
    """What a reply says. parts: how many the bundle has; bytes: of each request that went out, and of it."""
    if reply.error:
        cause = Cause.UNAVAILABLE if reply.error in PASSING else Cause.REFUSED
        return Refusal(f"refused ({error_name(reply.error)})", cause, sends)
    return Answer(
        class_index=reply.class_index,
        probability=reply.confidence,
        server_seconds=None,
        message_bytes=message_bytes,
        wire_bytes=wire_bytes,
        sends=sends,
        part=reply.part or parts,
        fallback=reply.fallback,
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a device is to its gateway. number, key: both, or none, for datagrams without authentication."""

    number: int | None = None
    key: Seal | None = None


def identity_of(
    key_file: Path | str | None, number: int | None, sequence_file: Path | str | None
) -> Identity:
    """Of the flags of these names. Raises ConfigError where one of them is missing, or the key is not one."""
    if key_file is None:
        if number is not None or sequence_file is not None:
            raise ConfigError("--device-number and --sequence-file: expected --key-file with them")
        return Identity()
    if number is None or sequence_file is None:
        raise ConfigError("--key-file: expected --device-number and --sequence-file with it")
    return Identity(number, read_key("--key-file", key_file))


@dataclass(slots=True, eq=False)
class _Item:
    """One frame from ``offload`` to its outcome."""

    sequence: int
    codec: CodecId
    size: int
    datagram: bytes
    done: Callable[[Outcome], None]
    late: Callable[[Answer], None] | None
    start: float
    deadline: float
    behind: bool
    """Whether it is an audit: sent once, and no sign of the gateway's state if it is lost."""
    probe: bool = False
    sends: int = 0
    again_at: float = math.inf


class DatagramLink:
    """Frames to a gateway by one carrier, and their answers back. ``Link`` says what the arguments are."""

    def __init__(
        self,
        carrier: Carrier,
        terms: Terms,
        pace: Pace,
        metrics: LinkMetrics,
        *,
        numbers: Numbers,
        identity: Identity | None = None,
        failures: int = 5,
        meanwhile: str = "frames have no answer",
    ) -> None:
        self.failure: OfframpError | None = None
        self.wire = carrier
        self._carrier = carrier
        self._terms = terms
        self._pace = pace
        self._metrics = metrics
        self._numbers = numbers
        self._identity = identity or Identity()
        self._datagrams = Datagrams(terms.digest, terms.classes, terms.parts)
        self._meanwhile = meanwhile
        self._breaker = Breaker(failures)
        self._waiting: dict[int, _Item] = {}
        """Without an outcome, by the lower 16 bits of their number."""
        self._late: dict[int, _Item] = {}
        self._changed = threading.Condition()
        """For all that follows and the two above."""
        self._opened = self._closed = False
        self._warned = False
        self._timekeeper = threading.Thread(target=self._keep_time, name="offramp-datagrams", daemon=True)
        metrics.watch_wire(carrier.total)

    # --- what callers use ---

    @property
    def timeout(self) -> float:
        """How long a frame may take, at most, seconds."""
        return self._pace.timeout

    def offload(
        self,
        codec: CodecId,
        payload: bytes,
        done: Callable[[Outcome], None],
        *,
        late: Callable[[Answer], None] | None = None,
        background: bool = False,
        behind: bool = False,
        deadline: float | None = None,
        trace: bytes = b"",
    ) -> None:
        """Send one frame; see ``Link.offload``. A trace is not sent: it would be longer than the code."""
        start = time.monotonic()
        due = start + self.timeout if deadline is None else deadline
        refusal: Refusal | None
        with self._changed:
            refusal = self._open(due - start) or self._admit(due, background or behind)
            if refusal is None:
                made = self._make(codec, payload)
                if isinstance(made, Refusal):
                    refusal = made
                else:
                    sequence, datagram = made
                    low = sequence % SEQUENCES
                    item = _Item(sequence, codec, len(payload), datagram, done, late, start, due, behind)
                    item.probe = not behind and self._breaker.take()
                    self._late.pop(low, None)
                    self._waiting[low] = item
                    refusal = self._send(item, start)
                    if refusal is not None:
                        del self._waiting[low]
                        if item.probe:
                            self._breaker.release()
                    self._changed.notify_all()
        if refusal is not None:
            if not background and not behind:
                self._metrics.unanswered.labels(refusal.cause).inc()
            done(refusal)

    def wait_idle(self) -> None:
        """Wait until every frame has its outcome; each has one within its timeout."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)

    def late_replies_due(self) -> bool:
        """Whether a frame that has its outcome may still be answered."""
        with self._changed:
            return bool(self._late)

    def close(self, wait: bool = True) -> None:
        """Give outstanding frames their outcome and stop. wait: for the gateway's replies to them."""
        if wait:
            self.wait_idle()
        with self._changed:
            self._closed = True
            lost = list(self._waiting.values())
            self._waiting.clear()
            self._changed.notify_all()
            started = self._opened
        if started:
            self._carrier.close()
            self._timekeeper.join()
        self._numbers.close()
        for item in lost:
            self._refuse(item, Refusal("closed", Cause.CLOSED, item.sends))

    # --- a frame comes in, under the lock ---

    def _open(self, seconds: float) -> Refusal | None:
        """The carrier is opened with the first frame, as a link connects with its first."""
        if self._closed:
            return Refusal("closed", Cause.CLOSED)
        if not self._opened:
            try:
                self._carrier.open(self._received, seconds)
            except OfframpError as error:
                self.failure = error
                return Refusal(str(error), Cause.UNAVAILABLE)
            self._opened = True
            self._timekeeper.start()
        return None

    def _admit(self, deadline: float, gives_way: bool) -> Refusal | None:
        window = max(1, self._pace.window // 2) if gives_way else self._pace.window
        while True:
            now = time.monotonic()
            if not self._breaker.allows(now) or (gives_way and self._breaker.is_open):
                return Refusal(f"waits for a probe to succeed: {self._breaker.reason}", Cause.BREAKER)
            if len(self._waiting) < window:
                return None
            if gives_way or not self._pace.waits or now >= deadline:
                return Refusal("gives way" if gives_way else "window full", Cause.WINDOW)
            self._changed.wait(deadline - now)
            if self._closed:
                return Refusal("closed", Cause.CLOSED)

    def _make(self, codec: CodecId, payload: bytes) -> tuple[int, bytes] | Refusal:
        if codec is CodecId.PICTURE:
            return Refusal(f"{self._carrier.target} takes no pictures", Cause.PICTURE)
        try:
            sequence = self._numbers.take()
            while sequence % SEQUENCES in self._waiting:
                sequence = self._numbers.take()
            key, number = self._identity.key, self._identity.number
            return sequence, self._datagrams.request(sequence, codec, payload, number, key)
        except (ConfigError, OutputError) as error:
            self.failure = error
            return Refusal(str(error), Cause.UNAVAILABLE)

    def _send(self, item: _Item, now: float) -> Refusal | None:
        """Send or send again; why it cannot be."""
        item.sends += 1
        trouble = self._carrier.send(item.datagram, item.deadline - now)
        if trouble is not None:
            item.sends -= 1
            self._fail(UnavailableError(trouble))
            return Refusal(trouble, Cause.UNAVAILABLE, item.sends)
        metrics = self._metrics
        metrics.payload_bytes.inc(item.size)
        metrics.raw_activation_bytes.inc(self._terms.raw_bytes)
        metrics.message_bytes_sent.inc(len(item.datagram))
        if item.behind:
            metrics.audit_bytes.inc(item.size)
        if item.sends > 1:
            metrics.frames_resent.inc()
        left = 0 if item.behind else self._carrier.tries - item.sends
        item.again_at = math.inf if not left else now + (item.deadline - now) / (left + 1)
        return None

    def _fail(self, error: OfframpError) -> None:
        if not self._warned:
            log.warning("%s; %s", error, self._meanwhile)
        self._warned = True
        self.failure = error

    # --- a reply comes in ---

    def _received(self, data: bytes, correlation: bytes | None) -> None:
        """On the carrier's thread. What is not a reply to one of our requests is no reason to stop."""
        self._metrics.message_bytes_received.inc(len(data))
        now = time.monotonic()
        try:
            low = reply_sequence(data)
            with self._changed:
                item = self._waiting.get(low) or self._late.get(low)
            if item is None or (correlation is not None and correlation != correlation_of(item.datagram)):
                self._metrics.late_replies.inc()
                return
            key, number = self._identity.key, self._identity.number
            reply = self._datagrams.read_reply(data, item.sequence, number, key)
        except PeerError as error:
            self._metrics.frames_refused.labels("reply").inc()
            log.debug("%s sent what is not a reply: %s", self._carrier.target, error)
            return
        with self._changed:
            waited = self._waiting.get(low) is item
            if waited:
                del self._waiting[low]
            elif self._late.get(low) is item:
                del self._late[low]
            else:  # a double came between
                self._metrics.late_replies.inc()
                return
            self._judge(item, reply, now, waited)
            self._changed.notify_all()
        self._settle(item, reply, len(data), now, waited)

    def _judge(self, item: _Item, reply: Reply, now: float, waited: bool) -> None:
        """What a reply says of the gateway."""
        if reply.error in PASSING:
            if waited:
                self._breaker.failure(now, f"refused ({error_name(reply.error)})", item.probe)
        elif waited and self._breaker.success() | self._warned:
            self._warned = False
            log.info("%s answers", self._carrier.target)
        self._metrics.breaker_open.set(self._breaker.is_open)

    def _settle(self, item: _Item, reply: Reply, size: int, now: float, waited: bool) -> None:
        if not waited:
            self._metrics.late_replies.inc()
        both = len(item.datagram) * item.sends + size
        envelope = self._carrier.envelope(item.datagram) * item.sends
        answer = outcome_of(reply, self._terms.parts, both, both + envelope, item.sends)
        if isinstance(answer, Refusal):
            self._metrics.frames_refused.labels(error_name(reply.error)).inc()
            if waited:
                self._refuse(item, answer)
            return
        if not waited:
            if item.late is not None:
                item.late(answer)
            return
        if not item.behind:
            self._metrics.round_trip_seconds.observe(now - item.start)
        item.done(answer)

    def _refuse(self, item: _Item, refusal: Refusal) -> None:
        if not item.behind:
            self._metrics.unanswered.labels(refusal.cause).inc()
        item.done(refusal)

    # --- time ---

    def _keep_time(self) -> None:
        while True:
            ended: list[Callable[[], None]] = []
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                for low, item in list(self._waiting.items()):
                    if item.deadline <= now:
                        del self._waiting[low]
                        late = Refusal("no reply in time", Cause.TIMEOUT, item.sends)
                        ended.append(partial(self._refuse, item, late))
                        self._overdue(low, item, now)
                    elif item.again_at <= now:
                        self._send(item, now)  # where it cannot be, the deadline still holds
                if ended:
                    self._changed.notify_all()
                else:
                    due = [min(each.deadline, each.again_at) for each in self._waiting.values()]
                    self._changed.wait(max(0.0, min(due) - now) if due else None)
            for end in ended:
                end()

    def _overdue(self, low: int, item: _Item, now: float) -> None:
        if not item.behind:
            self._breaker.failure(now, f"{self._carrier.target} does not answer", item.probe)
            self._metrics.breaker_open.set(self._breaker.is_open)
            self._fail(UnavailableError(f"{self._carrier.target} does not answer"))
        if item.late is not None:
            self._late[low] = item
            if len(self._late) > LATE_MOST:
                del self._late[next(iter(self._late))]
