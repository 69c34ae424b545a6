"""Audits: which images are drawn, what their answers count as, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.part.engine import Engine
from offramp.device import AuditOptions, Device, LinkOptions, SteeringOptions
from offramp.device.audits import Audits
from offramp.device.metrics import AUDIT_RESULTS, DeviceMetrics
from offramp.link.outcome import Answer, Cause, Outcome, Refusal
from tests import toy
from tests.processes import Processes, closed_port, counting_proxy, processes, scrape, until

THRESHOLD = 0.6
RESULTS = ("agrees", "differs", "lost")


@pytest.fixture
def metrics(toy_bundle: Bundle) -> DeviceMetrics:
    return DeviceMetrics(toy_bundle)


def counts(metrics: DeviceMetrics) -> dict[str, float]:
    value = metrics.registry.get_sample_value
    return {result: value("offramp_device_audits_total", {"result": result}) or 0.0 for result in RESULTS}


def draws(share: float, seed: int | None, metrics: DeviceMetrics, count: int = 10_000) -> list[bool]:
    audits = Audits(share, seed, metrics)
    return [audits.draw() for _ in range(count)]


def test_a_seed_draws_the_same_images(metrics: DeviceMetrics) -> None:
    assert draws(0.1, 7, metrics) == draws(0.1, 7, metrics) != draws(0.1, 8, metrics)
    assert draws(0.1, None, metrics) != draws(0.1, None, metrics)
    assert 900 < sum(draws(0.1, 7, metrics)) < 1100
    assert sum(draws(0.0, 7, metrics)) == 0 and sum(draws(1.0, 7, metrics)) == 10_000


@pytest.mark.parametrize(
    ("outcome", "expected", "wire"),
    [
        (Answer(2, 0.4, None, 60.0, 80.0), "agrees", 80),
        (Answer(1, 0.9, None, 60.0, 80.0), "differs", 80),
        (Refusal("no reply", Cause.TIMEOUT, 1), "lost", 0),
        (Refusal("closed", Cause.CLOSED), "lost", 0),
    ],
)
def test_an_outcome_is_counted_once(
    metrics: DeviceMetrics, outcome: Outcome, expected: str, wire: float
) -> None:
    assert counts(metrics) == dict.fromkeys(AUDIT_RESULTS, 0)
    Audits(1.0, None, metrics).replied(2, outcome)
    assert counts(metrics) == dict.fromkeys(RESULTS, 0) | {expected: 1}
    assert metrics.registry.get_sample_value("offramp_device_audit_wire_bytes_total") == wire


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    with processes(toy_bundle.path) as started:
        yield started


def drawn(share: float, seed: int, count: int, metrics: DeviceMetrics) -> list[int]:
    return [index for index, yes in enumerate(draws(share, seed, metrics, count)) if yes]


def test_the_server_s_answers_are_compared_and_no_result_changes(
    run: Processes, toy_bundle: Bundle, toy_engine: Engine
) -> None:
    server = run.server()
    images = toy.images(60, seed=2)
    symbols, early = toy_engine.head(images)
    final = toy_engine.tail(symbols)
    results = {}
    for share in (0.0, 0.5):
        device = Device(
            toy_bundle,
            server=server.address,
            threshold=THRESHOLD,
            audits=AuditOptions(share, 5),
            link=LinkOptions(timeout=60.0),
        )
        with device:
            results[share] = [device.infer(image) for image in images]
        exits = early.max(axis=1) > THRESHOLD
        expected = Counter[str]()
        for index in drawn(share, 5, len(images), device.metrics):
            if exits[index]:
                expected["agrees" if early[index].argmax() == final[index].argmax() else "differs"] += 1
        assert counts(device.metrics) == dict.fromkeys(RESULTS, 0) | expected
        assert share == 0.0 or min(expected["agrees"], expected["differs"]) > 1
    plain, audited = results[0.0], results[0.5]
    assert [(r.label, r.confidence, r.source) for r in plain] == [
        (r.label, r.confidence, r.source) for r in audited
    ]
    assert all(r.payload_bytes == 0 == r.sends for r in audited if r.source == "early_exit")


def test_without_a_server_all_are_lost_and_all_are_answered(toy_bundle: Bundle) -> None:
    with closed_port() as port:
        device = Device(toy_bundle, server=f"127.0.0.1:{port}", threshold=0, audits=AuditOptions(1.0))
        with device:
            results = [device.infer(image) for image in toy.images(30)]
    assert {result.source for result in results} == {"early_exit"}
    assert counts(device.metrics) == {"agrees": 0, "differs": 0, "lost": 30}
    value = device.metrics.registry.get_sample_value
    assert value("offramp_device_frames_unanswered_total", {"cause": "unavailable"}) == 0
    assert value("offramp_device_audit_bytes_total") == 0


def test_audits_are_charged_to_the_budget_and_stop_where_it_is_overdrawn(
    run: Processes, toy_bundle: Bundle
) -> None:
    """T_c may not rise: at the floor everything exits, so that only audits spend."""
    server = run.server()
    steering = SteeringOptions(byte_budget=1.0, threshold_floor=0.0, threshold_ceiling=0.0)
    device = Device(
        toy_bundle,
        server=server.address,
        threshold=0,
        steering=steering,
        audits=AuditOptions(1.0),
        link=LinkOptions(timeout=60.0),
    )
    with device:
        for image in toy.images(200):
            assert device.infer(image).source == "early_exit"
    found = counts(device.metrics)
    # A bucket of 16 frames, and what it may owe.
    assert found["agrees"] + found["differs"] + found["lost"] == 200
    assert 1 <= found["agrees"] + found["differs"] <= 40 and found["lost"] >= 160


def test_an_audit_costs_what_an_unsure_image_costs(
    run: Processes, toy_bundle: Bundle, tmp_path: Path
) -> None:
    """The formula: audits times the bytes of an image that is sent, both directions, counted by a proxy."""
    count = 80
    images = tmp_path / "many.npz"
    np.savez(images, images=toy.images(count, seed=4).transpose(0, 2, 3, 1))
    server = run.server("--workers", 1, "--max-batch", 8, "--max-wait-ms", 0)
    counted = []
    for flags in (("--threshold", 1), ("--threshold", 0, "--audit", 1)):
        with counting_proxy(server.port) as proxy:
            device = run.start_device(
                *("--server", f"127.0.0.1:{proxy.port}", *flags, "--timeout", 60, "--rate", 25),
                *("--metrics-port", 0, "--hold", "--json", images),
            )
            url = "http://" + device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
            until(lambda: device.stdout and "summary" in device.stdout[-1], "the summary")  # noqa: B023
            counted.append((proxy.up + proxy.down, device.summary, scrape(url)))
    (of_unsure, sent, _), (of_audits, summary, page) = counted
    assert sent["server"] == summary["early_exit"] == count and summary["payload_bytes"] == 0
    assert sum(summary["audits"].values()) == count and summary["audits"]["lost"] <= count / 6
    assert summary["audits"] == {
        result: int(page[f"offramp_device_audits_total{{result={result}}}"]) for result in RESULTS
    }
    audited = count - summary["audits"]["lost"]
    assert of_audits == pytest.approx(of_unsure / count * audited, rel=0.05)
    payload = page["offramp_device_audit_bytes_total"]
    assert (
        payload
        == page["offramp_device_payload_bytes_total"]
        == pytest.approx(sent["payload_bytes"], rel=0.05)
    )
    assert payload < page["offramp_device_audit_wire_bytes_total"] < of_audits
