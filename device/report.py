"""What ``edge-device`` prints: one line for each image, and a summary."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

from offramp.common.errors import DataError, OutputError, printable
from offramp.common.inputs.folder import kinds_of
from offramp.device.device import Correction, Result
from offramp.device.metrics import SOURCES
from offramp.link.wire_bytes import WireBytes

COLUMNS = "{:>6}  {:<11} {:>7}  {:<12} {:>9} {:>8} {:>8} {:>8}  {}"


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
    latencies: Sample = field(default_factory=Sample)
    decoding: Sample = field(default_factory=Sample)
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files in folders that are no pictures by their names, by suffix."""

    def add(self, result: Result, raw_bytes: int) -> None:
        """Count one image. raw_bytes: its activation at one byte a symbol."""
        self.images[result.source] += 1
        self.payload_bytes += result.payload_bytes
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
        segments = {"tcp_segments": None, "tcp_ip_header_bytes": None} if wire is None else {
            "tcp_segments": {"sent": wire.segments_sent, "received": wire.segments_received},
            "tcp_ip_header_bytes": wire.header_bytes,
        }  # fmt: skip
        return {
            "images": answered,
            "unreadable": self.unreadable,
            "passed_over": self.passed_over,
            **self.images,
            "threshold": threshold,
            "exit_rate": self.images["early_exit"] / answered if answered else None,
            "payload_bytes": self.payload_bytes,
            "payload_bytes_mean": self.payload_bytes / answered if answered else None,
            "pictures": self.pictures,
            "picture_bytes": self.picture_bytes,
            "raw_activation_bytes": self.raw_activation_bytes,
            "wire_bytes": wire_bytes,
            **segments,
            "corrections": self.corrections,
            "seconds": round(seconds, 6),
            "latency_seconds_median": latencies[len(latencies) // 2] if answered else None,
            "latency_seconds_p99": latencies[len(latencies) * 99 // 100] if answered else None,
            "decode_seconds_median": decoding[len(decoding) // 2] if answered else None,
            "decode_seconds_p99": decoding[len(decoding) * 99 // 100] if answered else None,
        }


class Report:
    """Writes results as they come: JSON lines, or a table with a progress bar on a terminal."""

    def __init__(self, as_json: bool, quiet: bool, expected: int | None, out: TextIO = sys.stdout) -> None:
        self._json = as_json
        self._quiet = quiet
        self._out = out
        self._held: list[str] | None = None
        self._bar = tqdm(total=expected, unit="image", disable=None, file=sys.stderr, leave=False)
        if not as_json and not quiet:
            header = ("#", "label", "conf.", "source", "ms", "payload", "message", "wire", "image")
            self._line(COLUMNS.format(*header))

    def result(self, index: int, name: str, result: Result) -> None:
        """One answered image."""
        self._bar.update()
        if self._json:
            record = {
                "index": index,
                "image": name,
                "label": result.label,
                "class_index": result.class_index,
                "confidence": round(result.confidence, 6),
                "source": result.source,
                "latency_seconds": round(result.latency_seconds, 6),
                "decode_seconds": round(result.decode_seconds, 6),
                "payload_bytes": result.payload_bytes,
                "message_bytes": round(result.message_bytes, 1),
                "wire_bytes": round(result.wire_bytes, 1),
            }
            if result.threshold is not None:
                record["threshold"] = round(result.threshold, 6)
            if result.sends > 1:
                record["sends"] = result.sends
            if result.picture_bytes:
                record["picture_bytes"] = result.picture_bytes
            if result.reason is not None:
                record["reason"] = result.reason
            self._line(json.dumps(record))
        elif not self._quiet:
            self._line(
                COLUMNS.format(
                    index,
                    result.label[:11],
                    f"{result.confidence:.4f}",
                    result.source,
                    f"{result.latency_seconds * 1e3:.2f}",
                    result.payload_bytes,
                    f"{result.message_bytes:.0f}",
                    f"{result.wire_bytes:.0f}",
                    printable(name, 500),
                )
            )

    def unreadable(self, index: int, name: str, error: DataError) -> None:
        """One image that could not be used."""
        self._bar.update()
        if self._json:
            self._line(json.dumps({"index": index, "image": name, "error": str(error)}))
        tqdm.write(f"edge-device: {printable(str(error), 500)}", file=sys.stderr)

    def correction(self, correction: Correction) -> None:
        """The server's answer to an image that was answered before, as ``fallback``."""
        if self._json:
            record = {
                "correction": True,
                "index": correction.index,
                "image": correction.name,
                "label": correction.label,
                "class_index": correction.class_index,
                "confidence": round(correction.confidence, 6),
                "spooled": correction.spooled,
            }
            self._line(json.dumps(record))
        elif not self._quiet:
            self._line(
                COLUMNS.format(
                    correction.index,
                    correction.label[:11],
                    f"{correction.confidence:.4f}",
                    "correction",
                    *("", "", "", ""),
                    printable(correction.name, 500),
                )
            )

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What the block prints is written at its end, at once. Raises OutputError."""
        self._held = []
        try:
            yield
        finally:
            lines, self._held = self._held, None
            if lines:
                self._write("\n".join(lines) + "\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """The summary, after the last image."""
        self._bar.close()
        if self._json:
            self._line(json.dumps({"summary": summary}))
            return
        n = summary["images"]
        self._line(
            f"\n{n} images at T_c = {summary['threshold']:g}: {summary['early_exit']} early exit, "
            f"{summary['server']} server, {summary['fallback']} fallback; {summary['unreadable']} unreadable"
        )
        if passed_over := Counter(summary["passed_over"]):
            self._line(
                f"passed over {passed_over.total():,} files that are not pictures by their names: "
                f"{kinds_of(passed_over)}"
            )
        if n:
            self._line(
                f"payload {summary['payload_bytes']:,} B, {summary['payload_bytes_mean']:.1f} B an image "
                f"over all images (raw activations of those sent: {summary['raw_activation_bytes']:,} B)"
            )
            if summary["pictures"]:
                self._line(f"pictures {summary['pictures']}, {summary['picture_bytes']:,} B of the payload")
            wire = summary["wire_bytes"]
            told = "unknown" if wire is None else (
                f"{wire['sent']:,} B sent, {wire['received']:,} B received"
            )  # fmt: skip
            self._line(f"wire (TCP payload, all of the connection): {told}")
            self._line(
                f"latency {summary['latency_seconds_median'] * 1e3:.2f} ms median, "
                f"{summary['latency_seconds_p99'] * 1e3:.2f} ms p99, after "
                f"{summary['decode_seconds_median'] * 1e3:.2f} ms of decoding; "
                f"{n / summary['seconds']:.0f} images/s"
            )

    def _line(self, text: str) -> None:
        if self._held is not None:
            self._held.append(text)
        else:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        try:
            if self._bar.disable:
                self._out.write(text)
            else:
                with tqdm.external_write_mode(file=self._out):
                    self._out.write(text)
            self._out.flush()
        except OSError as error:
            raise OutputError(f"stdout: {error.strerror}; stopped") from None
