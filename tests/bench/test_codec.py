"""``offramp bench codec``: all coders are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("constriction")
pytest.importorskip("lz4")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")

from offramp.bench import codec as bench_codec
from offramp.bench.codec import parse_shape
from offramp.bench.codec_report import (
    RANS,
)
from offramp.bench.coders import (
    BITARRAY,
    MEMCPY,
    ZSTD_FAST,
    ZSTD_SMALL,
)
from offramp.cli import app
from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, ExitCode
from offramp.training.calibrate import context_model

QUICK = ["bench", "codec", "--seconds", "0.02", "--rounds", "2"]


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_codec, "MOST_FRAMES", 24)
    monkeypatch.setattr(context_model, "STEPS", 50)


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


def test_a_shape_is_read() -> None:
    assert parse_shape("24x32x32") == (24, 32, 32)
    with pytest.raises(ConfigError):
        parse_shape("24×32×32")
