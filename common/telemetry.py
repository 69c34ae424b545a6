"""Logs and metrics: the same on the device and on the server.

ONNX Runtime has telemetry too: from when it is imported it reports its use to its maker, and keeps what it
could not send in the home folder. To import this module turns that off, and every program imports it first.
NumPy's BLAS starts a thread for each core as it is imported; where a container pays for fewer, that is
limited here as well.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from offramp.common.cpus import limit_libraries

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Gauge, Histogram

    from offramp.common.bundle.load import Bundle

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
limit_libraries()

STAGE_BUCKETS = tuple(1e-4 * 10 ** (i / 3) for i in range(13))
"""Seconds, 0.1 ms … 1 s, three to a decade."""
ROUND_TRIP_BUCKETS = tuple(1e-3 * 10 ** (i / 3) for i in range(13))
"""Seconds, 1 ms … 10 s, three to a decade."""


def package_version() -> str:
    """This release."""
    return version("offramp")


def version_line(program: str) -> str:
    """What ``--version`` prints: the release, and whether activations are coded by the compiled coder."""
    from offramp.common.codec.activation import coder_kind

    return f"{program} {package_version()} ({coder_kind()} coder)"


def add_info_metrics(registry: CollectorRegistry, *bundles: Bundle) -> Gauge:
    """``offramp_build_info`` and ``offramp_bundle_info``: facts as labels, the value is always 1.

    Returns the latter, for programs whose bundles change.
    """
    from prometheus_client import Gauge

    from offramp.common.codec.activation import coder_kind

    build = Gauge(
        "offramp_build_info", "This release and its coder.", ["version", "coder"], registry=registry
    )
    build.labels(package_version(), coder_kind()).set(1)
    info = Gauge("offramp_bundle_info", "The loaded bundle.", ["name", "digest"], registry=registry)
    for bundle in bundles:
        info.labels(bundle.manifest.name, bundle.digest.hex()).set(1)
    return info


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC, ISO 8601), ``level``, ``program``, ``logger``, ``message``."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """The line of one event."""
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "program": self._program,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def start_log(program: str, level: str, log_format: str = "text") -> logging.Logger:
    """The program's logger, on stderr. log_format: ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter(program))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {program} %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("offramp").setLevel(level.upper())
    return logging.getLogger(f"offramp.{program}")


@contextmanager
def serve_metrics(registry: CollectorRegistry, host: str, port: int | None) -> Iterator[int | None]:
    """Serve ``/metrics`` while the block runs; yields the port, None if ``port`` is None (0: any free one).

    Raises AddressError if the port cannot be bound.
    """
    if port is None:
        yield None
        return
    from offramp.common.metrics_page import serve_page

    with serve_page(registry, host, port) as bound:
        yield bound


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe how many seconds the block takes."""
    start = time.perf_counter()
    yield
    histogram.observe(time.perf_counter() - start)
