"""``offramp bench codec``: every coder round-trips, all are measured, and shortfalls are told as such."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("constriction")
pytest.importorskip("lz4")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")

from offramp.bench import codec as bench_codec
from offramp.bench.activations import Synthetic
from offramp.bench.codec import parse_shape
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
    Coding,
    our_codings,
    payloads,
    peer_codings,
)
from offramp.cli import app
from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import Shape
from offramp.common.errors import ConfigError, ExitCode, OfframpError
from offramp.training.calibrate.codebook import CONTEXT

SHAPE = (4, 8, 8)
QUICK = ["bench", "codec", "--seconds", "0.02", "--rounds", "2"]


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_codec, "MOST_FRAMES", 24)


@pytest.mark.parametrize("bits", [0.3, 2.5, 5.0])
def test_every_coder_gives_back_what_it_was_given(bits: float) -> None:
    source = Synthetic(SHAPE, bits, "different")
    calibration = source.frames(48, 0)
    frames = [frame.tobytes() for frame in source.frames(8, 1)]

    codings = [*our_codings(SHAPE, calibration), *peer_codings(SHAPE, calibration)]

    for coding in codings:
        assert len(payloads(coding, frames)) == len(frames), coding.name
    assert len({coding.name for coding in codings}) == len(codings) >= 15
    assert sum(coding.shipped for coding in codings) == 1


@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 16, 16), (1, 4, 4), (32, 16, 16)])
def test_payloads_of_every_size_are_coded_on_lanes_that_their_coder_has(shape: Shape) -> None:
    calibration = Synthetic(shape, 5.0, "different").frames(12, 0)

    codings = our_codings(shape, calibration)

    lanes = {coding.name: coding.lanes for coding in codings}
    frame = calibration[0].tobytes()
    assert all(coding.decode(coding.encode(frame)) == frame for coding in codings if coding.tables)
    assert lanes.get(CONTEXT, 1) == 1
    assert max(count for count in lanes.values() if count) == {8: 2, 4: 2, 1: 1, 32: 4}[shape[0]]


def test_a_coder_that_loses_symbols_is_not_measured() -> None:
    broken = Coding("broken", lambda data: data[:-1], lambda data: data + b"?")

    with pytest.raises(OfframpError, match="broken: 3 bytes decode to other symbols"):
        payloads(broken, [b"abcd"])


def test_json_has_every_case_and_every_coder(
    capsys: pytest.CaptureFixture[str], toy_bundle: Bundle, toy_images: Path
) -> None:
    assert app.main([
        *QUICK, "--json", "--shapes", "4x8x8", "--bits", "0.5", "2.5",
        "--bundle", str(toy_bundle.path), "--images", str(toy_images),
    ]) == 0  # fmt: skip

    results: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert results["environment"]["packages"]["zstandard"]
    cases = results["cases"]
    assert [(case["source"], case["variant"], case["bits"]) for case in cases] == [
        ("synthetic", "alike", 0.5),
        ("synthetic", "alike", 2.5),
        ("synthetic", "different", 0.5),
        ("synthetic", "different", 2.5),
        ("toy", None, None),
    ]
    for case in cases:
        rows = {row["name"]: row for row in case["rows"]}
        assert {ZSTD_FAST, ZSTD_SMALL, BITARRAY, MEMCPY, "LZ4", "zlib 6", RANS, "rans, in Python"} <= set(
            rows
        )
        assert sum(row["shipped"] for row in case["rows"]) == 1
        assert all(row["encode_mb_s"] > 0 and row["decode_best_mb_s"] > 0 for row in case["rows"])
        assert rows[MEMCPY]["bytes_mean"] == case["shape"][0] * case["shape"][1] * case["shape"][2]
    toy = {row["name"]: row for row in cases[-1]["rows"]}
    assert toy["the bundle's huffman"]["shipped"]
    assert {verdict["case"] for verdict in results["verdicts"]} >= {"4×8×8 0.5 bit, alike", "4×4×4 toy"}


def test_tables_and_plots_are_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"

    assert app.main([
        *QUICK, "--shapes", "4x8x8", "--bits", "1", "--bundle", "--out", str(out),
    ]) == 0  # fmt: skip

    printed = capsys.readouterr().out
    assert (out / "codec.md").read_text(encoding="utf-8") == printed.removesuffix("\n")
    assert len(json.loads((out / "codec.json").read_text(encoding="utf-8"))["cases"]) == 2
    assert (out / "codec.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (out / "codec.svg").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "8x8"], "expected CxHxW"),
        (["--shapes", "0x8x8"], "expected CxHxW"),
        (["--shapes", "4000x4000x4000"], "expected at most"),
        (["--bits", "9"], "expected 0.05 … 7"),
        (["--bits", "nan"], "expected 0.05 … 7"),
        (["--seconds", "0"], "expected more than 0"),
        (["--rounds", "0"], "expected more than 0"),
        (["--frames", "1"], "--frames 1: expected 2 …"),
        (["--shapes", "--bundle"], "nothing to measure"),
        (["--frequency"], "unrecognized arguments"),
    ],
)
def test_wrong_flags_are_one_clear_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["bench", "codec", *arguments]) == ExitCode.CONFIG

    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["bench", "toast"]) == ExitCode.CONFIG
    assert "toast" in capsys.readouterr().err


def test_a_missing_peer_names_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError("No module named 'zstandard'", name="zstandard")

    monkeypatch.setattr("offramp.bench.bench.importlib.import_module", missing)

    assert app.main(["bench", "codec"]) == ExitCode.CONFIG
    assert "offramp[device,server,bench]" in capsys.readouterr().err


def test_a_shape_is_read() -> None:
    assert parse_shape("24x32x32") == (24, 32, 32)
    with pytest.raises(ConfigError):
        parse_shape("24×32×32")


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


def test_a_shortfall_is_told_as_such(row: Make) -> None:
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
