"""What the early exit says of a device's images, by bins, beside what it said of the bundle's test images.

``deploy/prometheus/rules/recording.yml`` computes their distance.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from offramp.common.bundle.drift import EDGES, bin_of
from offramp.common.bundle.manifest import Manifest
from offramp.device.head import EarlyExit

KINDS = ("exit", "confidence", "class")
CLASSES = 32
"""Classes that are counted each by itself; of more, the commonest, and `OTHERS` together."""
OTHERS = "(others)"
_EARLY, _SENT = "early_exit", "sent"


class DriftMetrics:
    """Counts every image that ran through the head, whoever answers it."""

    def __init__(self, manifest: Manifest, registry: CollectorRegistry) -> None:
        self._reference = reference = manifest.figures.drift
        self._edges = EDGES if reference is None else tuple(reference.edges)
        self._names = _names(manifest)
        bins = [f"{edge:g}" for edge in (*self._edges, 1.0)]
        self._counts = _Counts((_SENT, _EARLY), bins, self._names)
        registry.register(self._counts)
        self._ratio = Gauge(
            "offramp_device_drift_reference_ratio",
            "Share of the bundle's test images in the same bin; of exits at the threshold in force. Missing "
            "where it was not measured.",
            ["of", "bin"],
            registry=registry,
        )
        self._of = Gauge(
            "offramp_device_drift_reference_images",
            "Test images that this was measured on; 0: there is nothing to compare with.",
            ["of"],
            registry=registry,
        )
        for kind in KINDS:
            self._of.labels(kind).set(0)
        if reference is not None:
            self._refer("confidence", bins, reference.confidence)
            self._refer("class", self._names, reference.classes)
        self._points = {point.threshold: point.exit_rate for point in manifest.figures.thresholds}
        self._test_images = manifest.figures.images

    def count(self, exit_: EarlyExit, threshold: float) -> None:
        """One image, and T_c that decides it."""
        confidence = bin_of(self._edges, exit_.confidence)
        self._counts.add(exit_.is_confident(threshold), confidence, exit_.class_index)

    def watch_threshold(self, threshold: Callable[[], float]) -> None:
        """Export the exit rate that was measured at exactly the threshold in force, looked up at each scrape.

        The nearest would differ from it by itself.
        """

        def rate() -> float:
            return self._points.get(threshold(), float("nan"))

        if self._points and self._test_images:
            self._ratio.labels("exit", _EARLY).set_function(rate)
            self._ratio.labels("exit", _SENT).set_function(lambda: 1 - rate())
            self._of.labels("exit").set(self._test_images)

    def _refer(self, kind: str, bins: list[str], counts: list[int]) -> None:
        images = sum(counts)
        self._of.labels(kind).set(images)
        shares = dict.fromkeys(bins, 0)
        for name, count in zip(bins, counts, strict=True):
            shares[name] += count
        for name, count in shares.items():
            self._ratio.labels(kind, name).set(count / images)


class _Counts(Collector):
    """Images by exit, by confidence and by class, each by its number; one lock for the three.

    prometheus_client's own counters take one each, which shows in the loop of a small head.
    """

    def __init__(self, exits: Sequence[str], confidences: Sequence[str], classes: Sequence[str]) -> None:
        self._names = (exits, confidences, classes)
        self._exits, self._confidences, self._classes = ([0] * len(names) for names in self._names)
        self._lock = threading.Lock()

    def add(self, exit_: int, confidence: int, class_: int) -> None:
        """One image."""
        with self._lock:
            self._exits[exit_] += 1
            self._confidences[confidence] += 1
            self._classes[class_] += 1

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        family = CounterMetricFamily(
            "offramp_device_drift_images",
            "Images by what their early exit said, to be compared with the bundle's test images.",
            labels=["of", "bin"],
        )
        with self._lock:
            counts = [list(each) for each in (self._exits, self._confidences, self._classes)]
        for kind, names, numbers in zip(KINDS, self._names, counts, strict=True):
            shown: dict[str, int] = dict.fromkeys(names, 0)
            for name, number in zip(names, numbers, strict=True):
                shown[name] += number
            for name, number in shown.items():
                family.add_metric([kind, name], number)
        yield family

    describe = collect


def _names(manifest: Manifest) -> list[str]:
    """The bin of each class."""
    classes, reference = manifest.classes, manifest.figures.drift
    if len(classes) <= CLASSES:
        return list(classes)
    order = range(len(classes))
    if reference is not None:
        order = sorted(order, key=lambda index: -reference.classes[index])  # type: ignore[assignment]
    own = set(order[: CLASSES - 1])
    return [name if index in own else OTHERS for index, name in enumerate(classes)]
