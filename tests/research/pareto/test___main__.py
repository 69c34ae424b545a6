"""The command on real bundles."""

import json
from pathlib import Path

import pytest

from offramp.common.bundle.load import load_bundle
from offramp.common.inputs.formats import FORMATS
from research.pareto import compare
from research.pareto.__main__ import main

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


def test_the_command_on_real_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = tuple(form for form in FORMATS if form.name in ("raw pixels", "WebP 50"))
    monkeypatch.setattr("research.pareto.__main__.FORMATS", some)
    bundle = str(BUNDLE)
    flags = ["--bundle", bundle, "--whole", bundle, "--paper", bundle, "--out", str(tmp_path), "--json"]
    assert main(flags) == 0
    found, asked = json.loads(capsys.readouterr().out)
    (device_row,) = asked["rows"]
    card = load_bundle(BUNDLE).manifest.figures
    assert device_row["final"] == pytest.approx(100 * card.accuracy_final)
    assert device_row["head_kb"] == (BUNDLE / "head.onnx").stat().st_size / 1024
    assert 0 < device_row["head_ms"] < 1000
    # It is shipped without its record.
    assert device_row["macs"] is None
    first, *_, last = found["rows"]
    assert first["accuracy"] == pytest.approx(100 * card.accuracy_final)
    cost = {name: float(last[name].split(" ")[0]) for name in (compare.OURS, compare.PAPER, compare.HYBRID)}
    # Six points below, the early exit alone is enough.
    assert cost == {compare.OURS: 0, compare.PAPER: 0, compare.HYBRID: 0}
    ours, paper = (float(first[name].split(" ")[0]) for name in (compare.OURS, compare.PAPER))
    assert 0 < ours < paper
    assert (tmp_path / "pareto.svg").stat().st_size > 10_000


@pytest.mark.parametrize(("given", "missing"), [("--bundle", "--whole"), ("--whole", "--bundle")])
def test_what_it_needs(given: str, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([given, str(BUNDLE)]) == 2
    assert f"required: {missing}" in capsys.readouterr().err
