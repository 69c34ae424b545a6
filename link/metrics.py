"""A link's Prometheus metrics, in the registry and under the names of the program that has the link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from offramp.common.metrics import ROUND_TRIP_BUCKETS
from offramp.link.outcome import Cause
from offramp.link.wire_bytes import WireBytes


class LinkMetrics:
    """What one link counts, or several together. prefix: begins each name, such as ``offramp_device``."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self._registry = registry
        self._prefix = prefix
        self._totals: list[Callable[[], WireBytes | None]] = []
        self.payload_bytes = Counter(
            f"{prefix}_payload_bytes", "Coded activations and pictures sent, bytes.", registry=registry
        )
        self.picture_bytes = Counter(
            f"{prefix}_picture_bytes", "Pictures sent, bytes; part of the payload.", registry=registry
        )
        self.audit_bytes = Counter(
            f"{prefix}_audit_bytes",
            "Activations sent as audits, bytes; part of the payload.",
            registry=registry,
        )
        self.raw_activation_bytes = Counter(
            f"{prefix}_raw_activation_bytes",
            "What the activations sent would have taken at one byte a symbol, bytes.",
            registry=registry,
        )
        message_bytes = Counter(
            f"{prefix}_message_bytes",
            "Serialized protobuf messages on the stream, bytes.",
            ["direction"],
            registry=registry,
        )
        self.message_bytes_sent = message_bytes.labels("sent")
        self.message_bytes_received = message_bytes.labels("received")
        self._add_refusals()
        self.late_replies = Counter(
            f"{prefix}_late_replies",
            "Replies that came after their image had been answered.",
            registry=registry,
        )
        self.frames_resent = Counter(
            f"{prefix}_frames_resent",
            "Frames sent once more because their stream broke before a reply.",
            registry=registry,
        )
        self.unanswered = Counter(
            f"{prefix}_frames_unanswered",
            "Frames that got no answer in time, by cause; without audits.",
            ["cause"],
            registry=registry,
        )
        for cause in Cause:
            self.unanswered.labels(cause)
        self.server_answers = Counter(
            f"{prefix}_server_answers",
            "Frames answered in time, by the server that was asked; without audits.",
            ["server"],
            registry=registry,
        )
        self.connects = Counter(f"{prefix}_connects", "Streams that the server accepted.", registry=registry)
        self.reconnects = Counter(
            f"{prefix}_reconnects", "Attempts to connect again after a failure.", registry=registry
        )
        self.failovers = Counter(
            f"{prefix}_failovers", "Times that another of its servers became the one.", registry=registry
        )
        self.connected = Gauge(f"{prefix}_connected", "1 while a stream is open.", registry=registry)
        self.breaker_open = Gauge(
            f"{prefix}_breaker_open",
            "1 while frames are turned away until a probe succeeds.",
            registry=registry,
        )
        self.breaker_opens = Counter(
            f"{prefix}_breaker_opens", "Times that the breaker opened.", registry=registry
        )
        self.round_trip_seconds = Histogram(
            f"{prefix}_round_trip_seconds",
            "From handing a frame to the link to its reply, without audits.",
            buckets=ROUND_TRIP_BUCKETS,
            registry=registry,
        )

    def _add_refusals(self) -> None:
        self.frames_refused = Counter(
            f"{self._prefix}_frames_refused",
            "Frames that the server refused, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self.hellos_refused = Counter(
            f"{self._prefix}_hellos_refused",
            "Streams that the server refused at their hello, by reason; mismatch: it has not this bundle.",
            ["reason"],
            registry=self._registry,
        )
        for refused in ("mismatch", "access", "other"):
            self.hellos_refused.labels(refused)

    def watch_wire(self, total: Callable[[], WireBytes | None]) -> None:
        """Export the socket's byte counters, read at each scrape; those of several links together."""
        self._totals.append(total)
        if len(self._totals) == 1:
            self._registry.register(_WireCollector(self._prefix, self._totals))


class _WireCollector(Collector):
    def __init__(self, prefix: str, totals: Sequence[Callable[[], WireBytes | None]]) -> None:
        self._prefix = prefix
        self._totals = totals

    def _total(self) -> WireBytes | None:
        """None where one of them is unknown."""
        found = WireBytes(0, 0)
        for total in self._totals:
            if (one := total()) is None:
                return None
            found += one
        return found

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            f"{self._prefix}_wire_bytes",
            "TCP or UDP payload of the connection, bytes: gRPC and HTTP/2 framing and all control traffic.",
            labels=["direction"],
        )
        total = self._total()
        if total is not None:
            family.add_metric(["sent"], total.sent)
            family.add_metric(["received"], total.received)
        yield family
        segments = CounterMetricFamily(
            f"{self._prefix}_tcp_segments",
            "TCP segments of the connection, retransmissions and bare acknowledgements included.",
            labels=["direction"],
        )
        if total is not None and total.protocol == "TCP":
            segments.add_metric(["sent"], total.segments_sent)
            segments.add_metric(["received"], total.segments_received)
        yield segments
