"""The device's Prometheus metrics. docs/how-to/watch-a-fleet.md says what to ask of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import AgreementFigures, ThresholdFigures
from offramp.common.metrics import STAGE_BUCKETS, ProviderMetrics, add_info_metrics
from offramp.link.metrics import LinkMetrics

SOURCES = ("early_exit", "server", "fallback")
SPOOL_CAUSES = ("full", "refused", "damaged", "busy")
AUDIT_RESULTS = ("agrees", "differs", "lost")


class DeviceMetrics:
    """One device's metrics, in a registry of their own."""

    def __init__(self, bundle: Bundle) -> None:
        self.registry = registry = CollectorRegistry()
        self.link = LinkMetrics(registry, "offramp_device")
        self.images = Counter(
            "offramp_device_images", "Images answered, by who answered.", ["source"], registry=registry
        )
        self.answered_by = {source: self.images.labels(source) for source in SOURCES}
        self.add_parts(len(bundle.manifest.parts))
        self.unknown = Counter(
            "offramp_device_unknown",
            "Images unlike all that the bundle knows, where it can say so; they are answered as any other.",
            registry=registry,
        )
        self.image_errors = Counter(
            "offramp_device_image_errors", "Images that could not be read.", registry=registry
        )
        self.pictures = Counter(
            "offramp_device_pictures",
            "Pictures of images that were unsure of the server's answer too, by whether they were answered.",
            ["result"],
            registry=registry,
        )
        self.pictures_answered, self.pictures_unanswered = map(
            self.pictures.labels, ("answered", "unanswered")
        )
        audits = Counter(
            "offramp_device_audits",
            "Images that exited early and were sent as audits, by what the server said of them.",
            ["result"],
            registry=registry,
        )
        self.audits = {result: audits.labels(result) for result in AUDIT_RESULTS}
        self.audit_wire_bytes = Counter(
            "offramp_device_audit_wire_bytes",
            "Answered audits and their answers with gRPC and HTTP/2 framing, both directions, bytes.",
            registry=registry,
        )
        self.corrections = Counter(
            "offramp_device_corrections",
            "Answers of the server that came after the early exit's had gone out.",
            registry=registry,
        )
        self._add_spool()
        self.jpeg_bytes = Counter(
            "offramp_device_jpeg_bytes",
            "What all images would have taken as JPEG, with --compare-jpeg only, bytes.",
            registry=registry,
        )
        self._add_sizes(bundle)
        self._add_threshold(bundle)
        self.stage_seconds = Histogram(
            "offramp_device_stage_seconds",
            "Time of one image in one stage.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        # To look a child up costs more than to count in it.
        self.read_seconds = self.stage_seconds.labels("read")
        self.decode_seconds = self.stage_seconds.labels("decode")
        self.head_seconds = self.stage_seconds.labels("head")
        self.encode_seconds = self.stage_seconds.labels("encode")
        add_info_metrics(registry, bundle)
        self.providers = ProviderMetrics(registry, "offramp_device")

    def add_parts(self, parts: int) -> None:
        """Of a chain: with two parts the sources say it all."""
        self._answers: dict[tuple[int, bool], Counter] = {}
        if parts == 2:
            return
        answers = Counter(
            "offramp_device_answers",
            "Images answered, by the number of the part that answered; cut_short: it was unsure, and the "
            "part behind it did not answer.",
            ["part", "cut_short"],
            registry=self.registry,
        )
        for part in range(1, parts + 1):
            for cut_short in (False, True):
                if not cut_short or 1 < part < parts:
                    self._answers[part, cut_short] = answers.labels(str(part), str(cut_short).lower())

    def answered(self, part: int, cut_short: bool) -> None:
        """Count an answer of a chain."""
        if counter := self._answers.get((part, cut_short)):
            counter.inc()

    def _add_spool(self) -> None:
        registry = self.registry
        self.spooled = Counter("offramp_device_spooled", "Activations put into the spool.", registry=registry)
        self.spool_dropped = Counter(
            "offramp_device_spool_dropped",
            "Spooled activations that were given up, by cause.",
            ["cause"],
            registry=registry,
        )
        for cause_of_drop in SPOOL_CAUSES:
            self.spool_dropped.labels(cause_of_drop)
        self.spool_repeats = Counter(
            "offramp_device_spool_repeats",
            "Spooled activations that were answered late while the disk was too slow: they are sent again.",
            registry=registry,
        )
        self.spool_errors = Counter(
            "offramp_device_spool_errors", "Failed reads and writes of the spool.", registry=registry
        )
        self.spool_entries = Gauge(
            "offramp_device_spool_entries", "Activations in the spool.", registry=registry
        )
        self.spool_bytes = Gauge(
            "offramp_device_spool_bytes",
            "What the activations in the spool take, bytes.",
            registry=registry,
        )

    def _add_sizes(self, bundle: Bundle) -> None:
        raw_size = Gauge(
            "offramp_device_raw_size_bytes",
            "One input uncoded: its pixels or values for the network, its activation at one byte a symbol.",
            ["of"],
            registry=self.registry,
        )
        taken = bundle.manifest.input
        raw_size.labels("pixels").set(math.prod(taken.shape) * np.dtype(taken.dtype).itemsize)
        raw_size.labels("activation").set(bundle.codec.raw_bytes)

    def _add_threshold(self, bundle: Bundle) -> None:
        self.threshold = Gauge(
            "offramp_device_threshold_ratio", "Confidence threshold T_c in force.", registry=self.registry
        )
        self._points = sorted(bundle.manifest.figures.thresholds, key=lambda point: point.threshold)
        self.expected_accuracy = Gauge(
            "offramp_device_expected_accuracy_ratio",
            "Accuracy on the bundle's test images at the threshold in force; the nearest that was measured.",
            registry=self.registry,
        )
        self.expected_exits = Gauge(
            "offramp_device_expected_exit_ratio",
            "Exit rate on the bundle's test images at the threshold in force; the nearest that was measured.",
            registry=self.registry,
        )
        self._agreements = bundle.manifest.figures.agreement or []
        self.expected_agreement = Gauge(
            "offramp_device_expected_agreement_ratio",
            "Agreement of the server with the early exit on the bundle's test images that exit early at the "
            "threshold in force; the nearest that was measured.",
            registry=self.registry,
        )
        self.expected_agreement_images = Gauge(
            "offramp_device_expected_agreement_images",
            "Test images that this was measured on.",
            registry=self.registry,
        )

    def watch_threshold(self, threshold: Callable[[], float]) -> None:
        """Export what the bundle measured at the threshold in force, looked up at each scrape."""

        def nearest() -> ThresholdFigures:
            return min(self._points, key=lambda point: abs(point.threshold - threshold()))

        self._watch_agreement(threshold)
        if self._points:
            self.expected_accuracy.set_function(lambda: nearest().accuracy)
            self.expected_exits.set_function(lambda: nearest().exit_rate)
        else:
            self.expected_accuracy.set(math.nan)
            self.expected_exits.set(math.nan)

    def _watch_agreement(self, threshold: Callable[[], float]) -> None:
        """What audits are compared with; a threshold at which nothing exits measured nothing."""
        points = [point for point in self._agreements if point.exits]

        def nearest() -> AgreementFigures:
            return min(points, key=lambda point: abs(point.threshold - threshold()))

        if points:
            self.expected_agreement.set_function(lambda: nearest().ratio)
            self.expected_agreement_images.set_function(lambda: nearest().exits)
        else:
            self.expected_agreement.set(math.nan)
            self.expected_agreement_images.set(0)
