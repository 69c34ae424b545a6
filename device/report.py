"""What ``edge-device`` prints: one line for each image, and a summary."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from offramp.common.errors import DataError, OutputError, printable
from offramp.common.inputs.folder import kinds_of
from offramp.device.result import Correction, Result

COLUMNS = "{:>6}  {:<11} {:>7}  {:<12} {:>9} {:>8} {:>8} {:>8}  {}"


class Report:
    """Writes results as they come: JSON lines, or a table with a progress bar on a terminal."""

    def __init__(
        self,
        as_json: bool,
        quiet: bool,
        expected: int | None,
        out: TextIO = sys.stdout,
        parts: int = 2,
        servers: int = 1,
    ) -> None:
        self._parts = parts
        self._servers = servers
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
            if result.unknown:
                record["unknown"] = True
            if self._parts > 2:
                record["part"] = result.part
            if result.cut_short:
                record["cut_short"] = True
            if result.server and self._servers > 1:
                record["server"] = result.server
            if result.reason is not None:
                record["reason"] = result.reason
            self._line(json.dumps(record))
        elif not self._quiet:
            self._line(
                COLUMNS.format(
                    index,
                    f"{result.label[:10]}?" if result.unknown else result.label[:11],
                    f"{result.confidence:.4f}",
                    self._source(result),
                    f"{result.latency_seconds * 1e3:.2f}",
                    result.payload_bytes,
                    f"{result.message_bytes:.0f}",
                    f"{result.wire_bytes:.0f}",
                    printable(name, 500),
                )
            )

    def _source(self, result: Result) -> str:
        """Who answered; of a chain's servers, the part, and whether the one behind it did not."""
        if result.source != "server" or self._parts == 2:
            return result.source
        return result.by

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
        if parts := summary.get("parts"):
            shown = ", ".join(f"part {part} {count}" for part, count in parts.items())
            self._line(f"answered by {shown}; {summary['cut_short']} cut short by a part behind that failed")
        if servers := summary.get("servers"):
            self._line(f"asked {', '.join(f'{server} {count}' for server, count in servers.items())}")
        if summary["unknown"]:
            self._line(f"unknown {summary['unknown']:,}, marked ?: unlike all that the bundle knows")
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
            if (audits := summary.get("audits")) is not None:
                self._line(
                    f"audits {sum(audits.values())}: the server agrees with {audits['agrees']}, differs on "
                    f"{audits['differs']}; {audits['lost']} lost"
                )
            wire = summary["wire_bytes"]
            shown = "unknown" if wire is None else (
                f"{wire['sent']:,} B sent, {wire['received']:,} B received"
            )  # fmt: skip
            of = f"{summary['wire_protocol'] or 'TCP'} payload"
            self._line(f"wire ({of}, all of the connection): {shown}")
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
