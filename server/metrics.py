"""The server's Prometheus metrics. docs/how-to/watch-a-fleet.md says what to ask of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from offramp.common.bundle.load import Bundle
from offramp.common.metrics import STAGE_BUCKETS, ProviderMetrics, add_info_metrics
from offramp.server.tallies import Tallies, TallyHistogram
from offramp.v1 import inference_pb2 as pb

REASONS = [value.name.removeprefix("REASON_").lower() for value in pb.FrameError.Reason.DESCRIPTOR.values[1:]]

CONNECTED = ("01", "08")
"""States of /proc/net/tcp: established, and closed by the other side only."""


class ServerMetrics:
    """One server's metrics, in a registry of their own.

    Only the event loop's thread changes those of ``tallies.py``.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # The page has them in this order.
        self._add_frames(self.registry)
        self._add_calls(self.registry)
        self._add_bytes(self.registry)
        self._add_stages(self.registry)
        self._add_limits(self.registry)
        self._add_bundles(self.registry)

    def _add_frames(self, registry: CollectorRegistry) -> None:
        results = ("answered", "refused", "abandoned")
        frames = Tallies(
            "offramp_server_frames", "Frames read, by what became of them.", registry, "result", results
        )
        self.answered, self.refused, self.abandoned = (frames[result] for result in results)
        self.rejected = Tallies(
            "offramp_server_rejected", "Frames refused, by reason.", registry, "reason", REASONS
        )

    def _add_calls(self, registry: CollectorRegistry) -> None:
        self.streams = Counter(
            "offramp_server_streams", "Streams that were opened, before anything was said.", registry=registry
        )
        self.tls_handshakes = Counter(
            "offramp_server_tls_handshakes",
            "TLS handshakes that were begun; a device opens one stream for each.",
            registry=registry,
        )
        self.streams_aborted = Counter(
            "offramp_server_streams_aborted",
            "Streams that the server ended with an error, by gRPC status.",
            ["status"],
            registry=registry,
        )
        self.calls = Counter(
            "offramp_server_calls",
            "Calls that have ended, by method and gRPC status; CANCELLED: the peer left, or was cut off.",
            ["method", "status"],
            registry=registry,
        )
        self.open_calls = Gauge("offramp_server_open_calls", "Open calls of all methods.", registry=registry)

    def _add_bytes(self, registry: CollectorRegistry) -> None:
        self.payload_bytes = Tallies(
            "offramp_server_payload_bytes", "Payload of the frames read, bytes.", registry
        ).only
        self.pictures = Tallies(
            "offramp_server_pictures", "Frames read that were pictures, not activations.", registry
        ).only
        self.picture_bytes = Tallies(
            "offramp_server_picture_bytes", "Payload of the frames read that were pictures, bytes.", registry
        ).only
        directions = ("received", "sent")
        message_bytes = Tallies(
            "offramp_server_message_bytes",
            "Serialized protobuf messages on the streams, bytes.",
            registry,
            "direction",
            directions,
        )
        self.received_bytes, self.sent_bytes = (message_bytes[direction] for direction in directions)

    def _add_stages(self, registry: CollectorRegistry) -> None:
        self.decode_seconds = TallyHistogram(
            "offramp_server_decode_seconds", "Time to decode one frame.", registry, STAGE_BUCKETS
        )
        self.queue_seconds = TallyHistogram(
            "offramp_server_queue_seconds",
            "Time a decoded frame waits for the tail.",
            registry,
            STAGE_BUCKETS,
        )
        self.inference_seconds = Histogram(
            "offramp_server_inference_seconds",
            "Time of one run of the tail, over a whole batch.",
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "offramp_server_batch_size",
            "Activations in one run of the tail.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.answered_by_part = Counter(
            "offramp_server_part_answers",
            "Frames answered where several parts of a chain run, by the number of the part that answered.",
            ["part"],
            registry=registry,
        )
        self.open_streams = Gauge("offramp_server_open_streams", "Open streams.", registry=registry)
        self.queue_depth = Gauge(
            "offramp_server_queue_depth", "Decoded frames that wait for the tail.", registry=registry
        )

    def _add_limits(self, registry: CollectorRegistry) -> None:
        self.limits = Gauge(
            "offramp_server_limit",
            "Limits in force: frames that wait, streams, unanswered frames and message bytes of one stream.",
            ["limit"],
            registry=registry,
        )
        self.batch_limit = Gauge(
            "offramp_server_batch_limit",
            "Activations in one run of the tail, at most; chosen or set.",
            ["name"],
            registry=registry,
        )
        self.batch_wait_seconds = Gauge(
            "offramp_server_batch_wait_seconds",
            "How long the first frame of a batch waits for more; chosen or set.",
            ["name"],
            registry=registry,
        )
        self.tail_rate = Gauge(
            "offramp_server_tail_rate",
            "Activations a second that the tail alone ran at, at its best batch, when the bundle was loaded.",
            ["name"],
            registry=registry,
        )
        self.workers = Gauge("offramp_server_tail_workers", "Runs of the tail at once.", registry=registry)

    def _add_bundles(self, registry: CollectorRegistry) -> None:
        self.reloads = Counter(
            "offramp_server_reloads",
            "Bundles, tokens and certificates read again after a change, by outcome.",
            ["what", "result"],
            registry=registry,
        )
        for what in ("bundle", "tokens", "certificate"):
            for result in ("loaded", "failed"):
                self.reloads.labels(what, result)
        self.retired = Counter(
            "offramp_server_bundles_retired", "Bundles taken out of service.", registry=registry
        )
        self.bundles = add_info_metrics(registry)
        self.providers = ProviderMetrics(registry, "offramp_server", "name")

    def watch_connections(self, port: int) -> None:
        """Export how many connections this port has, read from the kernel at each scrape."""
        self.registry.register(_ConnectionCollector(port))

    def add_bundle(self, bundle: Bundle) -> None:
        """Show a bundle as loaded."""
        self.bundles.labels(bundle.manifest.name, bundle.digest.hex()).set(1)

    def remove_bundle(self, bundle: Bundle) -> None:
        """Show it no longer."""
        self.bundles.remove(bundle.manifest.name, bundle.digest.hex())

    def set_limits(self, *, workers: int, **limits: int) -> None:
        """Show how many runs of the tail there are at once, and limits by name."""
        self.workers.set(workers)
        for name, value in limits.items():
            self.limits.labels(name).set(value)


class _ConnectionCollector(Collector):
    """gRPC does not report connections without a call: those that are silent, or speak something else."""

    def __init__(self, port: int) -> None:
        self._port = port

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "offramp_server_open_connections",
            "TCP connections of the listening port, also those that never speak gRPC; Linux only.",
        )
        if (count := open_connections(self._port)) is not None:
            family.add_metric([], count)
        yield family


def open_connections(port: int) -> int | None:
    """TCP connections of this local port; None where the system has no such table."""
    count = None
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        try:
            _, *rows = Path(table).read_text().splitlines()
        except OSError:
            continue
        fields = [row.split(None, 4) for row in rows]
        mine = [row for row in fields if int(row[1].rpartition(":")[2], 16) == port]
        count = (count or 0) + sum(row[3] in CONNECTED for row in mine)
    return count
