"""Plots of reports: one description, written as PNG and SVG that are the same bytes each time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

WIDTH, HEIGHT, DPI = 7.0, 4.4, 150


@dataclass(frozen=True)
class Series:
    """One line, set of markers or group of bars. The paper's are drawn hollow and dashed."""

    name: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    paper: bool = False
    marks_only: bool = False


@dataclass(frozen=True)
class Plot:
    """What is drawn: ``bars`` has categories on its x axis, ``lines`` numbers."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: Literal["lines", "bars"] = "lines"
    log_x: bool = False
    log_y: bool = False


def draw(plot: Plot, stem: Path) -> list[Path]:
    """Write ``stem``.png and ``stem``.svg; returns their paths."""
    # Only here: it takes half a second, and tables need none of it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Without these an SVG holds random names and the time.
    with matplotlib.rc_context({"svg.hashsalt": "offramp", "font.size": 9, "axes.grid": True}):
        figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
        if plot.kind == "bars":
            _bars(axes, plot)
        else:
            for number, series in enumerate(plot.series):
                axes.plot(
                    series.x,
                    series.y,
                    label=series.name,
                    color=f"C{number % 10}",
                    marker="o" if series.marks_only or len(series.x) < 30 else None,
                    markerfacecolor="none" if series.paper else None,
                    markersize=5,
                    linestyle="none" if series.marks_only else "--" if series.paper else "-",
                )
        if plot.log_x:
            axes.set_xscale("log")
        if plot.log_y:
            axes.set_yscale("log")
        axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
        if plot.series:
            axes.legend(fontsize=7)
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(path, dpi=DPI, metadata=metadata)
        pyplot.close(figure)
    return paths


def publish(
    name: str,
    result: Any,
    plots: Callable[[Any], Mapping[str, Plot]],
    lines: Callable[[Any], Iterable[str]],
    *,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print a benchmark's result as its lines or as JSON; into ``out`` also NAME.json and its plots."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        for stem, plot in plots(result).items():
            draw(plot, out / stem)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        for line in lines(result):
            print(line)


def _bars(axes: object, plot: Plot) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    names = list(dict.fromkeys(str(x) for series in plot.series for x in series.x))
    width = 0.8 / max(1, len(plot.series))
    for number, series in enumerate(plot.series):
        at = [names.index(str(x)) + (number - (len(plot.series) - 1) / 2) * width for x in series.x]
        axes.bar(
            at,
            series.y,
            width,
            label=series.name,
            color="none" if series.paper else f"C{number % 10}",
            edgecolor=f"C{number % 10}",
            hatch="//" if series.paper else None,
        )
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 8 else 0)
