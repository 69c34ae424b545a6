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
    from offramp.common.page.site import Page
    from offramp.common.part.providers import Placement

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


class ProviderMetrics:
    """What runs a program's graphs, as metrics: ``PREFIX_provider_info`` and ``…_provider_operators_ratio``.

    of: labels that tell the graphs of several bundles apart.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str, *of: str) -> None:
        from prometheus_client import Gauge

        self._info = Gauge(
            f"{prefix}_provider_info",
            "What runs each graph: the execution provider of most of its operators, and what was asked for.",
            [*of, "part", "provider", "asked"],
            registry=registry,
        )
        self._operators = Gauge(
            f"{prefix}_provider_operators_ratio",
            "Share of a graph's operators that each execution provider runs, as far as ONNX Runtime says.",
            [*of, "part", "provider"],
            registry=registry,
        )
        self._shown: dict[tuple[str, ...], tuple[tuple[str, ...], list[tuple[str, ...]]]] = {}

    def show(self, graph: str, placement: Placement, *of: str) -> None:
        """Show what runs a graph, by its file's name, in place of what was shown of it before."""
        key = (*of, graph.removesuffix(".onnx"))
        if key in self._shown:
            info, operators = self._shown[key]
            self._info.remove(*info)
            for labels in operators:
                self._operators.remove(*labels)
        info = (*key, placement.main, ",".join(placement.asked))
        shares = placement.shares or {}
        self._shown[key] = info, [(*key, provider) for provider in shares]
        self._info.labels(*info).set(1)
        for provider, share in shares.items():
            self._operators.labels(*key, provider).set(share)


@contextmanager
def serve_metrics(
    registry: CollectorRegistry, host: str, port: int | None, page: Page | None = None
) -> Iterator[int | None]:
    """Serve ``/metrics`` while the block runs; yields the port, None if ``port`` is None (0: any free one).

    page: served at ``/`` beside it.

    Raises AddressError if the port cannot be bound.
    """
    if port is None:
        yield None
        return
    from offramp.common.metrics_page import serve_page

    with serve_page(registry, host, port, page) as bound:
        yield bound


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe how many seconds the block takes."""
    start = time.perf_counter()
    yield
    histogram.observe(time.perf_counter() - start)
