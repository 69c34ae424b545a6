"""Traces that cross the wire: real programs, the real SDK, and a collector that decodes what they export."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import MessageError
from offramp.common.tracing import CONTEXT_BYTES, Tracing
from offramp.common.wire.frame import Frame, FrameReader, FrameWriter
from offramp.v1 import inference_pb2 as pb
from tests.processes import WAIT, Processes, closed_port, processes, until

pytest.importorskip("opentelemetry.sdk")
TRACE = bytes(range(1, CONTEXT_BYTES)) + b"\1"


class Collector:
    """Takes what OTLP exporters send over HTTP."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.spans: list[tuple[str, Any]] = []
        """Name of the service, and its span."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {each.key: each.value.string_value for each in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        outer.spans += [(names["service.name"], span) for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def of(self, service: str) -> list[Any]:
        """The spans of one service."""
        return [span for name, span in list(self.spans) if name == service]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join(WAIT)
    made.server.server_close()


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    with processes(toy_bundle.path) as started:
        yield started


def attributes(span: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_a_frame_s_span_is_below_its_image_s(run: Processes, toy_images: Path, collector: Collector) -> None:
    server = run.server("--otel", env=collector.environment)
    flags = ("--server", server.address, "--threshold", 0.7, "--json", "--otel")
    status, device = run.device(*flags, toy_images, env=collector.environment)
    assert status == 0
    until(lambda: len(collector.of("edge-device")) == 40, "a span for each image")
    offloaded = device.summary["server"]
    until(lambda: len(collector.of("cloud-server")) == offloaded, "a span for each frame")
    images = {span.span_id: span for span in collector.of("edge-device")}
    for frame in collector.of("cloud-server"):
        image = images[frame.parent_span_id]
        assert frame.trace_id == image.trace_id and frame.name == "offramp.frame"
        assert attributes(image)["offramp.source"] == "server" and image.name == "offramp.image"
    sources = [attributes(span)["offramp.source"] for span in images.values()]
    assert sources.count("early_exit") == device.summary["early_exit"] == 40 - offloaded
    assert server.drain() == 0


@pytest.mark.parametrize("what", ["off", "not sampled"])
def test_what_is_not_traced_costs_no_byte(
    run: Processes, toy_images: Path, collector: Collector, what: str
) -> None:
    server = run.server()
    flags = ("--server", server.address, "--threshold", 1, "--window", 1, "--json")
    sent = []
    for extra in ([], [] if what == "off" else ["--otel"]):
        environment = {**collector.environment, "OTEL_TRACES_SAMPLER": "always_off"}
        status, _ = run.device(*flags, *extra, toy_images, env=environment)
        assert status == 0
        sent.append(server.metrics()["offramp_server_message_bytes_total{direction=received}"])
    assert sent[1] == 2 * sent[0] and not collector.spans


def test_a_server_that_does_not_trace_answers_traced_frames(
    run: Processes, toy_images: Path, collector: Collector
) -> None:
    server = run.server()
    flags = ("--server", server.address, "--threshold", 1, "--window", 1, "--json", "--otel")
    status, device = run.device(*flags, toy_images, env=collector.environment)
    assert status == 0 and device.summary["server"] == 40
    received = server.metrics()["offramp_server_message_bytes_total{direction=received}"]
    status, _ = run.device(*flags[:-1], toy_images)
    plain = server.metrics()["offramp_server_message_bytes_total{direction=received}"] - received
    # Tag, length and 25 bytes, and longer lengths of nothing else.
    assert received - plain == 40 * (CONTEXT_BYTES + 2)


def test_a_fallback_s_span_says_why(run: Processes, toy_images: Path, collector: Collector) -> None:
    with closed_port() as port:
        flags = ("--server", f"127.0.0.1:{port}", "--threshold", 1, "--json", "--otel")
        status, _ = run.device(*flags, toy_images / "00.png", env=collector.environment)
    assert status == 3
    (span,) = collector.of("edge-device")
    assert "is unreachable" in span.status.message and attributes(span)["offramp.source"] == "fallback"


def test_a_collector_that_is_gone_is_said_once_and_ends_nothing(run: Processes, toy_images: Path) -> None:
    with closed_port() as port:
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "10",
        }
        status, device = run.device("--threshold", 0, "--json", "--otel", toy_images, env=environment)
    assert status == 0 and device.summary["early_exit"] == 40
    assert sum("spans are not all exported" in line for line in device.stderr) <= 1
    assert all("spans are not all exported" in line for line in device.stderr)


EMBEDDED = """
import asyncio, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from offramp.common.bundle.load import load_bundle
from offramp.common.tracing import Tracing
from offramp.device import Device
from tests import toy

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)

async def work():
    tracing = Tracing("not used")
    async with Device(load_bundle(sys.argv[1]), server="127.0.0.1:1", threshold=0, tracing=tracing) as device:
        with trace.get_tracer("mine").start_as_current_span("mine"):
            await device.infer_async(toy.images(1)[0])
            device.infer(toy.images(1)[0])
    tracing.close()

asyncio.run(work())
*images, mine = spans.get_finished_spans()
assert [span.name for span in images] == ["offramp.image"] * 2
assert {span.parent.span_id for span in images} == {mine.context.span_id}
"""


def test_an_image_s_span_is_below_its_caller_s(toy_bundle: Bundle) -> None:
    command = [sys.executable, "-c", EMBEDDED, str(toy_bundle.path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_packages_it_says_what_to_install(toy_bundle: Bundle, toy_images: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from offramp.device.app import main\n"
        "raise SystemExit(main(sys.argv[1:]))\n"
    )
    flags = ["--otel", "--threshold", "0", "--bundle", str(toy_bundle.path), str(toy_images)]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'offramp[otel]'" in done.stderr


# --- on the wire ---


def test_trace_contexts_travel_beside_their_frames() -> None:
    frames = [Frame(1, 0, b"a", TRACE), Frame(2, 0, b"b"), Frame(3, 1, b"c", TRACE)]
    data = FrameWriter().pack(frames)
    assert FrameReader(64).read(pb.DeviceMessage.FromString(data)) == frames
    assert len(FrameWriter().pack([Frame(1, 0, b"a", TRACE)])) == len(
        FrameWriter().pack([Frame(1, 0, b"a")])
    ) + (CONTEXT_BYTES + 2)


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ([TRACE], "1 trace contexts for 2 frames"),
        ([TRACE] * 3, "3 trace contexts for 2 frames"),
        ([TRACE, TRACE[1:]], "a trace context of 24 bytes, expected 25"),
        ([b"x" * 1000, b""], "a trace context of 1000 bytes"),
    ],
)
def test_other_trace_contexts_are_no_message(traces: list[bytes], message: str) -> None:
    sent = pb.DeviceMessage.FromString(FrameWriter().pack([Frame(1, 0, b"a"), Frame(2, 0, b"b")]))
    sent.traces.extend(traces)
    with pytest.raises(MessageError, match=message):
        FrameReader(64).read(sent)


@pytest.mark.parametrize("context", [bytes(25), b"\xff" * 25])
def test_a_strange_context_starts_a_span_all_the_same(
    context: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing = Tracing("test")
    span = tracing.resume("x", context)
    tracing.end(span, "why", number=1)
