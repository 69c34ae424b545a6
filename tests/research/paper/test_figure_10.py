"""Figure 10: the least bytes at an accuracy floor."""

import pytest

from research.paper import figure_10
from research.paper import runs as recorded
from research.paper.baselines import AsPictures, Baselines, Hybrid
from tests.records import paper_like


def test_figure_10_takes_the_least_bytes_at_the_floor() -> None:
    runs = paper_like()
    # Accuracy is 0.7 + 0.2 T_c: T_c = 0.8 is the first of the grid with 85 %.
    plain = recorded.runs_at_exit(runs, 5)[0.0]
    assert figure_10.cost_at_floor(plain, "raw", 0.85) == pytest.approx(0.8 * 24_576)
    assert figure_10.cost_at_floor(plain, "raw", 0.95) is None
    report = figure_10.fig10(runs)
    rows = {row["line"]: row for row in report.rows}
    assert rows["raw, λ_e = 0"]["kb"] == pytest.approx(19.2)
    assert rows["raw, λ_e = 0"]["kb_paper"] == 6.5
    saved = 1 - 11_674 / 24_576
    assert f"85.0 %: {saved:.0%}" in report.notes[0]


def test_figure_10_shows_what_sends_pictures_instead() -> None:
    one = Baselines(
        bundle="some",
        digest="0",
        images=10,
        pictures=[AsPictures(name="WebP 50", bytes_mean=256, accuracy=0.88)],
        hybrids=[
            Hybrid(name="early exit + WebP 50", threshold=[0, 1], bytes_mean=[0, 256], accuracy=[0.7, 0.88])
        ],
    )
    report = figure_10.fig10(paper_like(), [one])
    rows = {row["line"]: row for row in report.rows}
    assert rows["WebP 50 (some)"]["kb"] == 0.25
    assert rows["early exit + WebP 50 (some)"]["kb"] == 0.25
    assert report.plot is not None
    assert report.plot.log_x
