"""The gateway's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from offramp.link.metrics import LinkMetrics

PREFIX = "offramp_gateway"
UNLISTED = "unlisted"
"""The label of every device that is not in the gateway's list: strangers choose no label."""


class GatewayMetrics:
    """Of one gateway, and of its links to the server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.link = LinkMetrics(self.registry, PREFIX)
        self.requests = self._counter("requests", "Requests taken, once each.", ["device"])
        self.answers = self._counter("answers", "Requests that the server answered.", ["device"])
        self.errors = self._counter(
            "errors", "Requests that got an error for a reply, by error.", ["device", "error"]
        )
        self.doubled = self._counter(
            "doubled", "Requests that came again, and were not forwarded again.", ["device"]
        )
        self.refused = self._counter(
            "refused", "Datagrams refused without a reply, by reason.", ["device", "reason"]
        )
        self.fragments_lost = self._counter(
            "fragments_lost", "Datagrams given up because a piece did not come.", []
        )
        self.received_bytes = self._counter("received_bytes", "Datagrams received, bytes.", ["door"])
        self.sent_bytes = self._counter("sent_bytes", "Replies sent, bytes.", ["door"])
        self.unsent = self._counter("unsent", "Replies that a door could not send.", ["door"])
        self._waiting = Gauge(f"{PREFIX}_waiting", "Requests without a reply yet.", registry=self.registry)
        self._waiting_bytes = Gauge(
            f"{PREFIX}_fragment_bytes", "Pieces that wait for others, bytes.", registry=self.registry
        )

    def watch(self, waiting: Callable[[], int], fragment_bytes: Callable[[], int]) -> None:
        """What is read at each scrape."""
        self._waiting.set_function(waiting)
        self._waiting_bytes.set_function(fragment_bytes)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)
