"""The judge: what is worse for sure is worse, and noise is not."""

from __future__ import annotations

import math

import pytest

from offramp.cli.fleet.pages import read_page
from offramp.cli.follow.judge import Figures, Window, figures_of, interval, is_of, judge

OLD = Figures(agree=97, differ=3, answered=95, fallback=5, connects=1)


@pytest.mark.parametrize(
    ("new", "old", "cause"),
    [
        (Figures(), OLD, None),
        (OLD, OLD, None),
        (Figures(agree=90, differ=10), OLD, None),
        (Figures(agree=60, differ=40), OLD, "audits"),
        (Figures(agree=5, differ=5), OLD, None),
        (Figures(agree=60, differ=40), None, None),
        (Figures(agree=60, differ=40, expected_agreement=0.95), None, "audits"),
        (Figures(agree=90, differ=10, expected_agreement=0.95), None, None),
        # Where both bundles do badly, the new one is no worse.
        (Figures(agree=60, differ=40, expected_agreement=0.95), Figures(agree=60, differ=40), None),
        (Figures(mismatches=2), OLD, "mismatch"),
        (Figures(mismatches=2), None, "mismatch"),
        (Figures(mismatches=1), OLD, None),
        (Figures(mismatches=9, connects=1), OLD, None),
        (Figures(answered=50, fallback=50, connects=1), OLD, "unanswered"),
        (Figures(answered=90, fallback=10, connects=1), OLD, None),
        (Figures(answered=5, fallback=10, connects=1), OLD, None),
        (Figures(fallback=100), None, None),
        (Figures(fallback=100), Figures(fallback=100), None),
    ],
)
def test_the_verdict(new: Figures, old: Figures | None, cause: str | None) -> None:
    found = judge(new, old)
    assert (found.cause if found else None) == cause
    # What a server or the network may be to blame for is tried again.
    assert found is None or found.again == (cause != "audits")


def test_one_refused_hello_is_enough_at_the_end() -> None:
    assert judge(Figures(mismatches=1), OLD) is None
    found = judge(Figures(mismatches=1), OLD, final=True)
    assert found is not None and found.cause == "mismatch"
    assert judge(Figures(mismatches=1, connects=1), OLD, final=True) is None


def test_an_interval() -> None:
    # scipy.stats.binomtest(60, 100).proportion_ci(2 * norm.cdf(2.58) - 1, "wilson")
    assert interval(60, 100) == pytest.approx((0.4712139654787, 0.7163040831334))
    assert interval(0, 20)[0] == pytest.approx(0, abs=1e-12)
    assert interval(20, 20)[1] == pytest.approx(1)


PAGE = """\
offramp_device_images_total{source="early_exit"} 70
offramp_device_images_total{source="server"} 20
offramp_device_images_total{source="fallback"} 10
offramp_device_audits_total{result="agrees"} 6
offramp_device_audits_total{result="differs"} 1
offramp_device_connects_total 3
offramp_device_hellos_refused_total{reason="mismatch"} 2
offramp_device_hellos_refused_total{reason="access"} 9
offramp_device_expected_agreement_ratio NaN
offramp_bundle_info{name="toy",digest="ab"} 1
"""


def test_a_page() -> None:
    page = read_page(PAGE, 0.0)
    assert is_of(page, "ab") and not is_of(page, "cd")
    found = figures_of(page)
    assert math.isnan(found.expected_agreement)
    assert (found.agree, found.differ, found.answered, found.fallback) == (6, 1, 20, 10)
    assert (found.connects, found.mismatches) == (3, 2)
    known = read_page(PAGE.replace("NaN", "0.5"), 0.0)
    assert figures_of(known).expected_agreement == 0.5


def test_only_what_was_counted_lately_is_compared() -> None:
    window = Window(10)
    assert window.figures() is None
    for second in range(100):
        window.add(float(second), Figures(answered=second * 2.0, connects=1))
    found = window.figures()
    assert found is not None and 18 <= found.answered <= 24
    # The device began again.
    window.add(100.0, Figures(answered=4))
    assert window.figures() == Figures(answered=4)


def test_a_window_that_is_read_often_stays_small() -> None:
    window = Window(1e9)
    for second in range(5000):
        window.add(float(second), Figures(answered=float(second)))
    found = window.figures()
    assert found is not None and found.answered == 4999
    assert len(window._read) <= 513
