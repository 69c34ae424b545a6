"""Accuracy against mean bytes an image, for everything a device could send, at equal accuracy.

    pictures          every image to the whole model, as raw pixels, PNG, JPEG, WebP or AVIF
    hybrid            the early exit keeps what it is sure of; the others go as WebP to the whole model
    activations       the paper's scheme: one Huffman table over the INT8 activation of a regularised split
    rate-trained      ours: a trained narrow code in the shipped codec; and with every image sent
    … then pictures   ours, and those whose answer is unsure too sent again as WebP to the whole model
                      (``edge-device --picture-threshold``)

Bytes are those of the protobuf message with one frame (payload, checksum, tags), the same envelope for every
contender; an image that exits early sends none. The whole model is the one that is given for it; where a
second one is given that was trained on pictures so compressed, each picture contender has the better of both.
The hybrids' early exit is that of the rate-trained bundle whose exit is right most often. A split answers
what was sent as its manifest says, by the server or by both exits; the hybrids have the better of the two.
With every image sent, the server alone answers. A picture that comes after an activation is sent without its
file's header (``common/wire/picture.py``), and its answer is combined with the ones before by the same rule.

A contender's points differ in bundle, quality and T_c. What it costs at an accuracy is the fewest bytes among
its points that reach it. Intervals are the bootstrap's over test images, the same ones for all contenders.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from offramp.bench.plots import Plot, Series
from offramp.bench.report_tables import Column, ReportTable, Value
from offramp.training.calibrate.frontier import frontier
from research.pareto.costs import costs
from research.pareto.points import (
    Coded,
    Points,
    Sent,
    Sizes,
    hybrid_points,
    picture_points,
    sent_points,
    split_points,
)
from research.pareto.then_pictures import points_then_pictures

PICTURES, HYBRID, PAPER, OURS = "pictures", "early exit + WebP", "activations (paper)", "rate-trained (ours)"
OURS_SENT = "ours, no early exit"
OURS_PICTURES = "ours, then pictures"
DROPS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
"""Points below the whole model at which contenders are compared."""

_RATIOS = {
    (OURS, HYBRID): f"ratio to {HYBRID}",
    (OURS, PICTURES): f"ratio to {PICTURES}",
    (OURS_SENT, PICTURES): f"ratio to {PICTURES}, no early exit",
    (OURS_PICTURES, HYBRID): f"ratio to {HYBRID}, then pictures",
}
"""Column of what is divided by what."""


def compare(
    ours: Mapping[str, Coded],
    papers: Mapping[str, Coded],
    pictures: Mapping[str, Sent],
    payloads: Mapping[str, Sizes],
    *,
    about: str,
) -> ReportTable:
    """All contenders beside one another.

    Args:
        ours: rate-trained bundles by name; the hybrids take the early exit that is right most often.
        papers: bundles of the paper's scheme, by name; may be none.
        pictures: see ``run_pictures``; "raw pixels" shows what the better whole model reaches.
        payloads: see ``picture_payloads``; may be none.
        about: where the figures come from.
    """
    best_exit = max((one.answers for one in ours.values()), key=lambda one: float(one.early_right.mean()))
    labels = best_exit.labels
    contenders = {PICTURES: picture_points(pictures, labels), HYBRID: hybrid_points(best_exit, pictures)}
    for name, splits in ((PAPER, papers), (OURS, ours)):
        if splits:
            contenders[name] = Points.joined(
                [
                    split_points(own, one.answers, one.answers.sent_right, one.payload)
                    for own, one in splits.items()
                ]
            )
    contenders[OURS_SENT] = sent_points(ours)
    if payloads:
        then = points_then_pictures(ours, pictures, payloads)
        contenders[OURS_PICTURES] = Points.joined([contenders[OURS], then])
    whole = max(float((one.best == labels).mean()) for one in pictures["raw pixels"].answers)
    return report(contenders, whole, about=about)


def report(contenders: Mapping[str, Points], whole: float, *, about: str) -> ReportTable:
    """The table and the plot.

    Args:
        contenders: by name; the ratios are of ``OURS`` to ``HYBRID`` and to ``PICTURES``, of
            ``OURS_SENT`` to ``PICTURES``, and of ``OURS_PICTURES`` to ``HYBRID``.
        whole: accuracy of the whole model on the images as they are.
        about: where the figures come from.
    """
    wanted = [whole - drop for drop in DROPS]
    priced = {name: costs(points, wanted) for name, points in contenders.items()}
    rows: list[dict[str, Value]] = []
    for number, (drop, accuracy) in enumerate(zip(DROPS, wanted, strict=True)):
        row: dict[str, Value] = {"drop": 100 * drop, "accuracy": 100 * accuracy}
        for name, cost in priced.items():
            row[name] = _interval(cost.value[number], cost.resampled[:, number], 1)
        for (own, rival), label in _RATIOS.items():
            if rival in priced and own in priced:
                ours, other = priced[own], priced[rival]
                with np.errstate(invalid="ignore", divide="ignore"):
                    row[label] = _interval(
                        ours.value[number] / other.value[number],
                        ours.resampled[:, number] / other.resampled[:, number],
                        3,
                    )
        row["point"] = priced[OURS].best[number] if OURS in priced else None
        if OURS_PICTURES in priced:
            row["point_pictures"] = priced[OURS_PICTURES].best[number]
        rows.append(row)
    columns = [Column("drop", "points below", 0), Column("accuracy", "accuracy %", 2)]
    columns += [Column(name, f"{name}, B") for name in priced]
    columns += [Column(key, key) for key in rows[0] if key.startswith("ratio")]
    columns.append(Column("point", "our point"))
    if OURS_PICTURES in priced:
        columns.append(Column("point_pictures", "… then pictures"))
    notes = [
        "Mean bytes of protobuf messages over all images; in brackets the 95 % interval of the bootstrap. "
        "A dash: no point of the contender reaches the accuracy. Every contender has its best point at each "
        "accuracy, chosen on these images.",
        about,
    ]
    title = "Accuracy against mean bytes an image, test split"
    lines = [_line(name, points) for name, points in contenders.items()]
    plot = Plot(title, "mean bytes an image (messages)", "top-1 accuracy %", lines, log_x=True)
    return ReportTable("pareto", title, columns, rows, plot, notes)


def _line(name: str, points: Points) -> Series:
    """The points that no other of the contender beats, by bytes; a picture format is one point."""
    sent, right = points.sent.mean(axis=1), 100 * points.right.mean(axis=1)
    kept = frontier(sent, right)
    kept = kept[sent[kept] > 0]
    return Series(name, sent[kept].tolist(), right[kept].tolist(), paper=name == PAPER)


def _interval(value: float, resampled: NDArray[np.float64], digits: int) -> str | None:
    if not np.isfinite(value):
        return None
    low, high = np.percentile(np.where(np.isnan(resampled), np.inf, resampled), [2.5, 97.5], method="nearest")
    ends = [f"{end:,.{digits}f}" if np.isfinite(end) else "∞" for end in (low, high)]
    return f"{value:,.{digits}f} [{ends[0]}, {ends[1]}]"
