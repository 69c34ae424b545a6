"""Figures of the window."""

from __future__ import annotations

import pytest

from offramp.cli.fleet.figures import Watched, server_row, wilson
from offramp.cli.fleet.pages import Key, Page
from offramp.cli.fleet.targets import Target


def test_a_restarted_program_starts_again() -> None:
    key: Key = ("offramp_server_frames_total", (("result", "answered"),))
    watched = Watched(Target("a", "http://a"))
    watched.add(Page(1.0, {key: 10.0}), 30)
    watched.add(Page(2.0, {key: 16.0}), 30)
    assert server_row(watched)["frames_per_second"] == 6
    watched.add(Page(3.0, {key: 2.0}), 30)
    assert server_row(watched)["frames_per_second"] is None
    watched.add(Page(5.0, {key: 4.0}), 30)
    assert server_row(watched)["frames_per_second"] == 1


def test_the_window_slides() -> None:
    key: Key = ("offramp_server_frames_total", (("result", "answered"),))
    watched = Watched(Target("a", "http://a"))
    for second in range(100):
        watched.add(Page(float(second), {key: float(second**2)}), 10)
    assert watched.seconds == 10
    assert watched.change(*("offramp_server_frames_total",), result="answered") == 99**2 - 89**2


def test_quantiles_are_interpolated() -> None:
    def page(at: float, *counts: float) -> Page:
        bounds = ("0.1", "0.2", "+Inf")
        return Page(at, {("h_bucket", (("le", bound),)): n for bound, n in zip(bounds, counts, strict=True)})

    watched = Watched(Target("a", "http://a"))
    watched.add(page(0, 0, 0, 0), 30)
    assert watched.quantile("h", 0.5) is None
    watched.add(page(1, 2, 4, 4), 30)
    assert watched.quantile("h", 0.5) == pytest.approx(0.1)
    assert watched.quantile("h", 0.75) == pytest.approx(0.15)
    watched.add(page(2, 2, 4, 8), 30)
    assert watched.quantile("h", 0.99) == pytest.approx(0.2)


def test_wilson_s_interval() -> None:
    """As scipy's binomtest gives it."""
    assert wilson(27, 30) == pytest.approx((0.743786, 0.965401), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.277540), abs=1e-5)
    low, high = wilson(10, 10) or (0.0, 0.0)
    assert low == pytest.approx(1 - 0.277540, abs=1e-5) and high == pytest.approx(1)
    assert wilson(0, 0) is None
