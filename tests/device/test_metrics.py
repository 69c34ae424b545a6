"""The device's own metrics: there from the start, and what the bundle measured at the threshold in force."""

from __future__ import annotations

import math
from dataclasses import replace

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import AgreementFigures, ThresholdFigures
from offramp.device.metrics import SOURCES, SPOOL_CAUSES, DeviceMetrics


def with_curve(bundle: Bundle, *points: tuple[float, float, float]) -> Bundle:
    """The bundle with these thresholds, exit rates and accuracies as measured."""
    curve = [
        ThresholdFigures.model_construct(threshold=threshold, exit_rate=rate, accuracy=accuracy)
        for threshold, rate, accuracy in points
    ]
    figures = bundle.manifest.figures.model_copy(update={"thresholds": curve})
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"figures": figures}))


def test_the_figures_of_the_nearest_threshold_are_shown_as_it_moves(toy_bundle: Bundle) -> None:
    metrics = DeviceMetrics(with_curve(toy_bundle, (0.9, 0.4, 0.95), (0.5, 0.7, 0.9)))
    value = metrics.registry.get_sample_value
    in_force = [0.55]
    metrics.watch_threshold(lambda: in_force[0])
    assert value("offramp_device_expected_accuracy_ratio") == 0.9
    assert value("offramp_device_expected_exit_ratio") == 0.7
    in_force[0] = 0.8
    assert value("offramp_device_expected_accuracy_ratio") == 0.95
    assert value("offramp_device_expected_exit_ratio") == 0.4


def test_without_a_measured_curve_nothing_is_expected(toy_bundle: Bundle) -> None:
    metrics = DeviceMetrics(with_curve(toy_bundle))
    metrics.watch_threshold(lambda: 0.5)
    for name in ("accuracy", "exit"):
        value = metrics.registry.get_sample_value(f"offramp_device_expected_{name}_ratio")
        assert value is not None and math.isnan(value)


def test_every_source_and_cause_is_there_before_it_is_counted(toy_bundle: Bundle) -> None:
    value = DeviceMetrics(toy_bundle).registry.get_sample_value
    assert [value("offramp_device_images_total", {"source": source}) for source in SOURCES] == [0] * 3
    dropped = [value("offramp_device_spool_dropped_total", {"cause": cause}) for cause in SPOOL_CAUSES]
    assert dropped == [0] * len(SPOOL_CAUSES)
    assert value("offramp_device_raw_size_bytes", {"of": "activation"}) == toy_bundle.codec.raw_bytes


def test_what_audits_are_compared_with_is_that_of_the_nearest_threshold(toy_bundle: Bundle) -> None:
    """A threshold at which nothing exits has measured nothing."""
    measured = [
        AgreementFigures(threshold=threshold, exits=exits, agree=agree)
        for threshold, exits, agree in ((0.5, 80, 60), (0.9, 40, 38), (1.0, 0, 0))
    ]
    figures = toy_bundle.manifest.figures.model_copy(update={"agreement": measured})
    manifest = toy_bundle.manifest.model_copy(update={"figures": figures})
    metrics = DeviceMetrics(replace(toy_bundle, manifest=manifest))
    in_force = [0.99]
    metrics.watch_threshold(lambda: in_force[0])
    value = metrics.registry.get_sample_value
    found = []
    for in_force[0] in (0.99, 0.6):
        found.append(
            tuple(value(f"offramp_device_expected_agreement_{name}") for name in ("ratio", "images"))
        )
    assert found == [(0.95, 40), (0.75, 80)]


def test_a_bundle_of_before_has_nothing_to_compare_audits_with(toy_bundle: Bundle) -> None:
    metrics = DeviceMetrics(toy_bundle)
    metrics.watch_threshold(lambda: 0.5)
    ratio = metrics.registry.get_sample_value("offramp_device_expected_agreement_ratio")
    assert ratio is not None and math.isnan(ratio)
    assert metrics.registry.get_sample_value("offramp_device_expected_agreement_images") == 0
