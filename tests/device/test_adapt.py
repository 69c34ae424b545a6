"""Steering T_c: always within its bounds, and what is spent is what was allowed, on any stream of images."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.bundle.manifest import ThresholdFigures
from offramp.common.errors import ConfigError
from offramp.device.adapt import (
    HORIZON_FRAMES,
    HORIZON_IMAGES,
    HORIZON_SECONDS,
    HORIZON_WAITS,
    Range,
    Steering,
    bounds_of,
)

FRACTIONS = st.floats(0, 1)
RANGES = st.tuples(FRACTIONS, FRACTIONS).map(lambda pair: Range(min(pair), max(pair)))


def curve(*points: tuple[float, float]) -> list[ThresholdFigures]:
    return [
        ThresholdFigures(threshold=t, accuracy=a, exit_rate=0.5, payload_bytes_mean=1.0) for t, a in points
    ]


MEASURED = curve(
    (0.0, 0.978), (0.5, 0.978), (0.59, 0.981), (0.8, 0.986), (0.9, 0.989), (0.99, 0.984), (1, 0.983)
)


# --- the map ---


@given(RANGES, st.floats(-2, 2), st.floats(-2, 2))
def test_t_c_rises_with_the_level_and_stays_inside(bounds: Range, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert bounds.floor <= bounds.at(low) <= bounds.at(high) <= bounds.ceiling
    assert bounds.at(-1) == bounds.floor and bounds.at(1) == bounds.ceiling


@given(st.floats(0.01, 0.5), st.floats(0.6, 0.999), FRACTIONS)
def test_the_level_of_a_threshold_gives_it_back(floor: float, ceiling: float, share: float) -> None:
    bounds = Range(floor, ceiling)
    threshold = floor + (ceiling - floor) * share
    assert bounds.at(bounds.level(threshold)) == pytest.approx(threshold, abs=1e-9)


# --- the loop ---

STEPS = st.lists(st.tuples(st.floats(-1, 3600), st.floats(-1e6, 1e6), st.floats(0, 1e4)), max_size=100)


@given(RANGES, FRACTIONS, STEPS, st.floats(1, 1e6), st.floats(1e-4, 100))
def test_it_never_leaves_its_bounds(
    bounds: Range, start: float, steps: list[tuple[float, float, float]], rate: float, target: float
) -> None:
    steering = Steering(bounds, start, 0.0, rate=rate, target=target, frame_bytes=100)
    now = 0.0
    for wait, count, latency in steps:
        now += wait  # also backwards
        assert bounds.floor <= steering.threshold(now) <= bounds.ceiling
        steering.spend(count)
        steering.answered(latency)


@given(
    st.integers(0, 2**32),
    st.floats(200, 20_000),
    st.floats(1, 200),
    st.integers(50, 2000),
    st.floats(0.2, 20),
    FRACTIONS,
)
def test_a_byte_budget_is_met_on_any_stream_of_confidences(
    seed: int, rate: float, per_second: float, size: int, skew: float, start: float
) -> None:
    """Over any time from the start: what the budget pours in, and twice what the bucket holds."""
    luck = random.Random(seed)
    steering = Steering(Range(0.0, 1.0), start, 0.0, rate=rate, frame_bytes=size)
    capacity = max(rate * HORIZON_SECONDS, HORIZON_FRAMES * size)
    spent = now = 0.0
    for _ in range(400):
        now += luck.expovariate(per_second)
        confidence = luck.random() ** (1 / skew)
        if confidence <= steering.threshold(now):
            steering.spend(size)
            spent += size
        assert spent <= rate * now + capacity + size


def test_it_settles_at_the_budget_and_follows_the_stream() -> None:
    luck = random.Random(7)
    steering = Steering(Range(0.2, 0.999), 0.9, 0.0, rate=2000, frame_bytes=600)
    now = 0.0

    def run(seconds: float, skew: float) -> tuple[float, list[float]]:
        nonlocal now
        end, spent, seen = now + seconds, 0, []
        while now < end:
            now += 1 / 50
            threshold = steering.threshold(now)
            seen.append(threshold)
            if luck.random() ** (1 / skew) <= threshold:
                steering.spend(600)
                spent += 600
        return spent / seconds, seen

    run(120, 8)
    for skew in (8, 2, 20):
        run(120, skew)  # settle
        rate, seen = run(300, skew)
        assert rate == pytest.approx(2000, rel=0.1)
        # No swings from one end to the other.
        assert max(seen) - min(seen) < 0.5


def test_an_idle_link_saves_one_bucket_and_no_more() -> None:
    steering = Steering(Range(0.5, 0.9), 0.5, 0.0, rate=1000)
    assert steering.threshold(1e6) == 0.9
    steering.spend(1000 * HORIZON_SECONDS)
    assert steering.threshold(1e6) == 0.5


def test_what_the_floor_overdraws_is_paid_back_first() -> None:
    steering = Steering(Range(0.5, 0.9), 0.5, 0.0, rate=1000)
    steering.spend(8000)
    assert steering.threshold(7.9) == 0.5
    assert steering.threshold(8.5) > 0.5


@given(st.integers(0, 2**32), st.floats(0.01, 0.2), st.floats(0.3, 2.0))
def test_a_latency_target_is_met_where_it_can_be(seed: int, target: float, trip: float) -> None:
    luck = random.Random(seed)
    steering = Steering(Range(0.0, 1.0), 0.9, 0.0, target=target, wait_seconds=trip)
    capacity = max(target * HORIZON_IMAGES, HORIZON_WAITS * trip)
    total, count = 0.0, 1500
    for index in range(count):
        offloaded = luck.random() <= steering.threshold(float(index))
        latency = trip if offloaded else 0.001
        steering.answered(latency)
        total += latency
    assert total <= target * count + capacity + trip


def test_both_take_the_lower_one() -> None:
    steering = Steering(Range(0.1, 0.9), 0.9, 0.0, rate=1e9, target=0.01)
    for _ in range(2 * HORIZON_IMAGES):
        steering.answered(1.0)
    assert steering.threshold(0.0) == 0.1


# --- the bounds ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (0.59, 0.9)),
        ({"accuracy_floor": 0.98}, (0.59, 0.9)),
        ({"accuracy_floor": 0.978}, (0.0, 0.9)),
        ({"accuracy_floor": 0.9865}, (0.9, 0.9)),
        ({"accuracy_floor": 0.986}, (0.8, 0.9)),
        ({"floor": 0.3}, (0.3, 0.9)),
        ({"ceiling": 1.0}, (0.59, 1.0)),
        ({"floor": 0.95}, (0.95, 0.95)),
        ({"ceiling": 0.2}, (0.2, 0.2)),
        ({"floor": 0.1, "ceiling": 0.2}, (0.1, 0.2)),
    ],
)
def test_bounds_come_from_the_measured_curve(
    arguments: dict[str, float], expected: tuple[float, float]
) -> None:
    bounds = bounds_of(MEASURED, 0.59, **arguments)
    assert (bounds.floor, bounds.ceiling) == expected


def test_a_dip_in_the_curve_ends_the_range() -> None:
    dip = curve((0.2, 0.95), (0.4, 0.80), (0.6, 0.95), (0.8, 0.97))
    assert bounds_of(dip, 0.6, accuracy_floor=0.9) == Range(0.6, 0.8)


def test_without_a_curve_the_bundles_threshold_is_the_floor() -> None:
    assert bounds_of([], 0.7) == Range(0.7, 1.0)


@pytest.mark.parametrize(
    ("points", "arguments", "message"),
    [
        (MEASURED, {"accuracy_floor": 0.99}, r"the bundle reaches 0\.9890 at most"),
        (MEASURED, {"floor": 0.8, "ceiling": 0.7}, "lies above"),
        ([], {"accuracy_floor": 0.5}, "no measured thresholds"),
    ],
)
def test_impossible_bounds_are_refused(
    points: list[ThresholdFigures], arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bounds_of(points, 0.59, **arguments)
