"""What the metrics of the device and of the server have in common; ``metrics_page.py`` serves them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from offramp.common.release import package_version

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Gauge, Histogram

    from offramp.common.bundle.load import Bundle

STAGE_BUCKETS = tuple(1e-4 * 10 ** (i / 3) for i in range(13))
"""Seconds, 0.1 ms … 1 s, three to a decade."""
ROUND_TRIP_BUCKETS = tuple(1e-3 * 10 ** (i / 3) for i in range(13))
"""Seconds, 1 ms … 10 s, three to a decade."""


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
