"""Which of a link's servers is next, and what the end of a stream means. Pure: no clock, no thread.

Rules:
- The first one that is named is tried first. A link stays with the server that works; it goes on to the
  next, in order and round again, when a stream ends or its breaker opens.
- Passed over is one that asked to be left alone for some time, or whose breaker is open, as long as another
  has neither.
- With an order of preference (``preference.py``), a link goes back to one before the current one once that
  takes streams again.
- A round is over once every server has failed since the last one that worked. Until then frames wait for
  the next one, and nothing is waited for longer than the first pause.
- A stream worked if its server accepted it and nobody broke the protocol; not if the server fell silent
  without a reply, nor after ``FRUITLESS`` streams in a row that were of no use. Then frames wait for the next
  stream as well.
- A failure is a warning once a kind and server, until the server has answered a frame again. Later ones of a
  stream that worked, or of a server that was away for less than ``BRIEF_SECONDS``, are said now and then.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offramp.common.errors import OfframpError, UnavailableError
from offramp.common.wire.address import split_address
from offramp.link.backoff import Sparingly
from offramp.link.breaker import Breaker

BRIEF_SECONDS = 1.0
"""A server that is away for no longer is not worth a warning."""
FRUITLESS = 3
"""Streams in a row, accepted and broken without a reply, after which frames do not wait for the next."""


@dataclass(eq=False, slots=True)
class Server:
    """One address, and what is remembered of it."""

    target: str
    breaker: Breaker
    away_until: float = 0.0
    """It asked for no new stream before then; monotonic, seconds."""
    worked_at: float = -math.inf
    """When a stream to it that was of use ended; monotonic, seconds."""
    warned_of: type[Exception] | None = None
    """The kind of failure that was last warned of; None once it has answered a frame since."""


@dataclass(frozen=True, slots=True)
class End:
    """How a stream ended.

    error: None if both sides agreed to end it. accepted: whether the server had accepted it. useful: whether
    it was of use (``Session.of_use``). silent: whether we ended it without having had a reply. waiting:
    whether a frame has no outcome yet.
    """

    error: OfframpError | None
    accepted: bool
    useful: bool
    silent: bool
    waiting: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the end of a stream means."""

    worked: bool
    another: bool
    """It did not work, and another server, which has not failed yet, is next."""
    level: int
    """Of the log's line about it."""

    @property
    def waits(self) -> bool:
        """Whether frames wait for the next stream."""
        return self.worked or self.another


class Servers:
    """The servers in their order, and the one that is in use or next.

    addresses: HOST:PORT each, at least one. failures: see ``Breaker``. Raises ConfigError for what is no
    address.
    """

    def __init__(
        self, addresses: Sequence[str], failures: int, draw: Callable[[], float] = random.random
    ) -> None:
        for address in addresses:
            split_address("--server", address)
        self._all = [Server(address, Breaker(failures, draw)) for address in addresses]
        self._failed = 0
        self._opens_counted = 0
        self._breaks = Sparingly()
        self.fruitless = 0
        """Accepted streams in a row that broke and were of no use."""
        self.current = self._all[0]

    def new_opens(self) -> int:
        """How often their breakers were opened since this was last asked."""
        opens = sum(server.breaker.opens for server in self._all)
        fresh, self._opens_counted = opens - self._opens_counted, opens
        return fresh

    @property
    def is_first(self) -> bool:
        """Whether the current one is the first."""
        return self.current is self._all[0]

    @property
    def round_is_over(self) -> bool:
        """Whether all of them have failed since one last worked."""
        return self._failed >= len(self._all)

    @property
    def going_round(self) -> bool:
        """Whether one has failed, and another was not tried since one last worked."""
        return 0 < self._failed < len(self._all)

    def ended(self, server: Server, end: End, now: float, down: bool) -> Verdict:
        """A stream to this one ended. down: whether the link had failed already before this stream."""
        error = end.error
        self.fruitless = 0 if end.useful else self.fruitless + (error is not None and end.accepted)
        passing = error is None or type(error) is UnavailableError
        worked = end.accepted and passing and not end.silent and self.fruitless < FRUITLESS
        missed = end.waiting and not worked
        brief = type(error) is UnavailableError and now - server.worked_at < BRIEF_SECONDS and not missed
        if worked:
            server.worked_at = now
            self._failed = 0
        else:
            self._failed += 1
        news = error is not None and type(error) is not server.warned_of and not brief
        if error is not None:
            if end.useful:
                server.warned_of = None
            if news and not worked:
                server.warned_of = type(error)
        level = logging.WARNING if news else logging.DEBUG
        if error is not None and (worked or brief) and self._breaks.due(now):
            level = logging.INFO
        elif worked:
            level = logging.DEBUG
        return Verdict(worked, not worked and not down and not self.round_is_over, level)

    def go_on(self, now: float) -> bool:
        """Make the next one the current one; whether that is another than before."""
        before = self.current
        place = self._all.index(before)
        following = self._all[place + 1 :] + self._all[: place + 1]
        ready = (server for server in following if server.away_until <= now and server.breaker.allows(now))
        asked = min(following, key=lambda server: max(server.away_until, now))
        self.current = next(ready, asked)
        return self.current is not before

    def preferred(self, now: float) -> list[Server]:
        """Those before the current one that may be asked now whether they take streams."""
        before = self._all[: self._all.index(self.current)]
        return [each for each in before if each.away_until <= now and each.breaker.allows(now)]

    def better(self, now: float) -> bool:
        """Whether another one may take frames now, while the current one's breaker is open."""
        return self.current.breaker.is_open and any(
            server is not self.current and server.away_until <= now and not server.breaker.is_open
            for server in self._all
        )
