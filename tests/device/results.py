"""Results as the tests of the report and of the totals need them."""

from __future__ import annotations

from offramp.device.result import Result, Source


def result(source: Source = "server", latency: float = 0.01, payload: int = 10, label: str = "cat") -> Result:
    return Result(
        label=label,
        class_index=1,
        confidence=0.87654321,
        source=source,
        latency_seconds=latency,
        decode_seconds=latency / 5,
        payload_bytes=payload,
        message_bytes=2.5 * payload,
        wire_bytes=3.25 * payload,
        reason="no server" if source == "fallback" else None,
        sends=int(payload > 0),
    )
