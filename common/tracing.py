"""OpenTelemetry spans of images and frames, where ``--otel`` asks for them.

The device's span of an image is the parent of the server's span of its frame. What links them is a W3C trace
context, 25 bytes beside the frame: trace id, parent id, flags. Only a sampled span is worth them; an image
that is not sampled costs no byte, and with tracing off nothing of OpenTelemetry is imported.

Sampling, export and resource follow the usual variables (``OTEL_TRACES_SAMPLER``,
``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``, …). A collector that is gone is said once, and delays
nothing: spans wait in a bounded queue of the SDK's and are then dropped.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from offramp.common.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger("offramp.tracing")

CONTEXT_BYTES = 25
"""Trace id (16), parent id (8), flags (1)."""
FLUSH_SECONDS = 3.0
"""How long a program that ends waits for its last spans to be exported."""
Attribute = str | int | float


class Tracing:
    """Starts spans with the process's tracer provider.

    It is the one that somebody has set already, as a program that embeds a ``Device`` may have; else one
    that exports as the ``OTEL_*`` variables say. Raises ConfigError where the packages are missing.
    """

    def __init__(self, service: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--otel needs the package '{error.name}': pip install 'offramp[otel]'"
            ) from None
        self._trace = trace
        self._own: TracerProvider | None = None
        if not isinstance(trace.get_tracer_provider(), TracerProvider):
            self._own = _make_provider(service)
            trace.set_tracer_provider(self._own)
        self._tracer = trace.get_tracer("offramp")

    def start(self, name: str) -> Span:
        """A span below the caller's own, if it has one."""
        return self._tracer.start_span(name, kind=self._trace.SpanKind.CLIENT)

    def resume(self, name: str, context: bytes) -> Span:
        """A span below the one that ``context_of`` sent to this process."""
        parent = self._trace.SpanContext(
            trace_id=int.from_bytes(context[:16], "big"),
            span_id=int.from_bytes(context[16:24], "big"),
            is_remote=True,
            trace_flags=self._trace.TraceFlags(context[24]),
        )
        above = self._trace.set_span_in_context(self._trace.NonRecordingSpan(parent))
        return self._tracer.start_span(name, above, kind=self._trace.SpanKind.SERVER)

    def context_of(self, span: Span) -> bytes:
        """What another process needs to go on with the span, 25 bytes; empty where it is not sampled."""
        context = span.get_span_context()
        if not context.is_valid or not context.trace_flags.sampled:
            return b""
        ids = context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big")
        return ids + bytes([context.trace_flags & 0xFF])

    def end(self, span: Span, failure: str | None = None, **attributes: Attribute) -> None:
        """End a span. failure: why it has no good end; attributes are named ``offramp.…``."""
        for name, value in attributes.items():
            span.set_attribute(f"offramp.{name}", value)
        if failure is not None:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, failure))
        span.end()

    def close(self) -> None:
        """Export what is left, for a bounded time. A provider of somebody else's is left alone."""
        if self._own is None:
            return
        # The exporter retries a collector that is gone for longer than a program may take to end.
        last = threading.Thread(target=self._own.shutdown, name="offramp-spans", daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)


def _make_provider(service: str) -> TracerProvider:
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    complaints = logging.getLogger("opentelemetry")
    complaints.propagate = False
    complaints.addHandler(_Once())
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    # Straight to the collector that OTEL_* names: a proxy of the environment would see its headers' secrets.
    session = requests.Session()
    session.trust_env = False
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(session=session)))
    return provider


class _Once(logging.Handler):
    """The SDK complains of each batch, with a traceback; one line is enough."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        log.log(level, "spans are not all exported: %s", record.getMessage().splitlines()[0][:200])
