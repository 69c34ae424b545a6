"""A span for each image: it starts below the caller's and ends with the image's result."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from offramp.common.tracing import Tracing
from offramp.device.result import Result

if TYPE_CHECKING:
    from opentelemetry.trace import Span


def start_span(tracing: Tracing | None, future: Future[Result]) -> bytes:
    """The trace context to send along, 25 bytes; empty where nothing is traced."""
    if tracing is None:
        return b""
    span = tracing.start("offramp.image")
    future.add_done_callback(partial(_end_span, tracing, span))
    return tracing.context_of(span)


def _end_span(tracing: Tracing, span: Span, future: Future[Result]) -> None:
    result = future.result()
    tracing.end(
        span,
        result.reason,
        source=result.source,
        label=result.label,
        confidence=result.confidence,
        payload_bytes=result.payload_bytes,
        picture_bytes=result.picture_bytes,
        sends=result.sends,
        part=result.part,
        **({"cut_short": True} if result.cut_short else {}),
        **({"server": result.server} if result.server else {}),
    )
