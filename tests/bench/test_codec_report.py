"""Verdicts of the comparison: shortfalls are shown as such."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("constriction")
pytest.importorskip("lz4")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")

from offramp.bench.codec_report import (
    BYTES_SMALL,
    DECODE_ZSTD,
    HUFFMAN_LOSS,
    OVERHEAD,
    RANS,
    RANS_GAIN,
    RANS_LOSS,
    markdown,
    verdicts,
)
from offramp.bench.codec_results import Case, Row
from offramp.bench.coders import (
    BITARRAY,
    MEMCPY,
    ZSTD_FAST,
    ZSTD_SMALL,
)

Make = Callable[..., Row]


@pytest.fixture
def row() -> Make:
    def make(
        name: str, size: float, *, encode: float = 1, decode: float = 1, extra: float | None = None
    ) -> Row:
        return Row(
            name=name,
            shipped=name == RANS,
            lanes=1,
            table_bytes=None if extra is None else 128,
            bytes_mean=size,
            encode_mb_s=encode,
            decode_mb_s=decode,
            encode_best_mb_s=encode,
            decode_best_mb_s=decode,
            encode_ratio={ZSTD_FAST: encode, BITARRAY: 10 * encode, MEMCPY: 0.1},
            decode_ratio={ZSTD_FAST: decode, BITARRAY: 10 * decode, MEMCPY: 0.1},
            overhead_mean=extra,
            overhead_max=extra,
        )

    return make


def case(entropy: float, rows: list[Row]) -> Case:
    return Case("synthetic", (8, 16, 16), "alike", entropy, 4, entropy, entropy, rows)


def test_a_shortfall_is_shown_as_such(row: Make) -> None:
    slow = case(
        0.6,
        [
            row(RANS, 120, encode=1.5, decode=0.4, extra=1.9),
            row("huffman, shared tables", 300, extra=0.5),
            row(ZSTD_FAST, 400),
            row(ZSTD_SMALL, 110),
            row(MEMCPY, 2048),
        ],
    )

    checks = verdicts([slow])
    held = {check.what: check.holds for check in checks}
    text = markdown({"packages": {}, "load_average": [], **dict.fromkeys(
        ("cpu", "core", "cores", "system", "python", "coder"))}, [slow], checks)  # fmt: skip

    assert [what for what, holds in held.items() if not holds] == [
        DECODE_ZSTD,
        BYTES_SMALL,
        "decode × bitarray",
    ]
    assert held[OVERHEAD] and held[RANS_GAIN]
    assert (
        "**0.40**" in text and "decode × zstd 1: 0 of 1 hold: short at 8×16×16 0.6 bit, alike (0.40)" in text
    )


def test_losses_are_held_against_entropy_where_that_was_promised(row: Make) -> None:
    entropy = 6.0  # 1,536 bytes of 2,048 symbols
    good = case(entropy, [row(RANS, 1540, extra=10), row("huffman, shared tables", 1580, extra=1)])
    bad = case(entropy, [row(RANS, 1640, extra=40), row("huffman, shared tables", 1600, extra=1)])

    assert {check.what: check.holds for check in verdicts([good])} == {RANS_LOSS: True, HUFFMAN_LOSS: True}
    assert {check.what: check.holds for check in verdicts([bad])} == {RANS_LOSS: False, HUFFMAN_LOSS: False}
