"""Counters and histograms that cost little, for what is counted with every frame.

prometheus_client takes a lock for each change, since any thread may make one. These belong to one thread, the
event loop's; any thread may read them. What a scrape shows is the same, and as exact at any time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally:
    """One number that only rises."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count so many more."""
        self.value += amount


class Tallies(Collector):
    """A counter's family: one ``Tally`` for each value of its label, or one without a label.

    The page calls it ``name_total``.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        registry: CollectorRegistry,
        label: str | None = None,
        values: Sequence[str] = (),
    ) -> None:
        self._name, self._documentation = name, documentation
        self._label = label
        self._tallies = {value: Tally() for value in (values if label is not None else ("",))}
        registry.register(self)

    def __getitem__(self, value: str) -> Tally:
        """Of one value of the label."""
        return self._tallies[value]

    @property
    def only(self) -> Tally:
        """The one without a label."""
        return self._tallies[""]

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        labels = [] if self._label is None else [self._label]
        family = CounterMetricFamily(self._name, self._documentation, labels=labels)
        for value, tally in self._tallies.items():
            family.add_metric([value] if labels else [], tally.value)
        yield family

    describe = collect


class TallyHistogram(Collector):
    """A histogram without labels. buckets: upper bounds, rising; one without a bound is added."""

    def __init__(
        self, name: str, documentation: str, registry: CollectorRegistry, buckets: Sequence[float]
    ) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = list(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to the bucket below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        bounds = [floatToGoString(bound) for bound in (*self._bounds, float("inf"))]  # type: ignore[no-untyped-call]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)

    describe = collect
