"""What the paper says in its text: other networks, a coarser step, and its claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from offramp.bench.plots import Plot, Series
from offramp.bench.report_tables import Column, ReportTable, Value
from offramp.common.errors import DataError
from offramp.training.record import ONE_TABLE, SHIPPED, Record
from research.paper import paper
from research.paper.figure_10 import relative_floor, saved
from research.paper.runs import (
    KB,
    describe,
    runs_at_exit,
    runs_if_any,
)


def others(records: Sequence[Record]) -> ReportTable:
    """ResNet-32 and VGG-19 without and with λ_e = 1 (the text of Sec. V-C)."""
    rows: list[dict[str, Value]] = []
    used = []
    for backbone, printed in paper.OTHERS.items():
        exits = sorted({record.exit for record in records if record.backbone == backbone})
        for number in exits:
            runs = runs_at_exit(records, number, backbone=backbone)
            for weight, bits, accuracy in zip((0.0, 1.0), printed.bits, printed.accuracy, strict=True):
                if (run := runs.get(weight)) is None:
                    continue
                used.append(run)
                best = [epoch for epoch in run.history if epoch.stage == "regularised" and epoch.best]
                rows.append(
                    {
                        "network": backbone,
                        "layer": run.layer,
                        "weight": f"{weight:g}",
                        "bits": best[-1].figures["entropy_bits"] if best else None,
                        "bits_paper": bits,
                        "symbols": run.entropy_bits,
                        "final": 100 * run.accuracy.final_float,
                        "final_paper": accuracy,
                        "final_int8": 100 * run.accuracy.final,
                        "huffman": run.bytes[ONE_TABLE] / KB,
                        "raw": run.raw_bytes / KB,
                    }
                )
    if not rows:
        raise DataError(f"no run of {' or '.join(paper.OTHERS)} among them")
    labels = [f"{row['network']}, λ_e = {row['weight']}" for row in rows]
    return ReportTable(
        "others",
        "Section V-C: ResNet-32 and VGG-19, float unless said otherwise",
        [
            Column("network", "network"),
            Column("layer", "split after"),
            Column("weight", "λ_e"),
            Column("bits", "entropy, bits", 2),
            Column("bits_paper", "paper"),
            Column("symbols", "of INT8 symbols", 2),
            Column("final", "final %"),
            Column("final_paper", "paper"),
            Column("final_int8", "INT8 %"),
            Column("huffman", "Huffman KB", 2),
            Column("raw", "raw KB"),
        ],
        rows,
        Plot(
            "Section V-C: entropy of the activation",
            "",
            "bits a sample",
            [
                Series("ours", labels, [float(row["bits"] or 0) for row in rows]),
                Series("paper", labels, [float(row["bits_paper"] or 0) for row in rows], paper=True),
            ],
            kind="bars",
        ),
        ["The paper trains these without an early exit; ours have one at the split.", describe(used)],
    )


def steps(records: Sequence[Record]) -> ReportTable:
    """The paper's 8 bits beside the coarsest step that the exits' answers tolerate, exits 5 and 12."""
    rows: list[dict[str, Value]] = []
    series, used = [], []
    for number in (5, 12):
        plain, stepped = runs_if_any(records, number), runs_if_any(records, number, stepped=True)
        pairs = {weight: (plain[weight], stepped[weight]) for weight in plain if weight in stepped}
        for weight, (before, after) in pairs.items():
            used += [before, after]
            row: dict[str, Value] = {"exit": number, "weight": f"{weight:g}", "step": after.step}
            for key, run in (("8", before), ("step", after)):
                row |= {
                    f"bits_{key}": run.entropy_bits_channel,
                    f"share_{key}": 100 * run.bytes[ONE_TABLE] / run.raw_bytes,
                    f"bytes_{key}": run.bytes[SHIPPED],
                    f"early_{key}": 100 * run.accuracy.early,
                    f"final_{key}": 100 * run.accuracy.final,
                }
            rows.append(row)
        for name, side in (("8 bits", 0), ("chosen step", 1)):
            points = [pair[side] for pair in pairs.values()]
            series.append(
                Series(
                    f"exit {number}, {name}",
                    [run.bytes[SHIPPED] for run in points],
                    [100 * run.accuracy.final for run in points],
                )
            )
    if not rows:
        raise DataError("no run of exits 5 or 12 with a chosen step beside one with 8 bits among them")
    columns = [Column("exit", "exit"), Column("weight", "λ_e"), Column("step", "step", 1)]
    for key, head, digits in (
        ("bits", "bits a symbol", 2),
        ("share", "Huffman, % of raw", 1),
        ("bytes", "shipped B", 0),
        ("early", "early %", 1),
        ("final", "final %", 1),
    ):
        columns += [Column(f"{key}_8", head, digits), Column(f"{key}_step", "with it", digits)]
    limits = " / ".join(sorted({f"{run.divergence:g}" for run in used if run.divergence}))
    return ReportTable(
        "steps",
        "A coarser step at the split, INT8, test split",
        columns,
        rows,
        Plot(
            "A coarser step at the split",
            "B an activation, shipped codec",
            "final exit's accuracy, %",
            series,
            log_x=True,
        ),
        [
            "The step is a multiple of the finest one that holds the activation's range in 256 codes: the "
            f"coarsest that moves both exits' answers on calibration images by {limits} nats at most.",
            describe(used),
        ],
    )


@dataclass
class _Claims:
    """What the paper says in words, a row each: our figure, its own, and the limit that it sets."""

    rows: list[dict[str, Value]] = field(default_factory=list)

    def add(
        self,
        what: str,
        ours: float | None,
        printed: float,
        limit: float,
        *,
        at_least: bool = False,
        none: str = "no run",
    ) -> None:
        """none: the verdict where we have no figure."""
        missed = None if ours is None else (limit - ours if at_least else ours - limit)
        self.rows.append(
            {
                "claim": what,
                "ours": ours,
                "paper": printed,
                "limit": f"{'≥' if at_least else '≤'} {limit:g}",
                "verdict": none if missed is None else "holds" if missed <= 0 else f"missed by {missed:.1f}",
            }
        )


def claims(records: Sequence[Record]) -> ReportTable:
    """What the paper says in words, and by how much ours keep or miss it."""
    used = [run for number in (5, 12) for run in runs_if_any(records, number).values()]
    if not used:
        raise DataError("no run of exits 5 or 12 with a regularised stage among them")
    found = _Claims()
    _claim_sizes(found, records)
    _claim_savings(found, records)
    _claim_quantization(found, records)
    return ReportTable(
        "claims",
        "The paper's claims on our figures",
        [
            Column("claim", "claim"),
            Column("ours", "ours", 2),
            Column("paper", "paper", 2),
            Column("limit", "limit"),
            Column("verdict", "verdict"),
        ],
        found.rows,
        notes=[describe(used)],
    )


def _claim_sizes(found: _Claims, records: Sequence[Record]) -> None:
    """Bytes and accuracy with λ_e = 1."""
    for number, printed, share, drop in ((5, paper.TABLE_III, 34, 1.6), (12, paper.TABLE_IV, 31, 1.3)):
        runs = runs_if_any(records, number)
        plain, one = runs.get(0.0), runs.get(1.0)
        theirs = printed[1.0]
        own = f"exit {number}, λ_e = 1"
        shown = [(own, own, one)]
        coarse = runs_if_any(records, number, stepped=True).get(1.0)
        if coarse is not None and plain is not None:
            same = "the same at the chosen step"
            shown.append((f"{same} ({coarse.step:.1f})", same, coarse))
        for first, second, run in shown:
            found.add(
                f"{first}: Huffman bytes, % of raw",
                None if run is None else 100 * run.bytes[ONE_TABLE] / run.raw_bytes,
                100 * theirs.huffman / theirs.raw,
                share,
            )
            found.add(
                f"{second}: final exit's loss, points",
                None if run is None or plain is None else 100 * (plain.accuracy.final - run.accuracy.final),
                printed[0.0].final - theirs.final,
                drop,
            )


def _claim_savings(found: _Claims, records: Sequence[Record]) -> None:
    """Bytes saved at an accuracy floor with λ_e = 0.5."""
    five = runs_if_any(records, 5)
    plain, half, coarse = five.get(0.0), five.get(0.5), runs_if_any(records, 5, stepped=True).get(0.5)
    below = None if plain is None else relative_floor(five)
    own = "exit 5, λ_e = 0.5: bytes saved against raw"
    sought = [
        (f"{own} at {paper.FIG_10_FLOOR:g} %, %", paper.FIG_10_FLOOR / 100, half),
        (f"{own} 6.2 points below λ_e = 0, %", below, half),
    ]
    if coarse is not None and plain is not None:
        sought.append((f"the same at the chosen step ({coarse.step:.1f}), %", below, coarse))
    for what, floor, run in sought:
        share_saved = None if plain is None or run is None or floor is None else saved(plain, run, floor)
        found.add(
            what,
            None if share_saved is None else 100 * share_saved,
            paper.FIG_10_SAVED,
            54,
            at_least=True,
            none="no run" if plain is None or run is None else "the accuracy is not reached",
        )


def _claim_quantization(found: _Claims, records: Sequence[Record]) -> None:
    """What INT8 costs, and the best accuracy."""
    five = runs_if_any(records, 5)
    plain = five.get(0.0)
    # A model that training broke has nothing that quantization could cost.
    sound = [run for run in five.values() if run.accuracy.final_float > 0.5] or list(five.values())
    for side, limit in (("early", 0.7), ("final", 0.4)):
        losses = [
            100 * (getattr(run.accuracy, f"{side}_float") - getattr(run.accuracy, side)) for run in sound
        ]
        found.add(
            f"exit 5: what INT8 costs the {side} exit, mean over λ_e, points",
            sum(losses) / len(losses) if losses else None,
            paper.QUANTIZATION_DROP[side],
            limit,
        )
    found.add(
        "exit 5, λ_e = 0: final exit, %",
        None if plain is None else 100 * plain.accuracy.final,
        paper.TABLE_III[0.0].final,
        91,
        at_least=True,
    )
