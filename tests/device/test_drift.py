"""What a device publishes of its early exit's answers, and of the bundle's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from offramp.common.bundle.drift import EarlyExitFigures
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import Manifest, ThresholdFigures
from offramp.device.drift import CLASSES, OTHERS, DriftMetrics
from offramp.device.head import EarlyExit

IMAGES, RATIO, OF = (
    f"offramp_device_drift_{name}" for name in ("images_total", "reference_ratio", "reference_images")
)


def measured(manifest: Manifest, classes: list[int]) -> Manifest:
    """The manifest with as many classes as these counts, half of them below a confidence of 0.5."""
    half = sum(classes) // 2
    found = EarlyExitFigures(edges=[0.5], confidence=[half, sum(classes) - half], classes=classes)
    points = [
        ThresholdFigures.model_construct(threshold=0.5, exit_rate=0.75, accuracy=1.0, payload_bytes_mean=0.0)
    ]
    figures = manifest.figures.model_copy(update={"drift": found, "thresholds": points, "images": 400})
    names = [f"c{number}" for number in range(len(classes))]
    return manifest.model_copy(update={"figures": figures, "classes": names})


def seen(class_index: int, confidence: float) -> EarlyExit:
    nothing = np.zeros(0)
    return EarlyExit(nothing.astype(np.uint8), class_index, confidence, nothing.astype(np.float32))


def test_each_image_is_in_a_bin_of_each_kind(toy_bundle: Bundle) -> None:
    registry = CollectorRegistry()
    drift = DriftMetrics(measured(toy_bundle.manifest, [30, 10]), registry)

    def value(of: str, name: str) -> float | None:
        return registry.get_sample_value(IMAGES, {"of": of, "bin": name})

    bins = [("exit", "early_exit"), ("exit", "sent"), ("confidence", "0.5"), ("confidence", "1")]
    bins += [("class", "c0"), ("class", "c1")]
    assert [value(*each) for each in bins] == [0] * 6
    for class_index, confidence in ((1, 0.4), (1, 0.5), (0, 0.7), (1, 0.95)):
        drift.count(seen(class_index, confidence), 0.7)
    assert [value(*each) for each in bins] == [1, 3, 2, 2, 1, 3]


def test_the_bundles_own_is_beside_it(toy_bundle: Bundle) -> None:
    registry = CollectorRegistry()
    drift = DriftMetrics(measured(toy_bundle.manifest, [30, 10]), registry)
    in_force = [0.5]
    drift.watch_threshold(lambda: in_force[0])
    shares = {
        ("exit", "early_exit"): 0.75, ("exit", "sent"): 0.25,
        ("confidence", "0.5"): 0.5, ("confidence", "1"): 0.5,
        ("class", "c0"): 0.75, ("class", "c1"): 0.25,
    }  # fmt: skip
    for (of, name), share in shares.items():
        assert registry.get_sample_value(RATIO, {"of": of, "bin": name}) == share
    assert [registry.get_sample_value(OF, {"of": of}) for of in ("exit", "confidence", "class")] == [
        400,
        40,
        40,
    ]
    in_force[0] = 0.55
    unmeasured = registry.get_sample_value(RATIO, {"of": "exit", "bin": "early_exit"})
    assert unmeasured is not None and math.isnan(unmeasured)


def test_a_bundle_of_before_counts_and_has_nothing_to_compare_with(toy_bundle: Bundle) -> None:
    registry = CollectorRegistry()
    drift = DriftMetrics(toy_bundle.manifest, registry)
    drift.watch_threshold(lambda: 0.5)
    drift.count(seen(0, 0.97), 0.5)
    assert registry.get_sample_value(IMAGES, {"of": "confidence", "bin": "0.98"}) == 1
    assert registry.get_sample_value(OF, {"of": "confidence"}) == 0
    assert registry.get_sample_value(RATIO, {"of": "confidence", "bin": "0.98"}) is None


@pytest.mark.parametrize("reference", [True, False])
def test_many_classes_share_a_bin(toy_bundle: Bundle, reference: bool) -> None:
    """The commonest have one of their own, or the first ones where nobody counted."""
    count = CLASSES + 8
    manifest = measured(toy_bundle.manifest, list(range(count)))
    if not reference:
        manifest = manifest.model_copy(update={"figures": toy_bundle.manifest.figures})
    registry = CollectorRegistry()
    drift = DriftMetrics(manifest, registry)
    for index in range(count):
        drift.count(seen(index, 0.9), 0.5)
    bins = {
        sample.labels["bin"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == IMAGES and sample.labels["of"] == "class"
    }
    assert len(bins) == CLASSES and bins[OTHERS] == 9
    own = range(9, count) if reference else range(CLASSES - 1)
    assert set(bins) == {OTHERS, *(f"c{index}" for index in own)}
    if reference:
        others = registry.get_sample_value(RATIO, {"of": "class", "bin": OTHERS})
        assert others == sum(range(9)) / sum(range(count))
