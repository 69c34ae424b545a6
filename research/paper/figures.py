"""Figures 6 to 9 and 11, of trained models."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.bench.plots import Plot, Series
from offramp.bench.report_tables import Column, ReportTable, Value
from offramp.training.record import ONE_TABLE, Record
from research.paper import paper
from research.paper.runs import (
    GRID_SHOWN,
    KB,
    by_threshold,
    describe,
    runs_at_exit,
    sparsity_weight,
    value_at,
    without_last_stage,
)


def fig6(records: Sequence[Record]) -> ReportTable:
    """Accuracy against T_c, float, one model an exit (Fig. 6)."""
    runs = without_last_stage(records)
    rows: list[dict[str, Value]] = []
    for number, run in runs.items():
        row: dict[str, Value] = {"exit": number}
        row |= {f"at_{at:g}": 100 * value_at(run, at, run.curve.accuracy_float) for at in GRID_SHOWN}
        row["paper"] = paper.FIG_6_EARLY_ACCURACY.get(number)
        rows.append(row)
    shown = [Column(f"at_{at:g}", f"T_c = {at:g}") for at in GRID_SHOWN]
    columns = [Column("exit", "exit"), shown[0], Column("paper", "paper, T_c = 0"), *shown[1:]]
    series = [by_threshold(f"exit {number}", run) for number, run in runs.items()]
    base = [
        100 * epoch.figures["final"] for epoch in next(iter(runs.values())).history if epoch.stage == "base"
    ]
    if base:
        series.append(Series("without an exit (validation)", [0.0, 1.0], [max(base)] * 2, paper=True))
    return ReportTable(
        "fig6",
        "Figure 6: top-1 accuracy (%) against the confidence threshold, float, MobileNetV2",
        columns,
        rows,
        Plot("Figure 6", "confidence threshold T_c", "accuracy, %", series),
        [describe(list(runs.values()))],
    )


def fig7(records: Sequence[Record]) -> ReportTable:
    """Accuracy against raw FP32 bytes (Fig. 7)."""
    runs = without_last_stage(records)
    rows: list[dict[str, Value]] = []
    series = []
    for number, run in runs.items():
        cost = [run.raw_bytes * 4 * (1 - rate) / KB for rate in run.curve.exit_rate_float]
        accuracy = [100 * value for value in run.curve.accuracy_float]
        series.append(Series(f"exit {number}", cost, accuracy))
        rows += [
            {
                "exit": number,
                "threshold": at,
                "kb": value_at(run, at, cost),
                "kb_paper": paper.FIG_7_KB.get(at) if number in (12, 15) else None,
                "accuracy": value_at(run, at, accuracy),
            }
            for at in (1.0, 0.95, 0.9, 0.8, 0.5)
        ]
    return ReportTable(
        "fig7",
        "Figure 7: top-1 accuracy against raw FP32 activation bytes an image, MobileNetV2",
        [
            Column("exit", "exit"),
            Column("threshold", "T_c", 2),
            Column("kb", "KB an image"),
            Column("kb_paper", "paper"),
            Column("accuracy", "accuracy %"),
        ],
        rows,
        Plot("Figure 7", "KB an image, FP32, not coded", "accuracy, %", series),
        [
            "The paper's example does not name its exit; 32 KB are what exits 12 and 15 send.",
            describe(list(runs.values())),
        ],
    )


def fig8(records: Sequence[Record]) -> ReportTable:
    """Entropy of the activation while the last stage trains (Fig. 8)."""
    runs = runs_at_exit(records, 5)
    rows: list[dict[str, Value]] = []
    for weight, run in runs.items():
        bits = [value for _, value in run.entropy_steps]
        rows.append(
            {
                "weight": f"{weight:g}",
                "start": bits[0] if bits else None,
                "start_paper": paper.FIG_8_START_BITS,
                "end": bits[-1] if bits else None,
                "end_paper": paper.FIG_8_END_BITS.get(weight),
                "symbols": run.entropy_bits,
            }
        )
    return ReportTable(
        "fig8",
        "Figure 8: entropy of the activation at exit 5 during the last stage, bits a sample",
        [
            Column("weight", "λ_e"),
            Column("start", "first batch", 2),
            Column("start_paper", "paper", 1),
            Column("end", "last batch", 2),
            Column("end_paper", "paper", 1),
            Column("symbols", "INT8 symbols, test", 2),
        ],
        rows,
        Plot(
            "Figure 8",
            "mini-batch",
            "bits a sample",
            [
                Series(f"λ_e = {w:g}", [s for s, _ in run.entropy_steps], [b for _, b in run.entropy_steps])
                for w, run in runs.items()
            ],
        ),
        [
            "Bits of the soft histogram over 256 bins within three standard deviations, per batch of "
            "training images; the last column is of the quantized symbols, whose range is another.",
            describe(list(runs.values())),
        ],
    )


def fig9(records: Sequence[Record]) -> ReportTable:
    """What entropy regularisation costs in accuracy, float, exit 5 (Fig. 9)."""
    runs = runs_at_exit(records, 5)
    plain = runs.get(0.0)
    rows: list[dict[str, Value]] = []
    for weight, run in runs.items():
        row: dict[str, Value] = {"weight": f"{weight:g}"}
        row |= {f"at_{at:g}": 100 * value_at(run, at, run.curve.accuracy_float) for at in GRID_SHOWN}
        if plain is not None:
            row["drop"] = 100 * (plain.accuracy.early_float - run.accuracy.early_float)
        row["drop_paper"] = paper.FIG_9_EARLY_DROP.get(weight)
        rows.append(row)
    return ReportTable(
        "fig9",
        "Figure 9: top-1 accuracy (%) against the confidence threshold by λ_e, float, exit 5",
        [
            Column("weight", "λ_e"),
            *(Column(f"at_{at:g}", f"T_c = {at:g}") for at in GRID_SHOWN),
            Column("drop", "drop at T_c = 0"),
            Column("drop_paper", "paper"),
        ],
        rows,
        Plot(
            "Figure 9",
            "confidence threshold T_c",
            "accuracy, %",
            [by_threshold(f"λ_e = {weight:g}", run) for weight, run in runs.items()],
        ),
        [describe(list(runs.values()))],
    )


def fig11(records: Sequence[Record]) -> ReportTable:
    """Entropy against sparsity regularisation at exit 4, Huffman, INT8 (Fig. 11)."""
    entropy, sparsity = runs_at_exit(records, 4), runs_at_exit(records, 4, weight=sparsity_weight)
    rows: list[dict[str, Value]] = []
    series = []
    for kind, runs in (("entropy, λ_e", entropy), ("sparsity, λ_s", sparsity)):
        for weight, run in runs.items():
            theirs = paper.TABLE_V.get(weight) if kind.startswith("sparsity") else None
            rows.append(
                {
                    "kind": kind,
                    "weight": f"{weight:g}",
                    "kb": run.bytes[ONE_TABLE] / KB,
                    "kb_paper": theirs.huffman if theirs else None,
                    "early": 100 * run.accuracy.early,
                    "final": 100 * run.accuracy.final,
                    "final_paper": theirs.final if theirs else None,
                }
            )
        points = [(run.bytes[ONE_TABLE] / KB, 100 * run.accuracy.final) for run in runs.values()]
        series.append(Series(kind, [x for x, _ in points], [y for _, y in points]))
    printed = list(paper.TABLE_V.values())
    series.append(
        Series(
            "sparsity, paper (Table V)",
            [one.huffman for one in printed],
            [one.final for one in printed],
            paper=True,
        )
    )
    return ReportTable(
        "fig11",
        "Figure 11: entropy and sparsity regularisation at exit 4, Huffman, INT8, test split",
        [
            Column("kind", "regulariser"),
            Column("weight", "weight"),
            Column("kb", "Huffman KB"),
            Column("kb_paper", "paper"),
            Column("early", "early %"),
            Column("final", "final %"),
            Column("final_paper", "paper"),
        ],
        rows,
        Plot("Figure 11", "KB an activation, Huffman", "final exit's accuracy, %", series),
        [describe([*entropy.values(), *sparsity.values()])],
    )
