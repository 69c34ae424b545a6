"""Which of a device's servers is next, without clocks or threads of its own.

Rules:
- The first one that is named is tried first. A device stays with the server that works; it goes on to the
  next, in order and round again, when a stream ends or its breaker opens.
- Passed over is one that asked to be left alone for some time, or whose breaker is open, as long as another
  has neither.
- A round is over once every server has failed since the last one that worked. Until then frames wait for
  the next one, and nothing is waited for longer than the first pause.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offramp.common.wire.address import split_address
from offramp.link.breaker import Breaker


@dataclass(eq=False, slots=True)
class Server:
    """One address, and what is remembered of it."""

    target: str
    breaker: Breaker
    away_until: float = 0.0
    """It asked for no new stream before then; monotonic, seconds."""
    worked_at: float = -math.inf
    """When a stream to it that was of use ended; monotonic, seconds."""
    told: type[Exception] | None = None
    """The kind of failure that was last warned of; None once it has answered a frame since."""


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
        self.current = self._all[0]

    @property
    def opens(self) -> int:
        """How often any of their breakers was opened."""
        return sum(server.breaker.opens for server in self._all)

    @property
    def round_is_over(self) -> bool:
        """Whether all of them have failed since one last worked."""
        return self._failed >= len(self._all)

    @property
    def going_round(self) -> bool:
        """Whether one has failed, and another was not tried since one last worked."""
        return 0 < self._failed < len(self._all)

    def worked(self) -> None:
        """A stream to one of them was of use."""
        self._failed = 0

    def failed(self) -> None:
        """A stream to one of them was not."""
        self._failed += 1

    def go_on(self, now: float) -> bool:
        """Make the next one the current one; whether that is another than before."""
        before = self.current
        place = self._all.index(before)
        following = self._all[place + 1 :] + self._all[: place + 1]
        ready = (server for server in following if server.away_until <= now and server.breaker.allows(now))
        asked = min(following, key=lambda server: max(server.away_until, now))
        self.current = next(ready, asked)
        return self.current is not before

    def better(self, now: float) -> bool:
        """Whether another one may take frames now, while the current one's breaker is open."""
        return self.current.breaker.is_open and any(
            server is not self.current and server.away_until <= now and not server.breaker.is_open
            for server in self._all
        )
