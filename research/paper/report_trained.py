"""Reports of trained models: Tables III to V, Figures 6 to 11, and what the paper claims in its text.

Byte figures are means over the test split of payloads that the shipped coders wrote with tables of the
validation split. "Huffman" is the paper's: one table for the whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from offramp.bench.baselines import Baselines
from offramp.bench.plots import Plot, Series
from offramp.bench.report_tables import Column, Report, Value
from offramp.common.errors import DataError
from offramp.training.record import (
    CSR,
    LZ4,
    ONE_TABLE,
    RANS,
    RAW,
    SHIPPED,
    TABLE_A_CHANNEL,
    ZSTD,
    Record,
)
from research.paper import paper

_KB = 1024
_MOBILENET = "mobilenet-v2"
_GRID_SHOWN = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_FAMILY = ((RAW, "raw"), (CSR, "csr"), (ONE_TABLE, "huffman"))
_OURS = ((TABLE_A_CHANNEL, "huffman_channel"), (RANS, "rans"), (LZ4, "lz4"), (ZSTD, "zstd"))

Weight = Callable[[Record], float]


def entropy_weight(record: Record) -> float:
    """λ_e."""
    return record.entropy_weight


def sparsity_weight(record: Record) -> float:
    """λ_s."""
    return record.sparsity_weight


def choose(
    records: Sequence[Record],
    exit_number: int,
    *,
    weight: Weight = entropy_weight,
    backbone: str = _MOBILENET,
    stepped: bool = False,
) -> dict[float, Record]:
    """The runs of one exit with a last stage and one kind of regulariser, by its weight, in order.

    stepped: those whose step of what travels was chosen by the exits' answers; else the paper's 8 bits.

    Raises DataError if there is none, or two of one weight.
    """
    other = sparsity_weight if weight is entropy_weight else entropy_weight
    found = [
        record
        for record in records
        if (record.backbone, record.exit) == (backbone, exit_number)
        and record.epochs["regularised"] > 0
        and other(record) == 0
        and not record.bottleneck
        and (record.divergence > 0) == stepped
    ]
    if not found:
        raise DataError(f"no run of {backbone} with exit {exit_number} and a regularised stage among them")
    return dict(sorted(_distinct(found, weight).items()))


def without_last_stage(records: Sequence[Record]) -> dict[int, Record]:
    """The runs of MobileNetV2 that end after the exit stage, by exit. Raises DataError if there is none."""
    found = [
        r for r in records if r.backbone == _MOBILENET and r.epochs["regularised"] == 0 and r.divergence == 0
    ]
    if not found:
        raise DataError(f"no run of {_MOBILENET} without a regularised stage among them")
    return dict(sorted((int(key), r) for key, r in _distinct(found, lambda r: r.exit).items()))


def _distinct(records: Sequence[Record], key: Weight) -> dict[float, Record]:
    by_key: dict[float, Record] = {}
    for record in records:
        if (other := by_key.setdefault(key(record), record)) is not record:
            raise DataError(f"{other.name} and {record.name} are runs of one configuration: keep one")
    return by_key


def _regularised(
    name: str,
    title: str,
    symbol: str,
    runs: Mapping[float, Record],
    printed: Mapping[float, paper.Regularised],
) -> Report:
    columns = [Column("weight", symbol, 5)]
    for key, head in (("raw", "raw KB"), ("csr", "CSR KB"), ("huffman", "Huffman KB")):
        columns += [Column(key, head), Column(f"{key}_paper", "paper")]
    columns += [
        Column("huffman_channel", "Huffman, table a channel", 2),
        Column("rans", "rANS", 2),
        Column("lz4", "LZ4", 1),
        Column("zstd", "zstd 3", 1),
        Column("bits", "entropy, bits", 2),
        Column("bits_channel", "in channels", 2),
        Column("zeros", "zeros %", 1),
    ]
    for key, head in (("early", "early %"), ("final", "final %")):
        columns += [Column(key, head), Column(f"{key}_paper", "paper"), Column(f"{key}_float", "float %")]
    rows: list[dict[str, Value]] = []
    for weight in sorted({*runs, *printed}):
        row: dict[str, Value] = {"weight": f"{weight:g}"}
        if run := runs.get(weight):
            row |= {key: run.bytes[codec] / _KB for codec, key in (*_FAMILY, *_OURS)}
            row |= {"bits": run.entropy_bits, "bits_channel": run.entropy_bits_channel}
            row |= {
                "zeros": run.zeros * 100,
                "early": run.accuracy.early * 100,
                "final": run.accuracy.final * 100,
                "early_float": run.accuracy.early_float * 100,
                "final_float": run.accuracy.final_float * 100,
            }
        if theirs := printed.get(weight):
            row |= {
                "raw_paper": theirs.raw,
                "csr_paper": theirs.csr,
                "huffman_paper": theirs.huffman,
                "early_paper": theirs.early,
                "final_paper": theirs.final,
            }
        rows.append(row)
    weights = [f"{weight:g}" for weight in sorted({*runs, *printed})]

    def bars(key: str, label: str, *, theirs: bool = False) -> Series:
        pairs = [(w, row[key]) for w, row in zip(weights, rows, strict=True) if row.get(key) is not None]
        return Series(label, [w for w, _ in pairs], [float(y or 0) for _, y in pairs], paper=theirs)

    return Report(
        name,
        title,
        columns,
        rows,
        Plot(
            title,
            symbol,
            "KB an activation",
            [
                bars("huffman", "Huffman, ours"),
                bars("huffman_paper", "Huffman, paper", theirs=True),
                bars("rans", "rANS"),
                bars("zstd", "zstd 3"),
            ],
            kind="bars",
        ),
        [describe(list(runs.values()))],
    )


def table3(records: Sequence[Record]) -> Report:
    """Entropy regularisation at exit 5 (Table III)."""
    title = "Table III: entropy regularisation at exit 5, INT8, test split"
    return _regularised("table3", title, "λ_e", choose(records, 5), paper.TABLE_III)


def table4(records: Sequence[Record]) -> Report:
    """Entropy regularisation at exit 12 (Table IV)."""
    title = "Table IV: entropy regularisation at exit 12, INT8, test split"
    return _regularised("table4", title, "λ_e", choose(records, 12), paper.TABLE_IV)


def table5(records: Sequence[Record]) -> Report:
    """Sparsity regularisation at exit 4 (Table V)."""
    title = "Table V: sparsity regularisation at exit 4, INT8, test split"
    runs = choose(records, 4, weight=sparsity_weight)
    report = _regularised("table5", title, "λ_s", runs, paper.TABLE_V)
    note = (
        "CSR has a row pointer for each of the 96 channels, 194 B in all, so it cannot reach the 0.1 KB that "
        "the paper prints in its last row."
    )
    return Report(report.name, report.title, report.columns, report.rows, report.plot, [*report.notes, note])


def fig6(records: Sequence[Record]) -> Report:
    """Accuracy against T_c, float, one model an exit (Fig. 6)."""
    runs = without_last_stage(records)
    rows: list[dict[str, Value]] = []
    for number, run in runs.items():
        row: dict[str, Value] = {"exit": number}
        row |= {f"at_{at:g}": 100 * _at(run, at, run.curve.accuracy_float) for at in _GRID_SHOWN}
        row["paper"] = paper.FIG_6_EARLY_ACCURACY.get(number)
        rows.append(row)
    shown = [Column(f"at_{at:g}", f"T_c = {at:g}") for at in _GRID_SHOWN]
    columns = [Column("exit", "exit"), shown[0], Column("paper", "paper, T_c = 0"), *shown[1:]]
    series = [_by_threshold(f"exit {number}", run) for number, run in runs.items()]
    base = [
        100 * epoch.figures["final"] for epoch in next(iter(runs.values())).history if epoch.stage == "base"
    ]
    if base:
        series.append(Series("without an exit (validation)", [0.0, 1.0], [max(base)] * 2, paper=True))
    return Report(
        "fig6",
        "Figure 6: top-1 accuracy (%) against the confidence threshold, float, MobileNetV2",
        columns,
        rows,
        Plot("Figure 6", "confidence threshold T_c", "accuracy, %", series),
        [describe(list(runs.values()))],
    )


def fig7(records: Sequence[Record]) -> Report:
    """Accuracy against raw FP32 bytes (Fig. 7)."""
    runs = without_last_stage(records)
    rows: list[dict[str, Value]] = []
    series = []
    for number, run in runs.items():
        cost = [run.raw_bytes * 4 * (1 - rate) / _KB for rate in run.curve.exit_rate_float]
        accuracy = [100 * value for value in run.curve.accuracy_float]
        series.append(Series(f"exit {number}", cost, accuracy))
        rows += [
            {
                "exit": number,
                "threshold": at,
                "kb": _at(run, at, cost),
                "kb_paper": paper.FIG_7_KB.get(at) if number in (12, 15) else None,
                "accuracy": _at(run, at, accuracy),
            }
            for at in (1.0, 0.95, 0.9, 0.8, 0.5)
        ]
    return Report(
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


def fig8(records: Sequence[Record]) -> Report:
    """Entropy of the activation while the last stage trains (Fig. 8)."""
    runs = choose(records, 5)
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
    return Report(
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


def fig9(records: Sequence[Record]) -> Report:
    """What entropy regularisation costs in accuracy, float, exit 5 (Fig. 9)."""
    runs = choose(records, 5)
    plain = runs.get(0.0)
    rows: list[dict[str, Value]] = []
    for weight, run in runs.items():
        row: dict[str, Value] = {"weight": f"{weight:g}"}
        row |= {f"at_{at:g}": 100 * _at(run, at, run.curve.accuracy_float) for at in _GRID_SHOWN}
        if plain is not None:
            row["drop"] = 100 * (plain.accuracy.early_float - run.accuracy.early_float)
        row["drop_paper"] = paper.FIG_9_EARLY_DROP.get(weight)
        rows.append(row)
    return Report(
        "fig9",
        "Figure 9: top-1 accuracy (%) against the confidence threshold by λ_e, float, exit 5",
        [
            Column("weight", "λ_e"),
            *(Column(f"at_{at:g}", f"T_c = {at:g}") for at in _GRID_SHOWN),
            Column("drop", "drop at T_c = 0"),
            Column("drop_paper", "paper"),
        ],
        rows,
        Plot(
            "Figure 9",
            "confidence threshold T_c",
            "accuracy, %",
            [_by_threshold(f"λ_e = {weight:g}", run) for weight, run in runs.items()],
        ),
        [describe(list(runs.values()))],
    )


def _lines(runs: Mapping[float, Record], stepped: Mapping[float, Record]) -> list[tuple[str, Record, str]]:
    """Name in the paper or ours, run and codec of each line of Fig. 10 that there is a run for."""
    wanted = [
        ("raw, λ_e = 0", 0.0, RAW),
        ("Huffman, λ_e = 0", 0.0, ONE_TABLE),
        ("Huffman, λ_e = 0.5", 0.5, ONE_TABLE),
        ("Huffman, λ_e = 2", 2.0, ONE_TABLE),
        ("shipped codec, λ_e = 0.5", 0.5, SHIPPED),
        ("shipped codec, λ_e = 2", 2.0, SHIPPED),
    ]
    lines = [(name, runs[weight], codec) for name, weight, codec in wanted if weight in runs]
    return lines + [
        (f"shipped codec, chosen step, λ_e = {weight:g}", stepped[weight], SHIPPED)
        for weight in (0.0, 0.5, 2.0)
        if weight in stepped
    ]


def cost_at_floor(run: Record, codec: str, floor: float) -> float | None:
    """The least mean bytes over the T_c grid with at least this accuracy (a share); None where none has."""
    fits = [b for b, a in zip(run.curve.bytes[codec], run.curve.accuracy, strict=True) if a >= floor]
    return min(fits, default=None)


def fig10(records: Sequence[Record], baselines: Sequence[Baselines] = ()) -> Report:
    """Accuracy against mean bytes an image at exit 5, INT8 (Fig. 10), with what sends pictures instead."""
    runs = choose(records, 5)
    floor = paper.FIG_10_FLOOR / 100
    rows: list[dict[str, Value]] = []
    series = []
    for name, run, codec in _lines(runs, _or_none(records, 5, stepped=True)):
        found = cost_at_floor(run, codec, floor)
        # The paper's floor is 6.2 points below its final exit: the same distance, where ours is lower.
        relative = cost_at_floor(run, codec, _relative_floor(runs))
        rows.append(
            {
                "line": name,
                "kb": None if found is None else found / _KB,
                "kb_paper": paper.FIG_10_KB.get(name),
                "kb_relative": None if relative is None else relative / _KB,
                "best": 100 * max(run.curve.accuracy),
            }
        )
        cost = [value / _KB for value in run.curve.bytes[codec]]
        series.append(Series(name, cost, [100 * a for a in run.curve.accuracy]))
    for one in baselines:
        rows += [
            {
                "line": f"{point.name} ({one.bundle})",
                "kb": point.bytes_mean / _KB if point.accuracy >= floor else None,
                "kb_relative": point.bytes_mean / _KB if point.accuracy >= _relative_floor(runs) else None,
                "best": 100 * point.accuracy,
            }
            for point in one.pictures
        ]
        series.append(
            Series(
                f"pictures to {one.bundle}",
                [point.bytes_mean / _KB for point in one.pictures],
                [100 * point.accuracy for point in one.pictures],
                marks_only=True,
            )
        )
        for hybrid in one.hybrids:
            fits = [b for b, a in zip(hybrid.bytes_mean, hybrid.accuracy, strict=True) if a >= floor]
            near = [
                b
                for b, a in zip(hybrid.bytes_mean, hybrid.accuracy, strict=True)
                if a >= _relative_floor(runs)
            ]
            rows.append(
                {
                    "line": f"{hybrid.name} ({one.bundle})",
                    "kb": min(fits) / _KB if fits else None,
                    "kb_relative": min(near) / _KB if near else None,
                    "best": 100 * max(hybrid.accuracy),
                }
            )
            series.append(
                Series(
                    f"{hybrid.name}, {one.bundle}",
                    [value / _KB for value in hybrid.bytes_mean],
                    [100 * a for a in hybrid.accuracy],
                )
            )
    plain = runs.get(0.0)
    notes = [describe(list(runs.values()))]
    if plain is not None and 0.5 in runs:
        notes.insert(0, _saving(plain, runs[0.5], floor, _relative_floor(runs)))
    return Report(
        "fig10",
        "Figure 10: mean bytes an image at an accuracy floor, exit 5, INT8, test split",
        [
            Column("line", "what is sent"),
            Column("kb", f"KB at {paper.FIG_10_FLOOR:g} %", 3),
            Column("kb_paper", "paper"),
            Column("kb_relative", f"KB at {100 * _relative_floor(runs):.1f} %", 3),
            Column("best", "best accuracy %"),
        ],
        rows,
        Plot("Figure 10", "KB an image", "accuracy, %", series, log_x=bool(baselines)),
        notes,
    )


def _relative_floor(runs: Mapping[float, Record]) -> float:
    gap = (paper.TABLE_III[0.0].final - paper.FIG_10_FLOOR) / 100
    best = runs[0.0] if 0.0 in runs else next(iter(runs.values()))
    return best.accuracy.final - gap


def saved(plain: Record, trained: Record, floor: float) -> float | None:
    """Share of raw bytes that coding and training save together at an accuracy floor; None where not met."""
    raw, coded = cost_at_floor(plain, RAW, floor), cost_at_floor(trained, ONE_TABLE, floor)
    return None if raw is None or coded is None or raw == 0 else 1 - coded / raw


def _saving(plain: Record, trained: Record, floor: float, relative: float) -> str:
    shares = []
    for at in (floor, relative):
        share = saved(plain, trained, at)
        shares.append(f"{100 * at:.1f} %: " + ("not reached" if share is None else f"{share:.0%}"))
    return (
        f"Saved against raw symbols by λ_e = 0.5 and Huffman at an accuracy of {', at '.join(shares)}; "
        f"paper: {paper.FIG_10_SAVED:g} % at {paper.FIG_10_FLOOR:g} %."
    )


def fig11(records: Sequence[Record]) -> Report:
    """Entropy against sparsity regularisation at exit 4, Huffman, INT8 (Fig. 11)."""
    entropy, sparsity = choose(records, 4), choose(records, 4, weight=sparsity_weight)
    rows: list[dict[str, Value]] = []
    series = []
    for kind, runs in (("entropy, λ_e", entropy), ("sparsity, λ_s", sparsity)):
        for weight, run in runs.items():
            theirs = paper.TABLE_V.get(weight) if kind.startswith("sparsity") else None
            rows.append(
                {
                    "kind": kind,
                    "weight": f"{weight:g}",
                    "kb": run.bytes[ONE_TABLE] / _KB,
                    "kb_paper": theirs.huffman if theirs else None,
                    "early": 100 * run.accuracy.early,
                    "final": 100 * run.accuracy.final,
                    "final_paper": theirs.final if theirs else None,
                }
            )
        points = [(run.bytes[ONE_TABLE] / _KB, 100 * run.accuracy.final) for run in runs.values()]
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
    return Report(
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


def others(records: Sequence[Record]) -> Report:
    """ResNet-32 and VGG-19 without and with λ_e = 1 (the text of Sec. V-C)."""
    rows: list[dict[str, Value]] = []
    used = []
    for backbone, printed in paper.OTHERS.items():
        exits = sorted({record.exit for record in records if record.backbone == backbone})
        for number in exits:
            runs = choose(records, number, backbone=backbone)
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
                        "huffman": run.bytes[ONE_TABLE] / _KB,
                        "raw": run.raw_bytes / _KB,
                    }
                )
    if not rows:
        raise DataError(f"no run of {' or '.join(paper.OTHERS)} among them")
    labels = [f"{row['network']}, λ_e = {row['weight']}" for row in rows]
    return Report(
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


def steps(records: Sequence[Record]) -> Report:
    """The paper's 8 bits beside the coarsest step that the exits' answers bear, exits 5 and 12."""
    rows: list[dict[str, Value]] = []
    series, used = [], []
    for number in (5, 12):
        plain, stepped = _or_none(records, number), _or_none(records, number, stepped=True)
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
    return Report(
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


def claims(records: Sequence[Record]) -> Report:
    """What the paper says in words, and by how much ours keep or miss it."""
    rows: list[dict[str, Value]] = []

    def add(
        what: str,
        ours: float | None,
        printed: float,
        limit: float,
        *,
        at_least: bool = False,
        none: str = "no run",
    ) -> None:
        missed = None if ours is None else (limit - ours if at_least else ours - limit)
        rows.append(
            {
                "claim": what,
                "ours": ours,
                "paper": printed,
                "limit": f"{'≥' if at_least else '≤'} {limit:g}",
                "verdict": none if missed is None else "holds" if missed <= 0 else f"missed by {missed:.1f}",
            }
        )

    used: list[Record] = []
    for number, printed, share, drop in ((5, paper.TABLE_III, 34, 1.6), (12, paper.TABLE_IV, 31, 1.3)):
        runs = _or_none(records, number)
        used += runs.values()
        plain, one = runs.get(0.0), runs.get(1.0)
        theirs = printed[1.0]
        own = f"exit {number}, λ_e = 1"
        shown = [(own, own, one)]
        coarse = _or_none(records, number, stepped=True).get(1.0)
        if coarse is not None and plain is not None:
            same = "the same at the chosen step"
            shown.append((f"{same} ({coarse.step:.1f})", same, coarse))
        for first, second, run in shown:
            add(
                f"{first}: Huffman bytes, % of raw",
                None if run is None else 100 * run.bytes[ONE_TABLE] / run.raw_bytes,
                100 * theirs.huffman / theirs.raw,
                share,
            )
            add(
                f"{second}: final exit's loss, points",
                None if run is None or plain is None else 100 * (plain.accuracy.final - run.accuracy.final),
                printed[0.0].final - theirs.final,
                drop,
            )
    five = _or_none(records, 5)
    plain, half, coarse = five.get(0.0), five.get(0.5), _or_none(records, 5, stepped=True).get(0.5)
    below = None if plain is None else _relative_floor(five)
    own = "exit 5, λ_e = 0.5: bytes saved against raw"
    sought = [
        (f"{own} at {paper.FIG_10_FLOOR:g} %, %", paper.FIG_10_FLOOR / 100, half),
        (f"{own} 6.2 points below λ_e = 0, %", below, half),
    ]
    if coarse is not None and plain is not None:
        sought.append((f"the same at the chosen step ({coarse.step:.1f}), %", below, coarse))
    for what, floor, run in sought:
        share_saved = None if plain is None or run is None or floor is None else saved(plain, run, floor)
        add(
            what,
            None if share_saved is None else 100 * share_saved,
            paper.FIG_10_SAVED,
            54,
            at_least=True,
            none="no run" if plain is None or run is None else "the accuracy is not reached",
        )
    # A model that training broke has nothing that quantization could cost.
    sound = [run for run in five.values() if run.accuracy.final_float > 0.5] or list(five.values())
    for side, limit in (("early", 0.7), ("final", 0.4)):
        losses = [
            100 * (getattr(run.accuracy, f"{side}_float") - getattr(run.accuracy, side)) for run in sound
        ]
        add(
            f"exit 5: what INT8 costs the {side} exit, mean over λ_e, points",
            sum(losses) / len(losses) if losses else None,
            paper.QUANTIZATION_DROP[side],
            limit,
        )
    add(
        "exit 5, λ_e = 0: final exit, %",
        None if plain is None else 100 * plain.accuracy.final,
        paper.TABLE_III[0.0].final,
        91,
        at_least=True,
    )
    if not used:
        raise DataError("no run of exits 5 or 12 with a regularised stage among them")
    return Report(
        "claims",
        "The paper's claims on our figures",
        [
            Column("claim", "claim"),
            Column("ours", "ours", 2),
            Column("paper", "paper", 2),
            Column("limit", "asked for"),
            Column("verdict", "verdict"),
        ],
        rows,
        notes=[describe(used)],
    )


def _or_none(records: Sequence[Record], exit_number: int, *, stepped: bool = False) -> dict[float, Record]:
    try:
        return choose(records, exit_number, stepped=stepped)
    except DataError:
        return {}


def describe(records: Sequence[Record]) -> str:
    """One sentence on how these were trained and measured: data, schedule, seed, hardware."""

    def each(values: list[str]) -> str:
        return " / ".join(sorted(set(values)))

    epochs = each([" + ".join(_epochs(r, s) for s in ("base", "exit", "regularised")) for r in records])
    data = each(
        [
            f"{r.dataset.name} ({r.dataset.train:,} to train, {r.dataset.validation:,} to validate, "
            f"{r.dataset.test:,} to test)"
            for r in records
        ]
    )
    batch = each([str(r.batch_size) for r in records])
    seed = each([str(r.seed) for r in records])
    where = each([f"{r.machine.device} ({r.machine.precision})" for r in records])
    smaller = "".join(
        f" The first {len(sides)} epochs of base saw {'/'.join(map(str, sorted(set(sides))))} pixels a side."
        for sides in sorted({tuple(r.sides) for r in records} - {()})
    )
    return (
        f"Data: {data}. Epochs: {epochs} (paper: 300 + 50 + 10), batches of {batch}, seed {seed}, on {where}."
        f"{smaller}"
    )


def _epochs(record: Record, stage: str) -> str:
    """Epochs of a stage, as passes over all training images."""
    share = record.images.get(stage, record.dataset.train) / record.dataset.train
    return f"{round(record.epochs[stage] * min(1.0, share), 2):g}"


def _by_threshold(name: str, run: Record) -> Series:
    return Series(name, run.curve.threshold, [100 * value for value in run.curve.accuracy_float])


def _at(run: Record, threshold: float, values: Sequence[float]) -> float:
    """The value of a curve at a threshold of its grid."""
    at = min(range(len(values)), key=lambda i: abs(run.curve.threshold[i] - threshold))
    return values[at]
