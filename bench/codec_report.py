"""The tables, the verdict and the plot of ``offramp bench codec``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from offramp.bench.codec_results import Case, Row, Verdict
from offramp.bench.coders import BITARRAY, MEMCPY, ZSTD_FAST, ZSTD_SMALL

RANS = "rans, shared tables"
ENCODE_ZSTD, DECODE_ZSTD = "encode × zstd 1", "decode × zstd 1"
BYTES_FAST, BYTES_SMALL = "bytes / zstd 1", "bytes / zstd 19"
ENCODE_BITARRAY, DECODE_BITARRAY = "encode × bitarray", "decode × bitarray"
SPEED = (ENCODE_ZSTD, DECODE_ZSTD, BYTES_FAST, BYTES_SMALL, ENCODE_BITARRAY, DECODE_BITARRAY)
OVERHEAD = "overhead, B a frame below 256 B"
RANS_LOSS = "rANS bytes / its tables' cross-entropy, from 1 KB"
HUFFMAN_LOSS = "Huffman bytes / entropy within channels, from 1.5 bits"
RANS_GAIN = "rANS bytes / plain Huffman's, at 0.6 bit or less"


def verdicts(cases: Sequence[Case]) -> list[Verdict]:
    """Every promise of speed and size, held against what was measured."""
    return [verdict for case in cases for verdict in (*_speed(case), *_size(case))]


def _speed(case: Case) -> Iterator[Verdict]:
    ours, fast, small = case.shipped, case.row(ZSTD_FAST), case.row(ZSTD_SMALL)
    if ours is None or fast is None or small is None:
        return
    assert ours.bytes_mean and fast.bytes_mean and small.bytes_mean
    yield Verdict(case.name, ENCODE_ZSTD, ours.encode_ratio[ZSTD_FAST], 1.0, None)
    yield Verdict(case.name, DECODE_ZSTD, ours.decode_ratio[ZSTD_FAST], 1.0, None)
    yield Verdict(case.name, BYTES_FAST, ours.bytes_mean / fast.bytes_mean, None, 1.0)
    yield Verdict(case.name, BYTES_SMALL, ours.bytes_mean / small.bytes_mean, None, 1.0)
    yield Verdict(case.name, ENCODE_BITARRAY, ours.encode_ratio[BITARRAY], 10.0, None)
    yield Verdict(case.name, DECODE_BITARRAY, ours.decode_ratio[BITARRAY], 10.0, None)


def _size(case: Case) -> Iterator[Verdict]:
    ours = [row for row in case.rows if row.overhead_mean is not None and row.bytes_mean is not None]
    small = [row.overhead_mean for row in ours if row.bytes_mean and row.bytes_mean < 256]
    if small:
        yield Verdict(case.name, OVERHEAD, max(mean for mean in small if mean is not None), None, 2.0)
    for row in ours:
        if "rans" in row.name and row.bytes_mean and row.bytes_mean >= 1024:
            assert row.overhead_mean is not None
            loss = row.bytes_mean / (row.bytes_mean - row.overhead_mean)
            yield Verdict(f"{case.name}: {row.name}", RANS_LOSS, loss, None, 1.01)
    huffman = [row.bytes_mean for row in ours if "huffman" in row.name and row.bytes_mean]
    plain = [row.bytes_mean for row in ours if row.name.startswith("huffman") and row.bytes_mean]
    rans = case.row(RANS)
    if not plain or rans is None or rans.bytes_mean is None:
        return
    # Drawn with 1.5 bits, an activation may have 1.49: the border belongs to it.
    if case.entropy_channel > 1.45:
        floor = case.entropy_channel * case.symbols / 8
        yield Verdict(case.name, HUFFMAN_LOSS, min(huffman) / floor, None, 1.03)
    if case.entropy_channel <= 0.65:
        yield Verdict(case.name, RANS_GAIN, rans.bytes_mean / min(plain), None, 0.65)


def markdown(facts: dict[str, Any], cases: Sequence[Case], checks: Sequence[Verdict]) -> str:
    """Environment, verdict and all figures."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    load = ", ".join(map(str, facts["load_average"]))
    parts = [
        f"{facts['cpu']}, core {facts['core']} of {facts['cores']}, load average {load}; {facts['system']}; "
        f"Python {facts['python']}, {facts['coder']} coder; {packages}.",
        "MB/s are million symbols a second on one core, bytes in and bytes out, the median of all rounds "
        "(the best in brackets); a ratio of speeds is the median of the rounds' own ratios. * is what "
        "calibration ships.",
        "### What would be shipped, against zstd and bitarray",
        _speed_table(cases, checks),
        "### Size",
        _size_table(checks),
        _shortfalls(checks),
        "### All coders",
        _full_table(cases),
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first ``left`` columns are text."""
    lines = [header, ["---"] * left + ["--:"] * (len(header) - left), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _speed_table(cases: Sequence[Case], checks: Sequence[Verdict]) -> str:
    rows = []
    for case in cases:
        own = {check.what: check for check in checks if check.case == case.name}
        ours = case.shipped
        if ours is None or ENCODE_ZSTD not in own:
            continue
        rows.append(
            [
                case.name,
                f"{ours.name}, {_lanes(ours)}",
                *(_cell(own[what]) for what in SPEED),
                f"1/{1 / ours.encode_ratio[MEMCPY]:.0f}",
                f"1/{1 / ours.decode_ratio[MEMCPY]:.0f}",
            ]
        )
    header = ["activation", "shipped", *SPEED, "encode / memcpy", "decode / memcpy"]
    return _table(header, rows, 2)


def _cell(check: Verdict) -> str:
    return f"{check.value:.2f}" if check.holds else f"**{check.value:.2f}**"


def _lanes(row: Row) -> str:
    return f"{row.lanes} lane{'s' if row.lanes != 1 else ''}"


def _size_table(checks: Sequence[Verdict]) -> str:
    rows = [
        [
            check.case,
            check.what,
            f"≤ {check.most:g}",
            f"{check.value:.3f}" if check.holds else f"**{check.value:.3f}**",
        ]
        for check in checks
        if check.what not in SPEED
    ]
    return _table(["activation", "figure", "promised", "measured"], rows, 2)


def _shortfalls(checks: Sequence[Verdict]) -> str:
    lines = []
    for what in dict.fromkeys(check.what for check in checks):
        all_of_it = [check for check in checks if check.what == what]
        short = [f"{check.case} ({check.value:.2f})" for check in all_of_it if not check.holds]
        missed = f": short at {'; '.join(short)}" if short else ""
        lines.append(f"- {what}: {len(all_of_it) - len(short)} of {len(all_of_it)} hold{missed}")
    return "\n".join(lines)


def _full_table(cases: Sequence[Case]) -> str:
    rows = []
    for case in cases:
        fast, small = case.row(ZSTD_FAST), case.row(ZSTD_SMALL)
        for row in case.rows:
            size = row.bytes_mean
            rows.append(
                [
                    case.name,
                    f"{row.name}{'*' if row.shipped else ''}",
                    str(row.lanes or ""),
                    f"{row.encode_mb_s:,.4g} ({row.encode_best_mb_s:,.4g})",
                    f"{row.decode_mb_s:,.4g} ({row.decode_best_mb_s:,.4g})",
                    f"{row.encode_ratio[ZSTD_FAST]:.3g}",
                    f"{row.decode_ratio[ZSTD_FAST]:.3g}",
                    "" if size is None else f"{size:,.1f}",
                    "" if size is None else f"{8 * size / case.symbols:.3f}",
                    _share(size, fast),
                    _share(size, small),
                    "" if row.table_bytes is None else f"{row.table_bytes:,}",
                ]
            )
    header = [
        "activation", "coder", "lanes", "encode MB/s", "decode MB/s", ENCODE_ZSTD, DECODE_ZSTD, "bytes",
        "bits a symbol", BYTES_FAST, BYTES_SMALL, "table bytes",
    ]  # fmt: skip
    return _table(header, rows, 2)


def _share(size: float | None, other: Row | None) -> str:
    return "" if size is None or other is None or not other.bytes_mean else f"{size / other.bytes_mean:.3f}"


PLOTTED = {
    "shipped": "tab:red",
    ZSTD_FAST: "tab:blue",
    "constriction ANS, a table a channel": "tab:green",
    "LZ4": "tab:purple",
    BITARRAY: "tab:gray",
    MEMCPY: "black",
}


def plot(cases: Sequence[Case], files: Sequence[Path]) -> None:
    """Speed and size over entropy, a column for each size of activation, to each file."""
    from matplotlib.figure import Figure

    synthetic = [case for case in cases if case.variant == "different"] or list(cases)
    shapes = list(dict.fromkeys(case.shape for case in synthetic))
    figure = Figure(figsize=(4 * len(shapes) + 1, 9), layout="constrained")
    axes = figure.subplots(3, len(shapes), sharex=True, squeeze=False)
    for column, shape in enumerate(shapes):
        own = sorted((c for c in synthetic if c.shape == shape), key=lambda case: case.entropy_channel)
        x = [case.entropy_channel for case in own]
        for name, colour in PLOTTED.items():
            rows = [case.shipped if name == "shipped" else case.row(name) for case in own]
            found = [(bits, row) for bits, row in zip(x, rows, strict=True) if row is not None]
            style: dict[str, Any] = {"color": colour, "label": name, "marker": ".", "linewidth": 1.2}
            bits = [place for place, _ in found]
            axes[0, column].plot(bits, [row.encode_mb_s for _, row in found], **style)
            axes[1, column].plot(bits, [row.decode_mb_s for _, row in found], **style)
            if name != MEMCPY:
                size = own[0].symbols
                coded = [8 * (row.bytes_mean or size) / size for _, row in found]
                axes[2, column].plot(bits, coded, **style)
        axes[2, column].plot(x, x, color="black", linestyle=":", linewidth=1, label="entropy")
        axes[0, column].set_title("×".join(map(str, shape)))
        axes[2, column].set_xlabel("entropy within channels, bits a symbol")
        for row, label in enumerate(("encode, MB/s", "decode, MB/s", "bits a symbol")):
            axes[row, column].grid(alpha=0.3)
            axes[row, column].set_ylabel(label if column == 0 else "")
            if row < 2:
                axes[row, column].set_yscale("log")
    axes[2, 0].legend(fontsize="small")
    for file in files:
        # Without a date the same figures give the same file.
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
