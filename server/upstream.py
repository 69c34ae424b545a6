"""The upstream servers: where what a part is unsure of goes, and how the link to them is made."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.common.bundle.load import Bundle
from offramp.common.wire.address import split_address
from offramp.link.link import Link, Pace, Terms
from offramp.link.security import Security
from offramp.server.forward import Forward, ForwardMetrics, Middle
from offramp.server.metrics import ServerMetrics
from offramp.server.settings import ServerSettings

FLAG = "--upstream"


@dataclass(frozen=True)
class Upstream:
    """Makes the next hop of a part; all of them have their counts in ``metrics``."""

    servers: tuple[str, ...]
    pace: Pace
    breaker: int
    security: Security
    metrics: ForwardMetrics
    prefer_first: bool = False

    @classmethod
    def of(cls, settings: ServerSettings, metrics: ServerMetrics) -> Upstream | None:
        """What the command line says; None without ``--upstream``. Raises ConfigError."""
        if not settings.upstream:
            return None
        security = Security.of(settings, "upstream-", FLAG)
        for address in settings.upstream:
            security.check(split_address(FLAG, address)[0], settings.upstream_insecure)
        pace = Pace(settings.upstream_timeout, settings.upstream_window, waits=False)
        made = ForwardMetrics(metrics.registry)
        prefer = settings.upstream_prefer_first
        return cls(tuple(settings.upstream), pace, settings.upstream_breaker, security, made, prefer)

    def forward(self, bundle: Bundle, middle: Middle) -> Forward:
        """The next hop of this part; it connects with its first frame."""
        link = Link(
            self.servers,
            Terms.of(bundle, middle.number + 1, deadlines=True),
            self.pace,
            self.metrics.link,
            prefer_first=self.prefer_first,
            failures=self.breaker,
            security=self.security,
            meanwhile="this part's exit answers",
        )
        return Forward(middle, link, self.pace.window, self.metrics)
