"""The device's Prometheus metrics. docs/metrics.md says what to ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from offramp.common.bundle import Bundle
from offramp.common.telemetry import ROUND_TRIP_BUCKETS, STAGE_BUCKETS, add_info_metrics
from offramp.device.wire_bytes import WireBytes

SOURCES = ("early_exit", "server", "fallback")


class DeviceMetrics:
    """One device's metrics, in a registry of their own."""

    def __init__(self, bundle: Bundle) -> None:
        self.registry = registry = CollectorRegistry()
        self.images = Counter(
            "offramp_device_images", "Images answered, by who answered.", ["source"], registry=registry
        )
        for source in SOURCES:
            self.images.labels(source)
        self.image_errors = Counter(
            "offramp_device_image_errors", "Images that could not be read.", registry=registry
        )
        self.payload_bytes = Counter(
            "offramp_device_payload_bytes", "Coded activations sent, bytes.", registry=registry
        )
        self.raw_activation_bytes = Counter(
            "offramp_device_raw_activation_bytes",
            "What the activations sent would have taken at one byte a symbol, bytes.",
            registry=registry,
        )
        self.message_bytes = Counter(
            "offramp_device_message_bytes",
            "Serialized protobuf messages on the stream, bytes.",
            ["direction"],
            registry=registry,
        )
        for direction in ("sent", "received"):
            self.message_bytes.labels(direction)
        self.frames_refused = Counter(
            "offramp_device_frames_refused",
            "Frames that the server refused, by reason.",
            ["reason"],
            registry=registry,
        )
        self.late_replies = Counter(
            "offramp_device_late_replies",
            "Replies that came after their image had been answered.",
            registry=registry,
        )
        self.connects = Counter(
            "offramp_device_connects", "Streams that the server accepted.", registry=registry
        )
        self.reconnects = Counter(
            "offramp_device_reconnects", "Attempts to connect again after a failure.", registry=registry
        )
        self.connected = Gauge("offramp_device_connected", "1 while a stream is open.", registry=registry)
        self.threshold = Gauge(
            "offramp_device_threshold_ratio", "Confidence threshold T_c in force.", registry=registry
        )
        self.stage_seconds = Histogram(
            "offramp_device_stage_seconds",
            "Time of one image in one stage.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        for stage in ("read", "head", "encode"):
            self.stage_seconds.labels(stage)
        self.round_trip_seconds = Histogram(
            "offramp_device_round_trip_seconds",
            "From handing a frame to the link to its reply.",
            buckets=ROUND_TRIP_BUCKETS,
            registry=registry,
        )
        add_info_metrics(registry, bundle)

    def watch_wire(self, total: Callable[[], WireBytes | None]) -> None:
        """Export the socket's byte counters, read at each scrape."""
        self.registry.register(_WireCollector(total))


class _WireCollector(Collector):
    def __init__(self, total: Callable[[], WireBytes | None]) -> None:
        self._total = total

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "offramp_device_wire_bytes",
            "TCP payload of the connection, bytes: gRPC and HTTP/2 framing and all control traffic.",
            labels=["direction"],
        )
        total = self._total()
        if total is not None:
            family.add_metric(["sent"], total.sent)
            family.add_metric(["received"], total.received)
        yield family
