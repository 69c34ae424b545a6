"""The server's Prometheus metrics. docs/metrics.md says what to ask of them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from offramp.common.bundle import Bundle
from offramp.common.telemetry import STAGE_BUCKETS, add_info_metrics
from offramp.v1 import inference_pb2 as pb

REASONS = [value.name.removeprefix("REASON_").lower() for value in pb.FrameError.Reason.DESCRIPTOR.values[1:]]


class ServerMetrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self, bundle: Bundle) -> None:
        self.registry = registry = CollectorRegistry()
        self.frames = Counter(
            "offramp_server_frames", "Frames read, by what became of them.", ["result"], registry=registry
        )
        for result in ("answered", "refused"):
            self.frames.labels(result)
        self.rejected = Counter(
            "offramp_server_rejected", "Frames refused, by reason.", ["reason"], registry=registry
        )
        for reason in REASONS:
            self.rejected.labels(reason)
        self.streams_aborted = Counter(
            "offramp_server_streams_aborted",
            "Streams that the server ended with an error, by gRPC status.",
            ["status"],
            registry=registry,
        )
        self.payload_bytes = Counter(
            "offramp_server_payload_bytes", "Payload of the frames read, bytes.", registry=registry
        )
        self.message_bytes = Counter(
            "offramp_server_message_bytes",
            "Serialized protobuf messages on the streams, bytes.",
            ["direction"],
            registry=registry,
        )
        for direction in ("received", "sent"):
            self.message_bytes.labels(direction)
        self.decode_seconds = Histogram(
            "offramp_server_decode_seconds",
            "Time to decode one frame.",
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "offramp_server_queue_seconds",
            "Time a decoded frame waits for the tail.",
            buckets=STAGE_BUCKETS,
            registry=registry,
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
        self.open_streams = Gauge("offramp_server_open_streams", "Open streams.", registry=registry)
        add_info_metrics(registry, bundle)
