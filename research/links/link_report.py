"""Figures of ways over links: who wins, plots and the printed tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from offramp.bench.plots import Plot, Series


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each rival on each link beside the fastest Offramp that is at least as accurate; ratios rival/Offramp.

    A rival that is more accurate than every Offramp is set beside the most accurate one.
    """
    found = []
    for rival in rows:
        if rival["kind"] == "offramp":
            continue
        ours = [row for row in rows if row["link"] == rival["link"] and row["kind"] == "offramp"]
        equal = [row for row in ours if row["accuracy"] >= rival["accuracy"]]
        # Where none is as accurate, the most accurate.
        chosen = min(
            equal or ours,
            key=lambda row: (0 if equal else -row["accuracy"], row["latency_ms_mean"]),
        )
        found.append(
            {
                "link": rival["link"],
                "rival": rival["way"],
                "ours": chosen["way"],
                "as_accurate": bool(equal),
                "latency_ratio": rival["latency_ms_mean"] / chosen["latency_ms_mean"],
                "payload_ratio": _ratio(rival["payload_bytes_mean"], chosen["payload_bytes_mean"]),
                "interface_ratio": _ratio(rival["interface_bytes_mean"], chosen["interface_bytes_mean"]),
            }
        )
    return found


def _ratio(theirs: float, ours: float) -> float | None:
    return theirs / ours if ours else None


def plots(result: dict[str, Any]) -> dict[str, Plot]:
    """By file name."""
    rows = result["rows"]
    ways = list(dict.fromkeys(row["way"] for row in rows))
    links = list(dict.fromkeys(row["link"] for row in rows))

    def series(key: str) -> list[Series]:
        return [
            Series(
                way,
                links,
                [row[key] for link in links for row in rows if (row["way"], row["link"]) == (way, link)],
            )
            for way in ways
        ]

    nothing = {row["way"] for row in rows if row["kind"] == "device"}
    return {
        "link-latency": Plot(
            f"Mean latency of an image, {result['bundle']}",
            "link: rate, round-trip time",
            "ms",
            series("latency_ms_mean"),
            kind="bars",
            log_y=True,
        ),
        "link-bytes": Plot(
            f"Mean bytes of an image on the interface, {result['bundle']}",
            "link: rate, round-trip time",
            "bytes, both directions",
            [each for each in series("interface_bytes_mean") if each.name not in nothing],
            kind="bars",
            log_y=True,
        ),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report as it is printed."""
    around = result["environment"]
    yield f"{around['cpu']}, {around['cores']} cores, load {around['load_average'][0]}"
    yield f"{result['bundle']}, {result['images']} images; device and server are equally fast here"
    width = max(len(row["way"]) for row in result["rows"])
    for link in dict.fromkeys(row["link"] for row in result["rows"]):
        yield ""
        heads = f"{'accuracy':>9} {'sent':>7} {'mean ms':>9} {'p50 sent':>9} {'p95 sent':>9}"
        yield f"{link:<{width}} {heads} {'payload B':>10} {'interface B':>12}"
        for row in result["rows"]:
            if row["link"] != link:
                continue
            sent = row["latency_ms_sent"]
            shown = [f"{sent[q]:.1f}" if sent else "" for q in ("p50", "p95")]
            differ = f"  {row['answers_that_differ']} differ" if row["answers_that_differ"] else ""
            yield (
                f"{row['way']:<{width}} {row['accuracy']:>9.2%} {row['offload_share']:>7.1%} "
                f"{row['latency_ms_mean']:>9.2f} {shown[0]:>9} {shown[1]:>9} "
                f"{row['payload_bytes_mean']:>10.1f} {row['interface_bytes_mean']:>12.1f}{differ}"
            )
        yield "rival over the fastest Offramp that is as accurate: above 1 Offramp wins"
        for each in result["verdicts"]:
            if each["link"] == link:
                ratios = [each[f"{what}_ratio"] for what in ("latency", "payload", "interface")]
                latency, payload, interface = (
                    "-" if r is None or math.isinf(r) else f"{r:.2f}" for r in ratios
                )
                less = "" if each["as_accurate"] else ", which is less accurate"
                yield (
                    f"  {each['rival']:<{width}} latency {latency:>7}  payload {payload:>7}  "
                    f"interface {interface:>7}  ({each['ours']}{less})"
                )
