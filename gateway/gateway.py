"""The gateway's whole flow: datagram → pieces together → checks → lane → stream; answer → reply.

    door ── bytes ──▶ take ── refused: counted, no reply
                       ├───── again: the same reply once more, where there is one
                       └───── new ──▶ lane ──▶ server ──▶ reply ──▶ the door that it came by

Rules this module keeps:
- A request is forwarded once. The same bytes again get the same reply, or another try after an error that
  says nothing of them; with a key, a number that was used with other bytes is refused.
- Nothing is answered that was not checked to its last byte, and a reply is 7 … 17 bytes: nobody gets much by
  little.
- Memory is bounded: pieces, requests and replies that are kept for doubles.
- Labels of metrics are the names of listed devices alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from offramp.common.codec.activation import CodecId
from offramp.common.errors import (
    AccessError,
    ChecksumError,
    CodecError,
    ConfigError,
    MismatchError,
    OfframpError,
    OutputError,
    PeerError,
)
from offramp.common.wire.datagram import (
    Datagrams,
    Head,
    Kind,
    Reply,
    ReplyError,
    Request,
    error_name,
    kind_of,
    read_head,
)
from offramp.common.wire.fragments import Assembler
from offramp.gateway.devices import Known
from offramp.gateway.lane import Job, Lane
from offramp.gateway.metrics import UNLISTED, GatewayMetrics
from offramp.gateway.state import State
from offramp.gateway.window import Window
from offramp.link.backoff import Sparingly
from offramp.link.datagram_link import PASSING
from offramp.link.outcome import Answer

log = logging.getLogger("offramp.gateway")

RECENT_MOST = 8192
"""Requests whose replies are kept for doubles."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Where a datagram came from, and how its reply goes back. door: as metrics call it."""

    door: str
    address: Hashable
    answer: Callable[[bytes], bool]
    """Sends one datagram; whether it could."""


@dataclass(frozen=True, slots=True)
class Route:
    """One bundle: its datagrams and its way to the server."""

    name: str
    datagrams: Datagrams
    lane: Lane


@dataclass(slots=True)
class _Recent:
    """One request that was taken."""

    print_: bytes
    """A short hash of its bytes."""
    sender: Sender
    reply: bytes | None = None
    failed: bool = False
    """It got an error that says nothing of it: the same bytes may be asked again."""


class Gateway:
    """Takes datagrams from any thread.

    devices: by number; None: no keys. Raises ConfigError for two bundles whose digests begin alike.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        devices: Mapping[int, Known] | None,
        state: State,
        metrics: GatewayMetrics,
        *,
        hold: float = 60.0,
        recent_most: int = RECENT_MOST,
    ) -> None:
        self._routes: dict[bytes, Route] = {}
        for route in routes:
            other = self._routes.setdefault(route.datagrams.short_digest, route)
            if other is not route:
                raise ConfigError(
                    f"--bundle: the digests of {other.name} and {route.name} begin alike, expected a gateway "
                    "for each"
                )
        self._devices = devices
        self._state = state
        self._metrics = metrics
        self._hold = hold
        self._recent_most = recent_most
        self._lock = threading.Lock()
        """For all that follows."""
        self._assembler = Assembler()
        self._given_up = 0
        self._recent: OrderedDict[tuple[Hashable, int], _Recent] = OrderedDict()
        self._said: defaultdict[str, Sparingly] = defaultdict(Sparingly)
        """By reason."""
        metrics.watch(self.waiting, lambda: self._assembler.waiting_bytes)

    def waiting(self) -> int:
        """Requests without a reply yet."""
        return sum(len(route.lane) for route in self._routes.values())

    def take(self, sender: Sender, data: bytes) -> None:
        """One datagram, or a piece of one. It raises nothing and waits for nothing."""
        self._metrics.received_bytes.labels(sender.door).inc(len(data))
        now = time.monotonic()
        name = UNLISTED
        try:
            if kind_of(data) is Kind.FRAGMENT:
                with self._lock:
                    whole = self._assembler.add((sender.door, sender.address), data, now)
                    lost = self._assembler.given_up - self._given_up
                    self._given_up += lost
                self._metrics.fragments_lost.inc(lost)
                if whole is None:
                    return
                data = whole
            head = read_head(data)
            known = self._known(head)
            name = UNLISTED if known is None else known.name
            route = self._routes.get(head.short_digest)
            if route is None:
                self._refuse(name, "bundle", f"bundle {head.short_digest.hex()}… is not one of this gateway")
                return
            request = route.datagrams.read_request(data, None if known is None else known.key)
            if request.codec is CodecId.PICTURE:
                raise CodecError("a picture, expected an activation")
            self._admit(sender, data, request, route, known, now)
        except _Refused as refused:
            self._refuse(name, refused.reason, str(refused))
        except PeerError as error:
            self._refuse(name, _reason_of(error), str(error))
        except OutputError as error:
            self._refuse(name, "state", str(error))

    # --- checks ---

    def _known(self, head: Head) -> Known | None:
        if self._devices is None:
            if head.device is not None:
                raise _Refused("unknown", f"device {head.device}, expected --devices to have its key")
            return None
        if head.device is None:
            raise _Refused("plain", "a datagram without authentication, expected one with a key")
        known = self._devices.get(head.device)
        if known is None:
            raise _Refused("unknown", f"device {head.device} is not in the list")
        return known

    def _admit(
        self,
        sender: Sender,
        data: bytes,
        request: Request,
        route: Route,
        known: Known | None,
        now: float,
    ) -> None:
        """A request that is whole and its device's: forward it, unless it came before."""
        name = UNLISTED if known is None else known.name
        who: Hashable = (sender.door, sender.address) if known is None else known.number
        key, print_ = (who, request.sequence), hashlib.blake2b(data, digest_size=8).digest()
        again: bytes | None = None
        with self._lock:
            recent = self._recent.get(key)
            doubled = recent is not None and recent.print_ == print_
            if recent is not None and doubled:
                # The device may have another address by now.
                recent.sender = sender
                again = recent.reply
                doubled, recent.failed = not recent.failed, False
            else:
                if known is not None:
                    window = self._state.windows.get(known.number, Window())
                    if not window.is_new(request.sequence):
                        raise _Refused("replay", f"{name} used number {request.sequence} before")
                    self._state.take(known.number, request.sequence)
                self._recent[key] = _Recent(print_, sender)
                self._recent.move_to_end(key)
                if len(self._recent) > self._recent_most:
                    self._recent.popitem(last=False)
        if doubled:
            self._metrics.doubled.labels(name).inc()
            if again is not None:
                self._answer(sender, again)
            return
        self._metrics.requests.labels(name).inc()
        done = partial(self._done, key, print_, sender, request, route, known)
        route.lane.put(Job(request.codec, request.payload, done, now + self._hold))

    # --- replies ---

    def _done(
        self,
        key: tuple[Hashable, int],
        print_: bytes,
        sender: Sender,
        request: Request,
        route: Route,
        known: Known | None,
        outcome: Answer | ReplyError,
    ) -> None:
        """On a lane's or a link's thread."""
        name = UNLISTED if known is None else known.name
        if isinstance(outcome, Answer):
            self._metrics.answers.labels(name).inc()
            reply = Reply(
                request.sequence,
                outcome.class_index,
                outcome.probability,
                outcome.part,
                outcome.fallback,
            )
        else:
            self._metrics.errors.labels(name, error_name(outcome)).inc()
            reply = Reply(request.sequence, error=outcome)
        seal, salt = None if known is None else known.key, os.urandom(2)
        data = route.datagrams.reply(reply, request.device, seal, salt)
        with self._lock:
            recent = self._recent.get(key)
            if recent is not None and recent.print_ == print_:
                sender = recent.sender
                recent.failed = not isinstance(outcome, Answer) and outcome in PASSING
                recent.reply = None if recent.failed else data
        self._answer(sender, data)

    def _answer(self, sender: Sender, data: bytes) -> None:
        if sender.answer(data):
            self._metrics.sent_bytes.labels(sender.door).inc(len(data))
        else:
            self._metrics.unsent.labels(sender.door).inc()

    # --- what is refused ---

    def _refuse(self, name: str, reason: str, text: str) -> None:
        self._metrics.refused.labels(name, reason).inc()
        with self._lock:
            due = self._said[reason].due(time.monotonic())
        log.log(logging.WARNING if due else logging.DEBUG, "refused (%s): %s", reason, text)


class _Refused(OfframpError):
    """A datagram that gets no reply."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def _reason_of(error: PeerError) -> str:
    """As metrics call it."""
    if isinstance(error, AccessError):
        return "forged"
    if isinstance(error, ChecksumError):
        return "checksum"
    if isinstance(error, MismatchError):
        return "version"
    return "codec" if isinstance(error, CodecError) else "malformed"
