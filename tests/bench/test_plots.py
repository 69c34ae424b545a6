"""Plots are files that are the same bytes each time."""

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from offramp.bench.plots import Plot, Series, draw, publish

LINES = Plot("Title", "x", "y", [Series("a", [1.0, 2.0], [3.0, 4.0])], log_x=True)
BARS = Plot("Title", "x", "y", [Series("a", ["p", "q"], [3.0, 4.0]), Series("b", ["q"], [1.0])], kind="bars")


@pytest.mark.parametrize("plot", [LINES, BARS], ids=["lines", "bars"])
def test_the_same_plot_is_the_same_bytes(plot: Plot, tmp_path: Path) -> None:
    first, second = (draw(plot, tmp_path / name) for name in ("first", "second"))
    assert [path.suffix for path in first] == [".png", ".svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes() != b""


def test_a_result_is_printed_and_left_with_its_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("name", {"a": 1}, lambda _: {"plot": LINES}, lambda found: [f"a is {found['a']}"],
            out=tmp_path / "out", as_json=False)  # fmt: skip
    assert capsys.readouterr().out == "a is 1\n"
    assert json.loads((tmp_path / "out" / "name.json").read_text()) == {"a": 1}
    assert (tmp_path / "out" / "plot.svg").exists()
