"""The figures of one run: counts, byte sums and a sample of its latencies."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from offramp.device.metrics import SOURCES
from offramp.device.result import Result
from offramp.link.wire_bytes import WireBytes

LATENCIES = 16_384
"""Latencies that are kept; of a longer run, as many drawn at random."""


class Sample:
    """Up to ``size`` of the values that were added, each as likely as any other (Vitter's algorithm R)."""

    def __init__(self, size: int = LATENCIES) -> None:
        self.values: list[float] = []
        self._size = size
        self._seen = 0
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        """Take a value into account."""
        self._seen += 1
        if len(self.values) < self._size:
            self.values.append(value)
        elif (place := self._random.randrange(self._seen)) < self._size:
            self.values[place] = value


@dataclass
class Totals:
    """Counts of one run. Byte figures are sums over images."""

    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    unreadable: int = 0
    corrections: int = 0
    payload_bytes: int = 0
    pictures: int = 0
    picture_bytes: int = 0
    raw_activation_bytes: int = 0
    unknown: int = 0
    parts: dict[str, int] | None = None
    """By the number of the part that answered; None for a bundle of two, whose sources say it."""
    cut_short: int = 0
    """Of those, how many because the part behind did not answer."""
    servers: dict[str, int] | None = None
    """By the server that answered; None where there is one only."""
    latencies: Sample = field(default_factory=Sample)
    decoding: Sample = field(default_factory=Sample)
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files in folders that are no pictures by their names, by suffix."""
    audits: dict[str, int] | None = None
    """By result; None where nothing is audited."""

    def add(self, result: Result, raw_bytes: int) -> None:
        """Count one image. raw_bytes: its activation at one byte a symbol."""
        self.images[result.source] += 1
        self.payload_bytes += result.payload_bytes
        self.unknown += result.unknown
        if self.parts is not None:
            self.parts[str(result.part)] += 1
        self.cut_short += result.cut_short
        if self.servers is not None and result.server:
            self.servers[result.server] += 1
        self.pictures += result.picture_bytes > 0
        self.picture_bytes += result.picture_bytes
        self.raw_activation_bytes += raw_bytes * result.sends
        self.latencies.add(result.latency_seconds)
        self.decoding.add(result.decode_seconds)

    def summary(self, seconds: float, threshold: float, wire: WireBytes | None) -> dict[str, Any]:
        """The run in figures; means are over all answered images, also those that were never sent."""
        answered = sum(self.images.values())
        latencies = sorted(self.latencies.values)
        decoding = sorted(self.decoding.values)
        wire_bytes = None if wire is None else {"sent": wire.sent, "received": wire.received}
        segments: dict[str, Any] = {"tcp_segments": None, "tcp_ip_header_bytes": None}
        if wire is not None and wire.protocol == "TCP":
            segments = {
                "tcp_segments": {"sent": wire.segments_sent, "received": wire.segments_received},
                "tcp_ip_header_bytes": wire.header_bytes,
            }
        return {
            "images": answered,
            "unreadable": self.unreadable,
            "passed_over": self.passed_over,
            **self.images,
            "unknown": self.unknown,
            **({} if self.parts is None else {"parts": self.parts, "cut_short": self.cut_short}),
            **({} if self.servers is None else {"servers": self.servers}),
            "threshold": threshold,
            "exit_rate": self.images["early_exit"] / answered if answered else None,
            "payload_bytes": self.payload_bytes,
            "payload_bytes_mean": self.payload_bytes / answered if answered else None,
            "pictures": self.pictures,
            "picture_bytes": self.picture_bytes,
            "raw_activation_bytes": self.raw_activation_bytes,
            "wire_protocol": None if wire is None else wire.protocol,
            "wire_bytes": wire_bytes,
            **segments,
            "corrections": self.corrections,
            **({} if self.audits is None else {"audits": self.audits}),
            "seconds": round(seconds, 6),
            "latency_seconds_median": latencies[len(latencies) // 2] if answered else None,
            "latency_seconds_p99": latencies[len(latencies) * 99 // 100] if answered else None,
            "decode_seconds_median": decoding[len(decoding) // 2] if answered else None,
            "decode_seconds_p99": decoding[len(decoding) * 99 // 100] if answered else None,
        }
