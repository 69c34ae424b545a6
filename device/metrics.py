"""The device's Prometheus metrics. docs/metrics.md says what to ask of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from offramp.common.bundle.load import Bundle, ThresholdFigures
from offramp.common.telemetry import ROUND_TRIP_BUCKETS, STAGE_BUCKETS, add_info_metrics
from offramp.link.wire_bytes import WireBytes

SOURCES = ("early_exit", "server", "fallback")
SPOOL_CAUSES = ("full", "refused", "damaged", "busy")


class Cause(StrEnum):
    """Why a frame has no answer."""

    TIMEOUT = "timeout"
    """No reply within its deadline."""
    REFUSED = "refused"
    """The server answered with an error, or with nonsense."""
    UNAVAILABLE = "unavailable"
    """No stream to the server, or it broke too often."""
    BREAKER = "breaker"
    """Turned away: the link had failed, and the next probe was not due."""
    WINDOW = "window"
    """The window stayed full."""
    CLOSED = "closed"
    """The link was closed."""
    PICTURE = "picture"
    """A picture, to a server that takes none of this size."""


class DeviceMetrics:
    """One device's metrics, in a registry of their own."""

    def __init__(self, bundle: Bundle) -> None:
        self.registry = registry = CollectorRegistry()
        self.images = Counter(
            "offramp_device_images", "Images answered, by who answered.", ["source"], registry=registry
        )
        self.answered_by = {source: self.images.labels(source) for source in SOURCES}
        self.image_errors = Counter(
            "offramp_device_image_errors", "Images that could not be read.", registry=registry
        )
        self.payload_bytes = Counter(
            "offramp_device_payload_bytes", "Coded activations and pictures sent, bytes.", registry=registry
        )
        self.pictures = Counter(
            "offramp_device_pictures",
            "Pictures of images that were unsure of the server's answer too, by whether they were answered.",
            ["result"],
            registry=registry,
        )
        self.pictures_answered, self.pictures_unanswered = map(
            self.pictures.labels, ("answered", "unanswered")
        )
        self.picture_bytes = Counter(
            "offramp_device_picture_bytes", "Pictures sent, bytes; part of the payload.", registry=registry
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
        self.message_bytes_sent = self.message_bytes.labels("sent")
        self.message_bytes_received = self.message_bytes.labels("received")
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
        self.frames_resent = Counter(
            "offramp_device_frames_resent",
            "Frames sent once more because their stream broke before a reply.",
            registry=registry,
        )
        self.unanswered = Counter(
            "offramp_device_frames_unanswered",
            "Frames that got no answer in time, by cause.",
            ["cause"],
            registry=registry,
        )
        for cause in Cause:
            self.unanswered.labels(cause)
        self.corrections = Counter(
            "offramp_device_corrections",
            "Answers of the server that came after the early exit's had gone out.",
            registry=registry,
        )
        self.connects = Counter(
            "offramp_device_connects", "Streams that the server accepted.", registry=registry
        )
        self.reconnects = Counter(
            "offramp_device_reconnects", "Attempts to connect again after a failure.", registry=registry
        )
        self.failovers = Counter(
            "offramp_device_failovers", "Times that another of its servers became the one.", registry=registry
        )
        self.connected = Gauge("offramp_device_connected", "1 while a stream is open.", registry=registry)
        self.breaker_open = Gauge(
            "offramp_device_breaker_open",
            "1 while frames are turned away until a probe succeeds.",
            registry=registry,
        )
        self.breaker_opens = Counter(
            "offramp_device_breaker_opens", "Times that the breaker opened.", registry=registry
        )
        self.spooled = Counter("offramp_device_spooled", "Activations put into the spool.", registry=registry)
        self.spool_dropped = Counter(
            "offramp_device_spool_dropped",
            "Spooled activations that were given up, by cause.",
            ["cause"],
            registry=registry,
        )
        for cause_of_drop in SPOOL_CAUSES:
            self.spool_dropped.labels(cause_of_drop)
        self.spool_errors = Counter(
            "offramp_device_spool_errors", "Failed reads and writes of the spool.", registry=registry
        )
        self.spool_entries = Gauge(
            "offramp_device_spool_entries", "Activations in the spool.", registry=registry
        )
        self.spool_bytes = Gauge(
            "offramp_device_spool_bytes", "What the activations in the spool take, bytes.", registry=registry
        )
        self.jpeg_bytes = Counter(
            "offramp_device_jpeg_bytes",
            "What all images would have taken as JPEG, with --compare-jpeg only, bytes.",
            registry=registry,
        )
        self._add_sizes(bundle)
        self._add_threshold(bundle)
        self.stage_seconds = Histogram(
            "offramp_device_stage_seconds",
            "Time of one image in one stage.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        # To look a child up costs more than to count in it.
        self.read_seconds = self.stage_seconds.labels("read")
        self.decode_seconds = self.stage_seconds.labels("decode")
        self.head_seconds = self.stage_seconds.labels("head")
        self.encode_seconds = self.stage_seconds.labels("encode")
        self.round_trip_seconds = Histogram(
            "offramp_device_round_trip_seconds",
            "From handing a frame to the link to its reply.",
            buckets=ROUND_TRIP_BUCKETS,
            registry=registry,
        )
        add_info_metrics(registry, bundle)

    def _add_sizes(self, bundle: Bundle) -> None:
        raw_size = Gauge(
            "offramp_device_raw_size_bytes",
            "One image uncoded: its pixels as the network takes them, its activation at one byte a symbol.",
            ["of"],
            registry=self.registry,
        )
        preprocessing = bundle.manifest.preprocessing
        raw_size.labels("pixels").set(3 * preprocessing.height * preprocessing.width)
        raw_size.labels("activation").set(bundle.codec.raw_bytes)

    def _add_threshold(self, bundle: Bundle) -> None:
        self.threshold = Gauge(
            "offramp_device_threshold_ratio", "Confidence threshold T_c in force.", registry=self.registry
        )
        self._points = sorted(bundle.manifest.figures.thresholds, key=lambda point: point.threshold)
        self.expected_accuracy = Gauge(
            "offramp_device_expected_accuracy_ratio",
            "Accuracy on the bundle's test images at the threshold in force; the nearest that was measured.",
            registry=self.registry,
        )
        self.expected_exits = Gauge(
            "offramp_device_expected_exit_ratio",
            "Exit rate on the bundle's test images at the threshold in force; the nearest that was measured.",
            registry=self.registry,
        )

    def watch_threshold(self, threshold: Callable[[], float]) -> None:
        """Export what the bundle measured at the threshold in force, looked up at each scrape."""

        def nearest() -> ThresholdFigures:
            return min(self._points, key=lambda point: abs(point.threshold - threshold()))

        if self._points:
            self.expected_accuracy.set_function(lambda: nearest().accuracy)
            self.expected_exits.set_function(lambda: nearest().exit_rate)
        else:
            self.expected_accuracy.set(math.nan)
            self.expected_exits.set(math.nan)

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
        segments = CounterMetricFamily(
            "offramp_device_tcp_segments",
            "TCP segments of the connection, retransmissions and bare acknowledgements included.",
            labels=["direction"],
        )
        if total is not None:
            segments.add_metric(["sent"], total.segments_sent)
            segments.add_metric(["received"], total.segments_received)
        yield segments
