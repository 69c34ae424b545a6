"""Device, gateway and server over two links."""

from __future__ import annotations

import json
import os
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, ExitCode
from research.links.shaped_link import Shape
from research.links.tiers import lines, main, way_of
from tests import toy_chain
from tests.bench.conftest import namespaces


def test_thresholds_are_the_bundles_or_ones_own(tmp_path: Path, toy_bundle: Bundle) -> None:
    chain = toy_chain.write(tmp_path)
    assert way_of(f"{chain.path}").thresholds == (0.8, 0.8)
    assert way_of(f"{chain.path}@0.5,1").thresholds == (0.5, 1)
    assert way_of(f"{toy_bundle.path}@0.25").thresholds == (0.25,)
    for wrong in ("@0.5", "@0.5,2", "@x,y"):
        with pytest.raises(ConfigError, match=r"expected 2 thresholds, 0 … 1"):
            way_of(f"{chain.path}{wrong}")


def test_four_parts_have_no_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 4 parts, expected two or three"):
        way_of(str(toy_chain.write(tmp_path, 4).path))


@pytest.mark.parametrize("text", ["50", "50/x", "0.5/10", "50/20000"])
def test_what_is_not_a_link_is_named(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"'{text}', expected KBIT/MS"):
        Shape.of(text)


def test_it_takes_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy_bundle: Bundle
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["--images", "none", str(toy_bundle.path)]) == ExitCode.CONFIG
    assert "expected to be run as root" in capsys.readouterr().err


@namespaces
@pytest.mark.process
def test_what_a_pair_sends_passes_both_links_and_what_a_gateway_answers_one(
    tmp_path: Path, toy_bundle: Bundle, labelled_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = toy_chain.write(tmp_path)
    ways = [f"{toy_bundle.path}@1", f"{chain.path}@1,0"]
    fast = ["--radio", "2000/40", "--wire", "20000/10", "--most", "4"]
    assert main([*ways, "--images", str(labelled_images), *fast, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    pair, gateway = result["rows"]
    assert pair["by_part"] == {"1": 0, "2": pair["photos"]}
    # A relay copies them: as many bytes, but for acknowledgements.
    assert pair["wire_bytes_mean"] == pytest.approx(pair["radio_bytes_mean"], rel=0.25)
    assert gateway["by_part"] == {"1": 0, "2": gateway["photos"], "3": 0}
    assert gateway["wire_bytes_mean"] < 0.2 * gateway["radio_bytes_mean"]
    # What the links themselves take.
    assert pair["latency_ms_median_sent"] > 50 and gateway["latency_ms_median_sent"] > 40
    assert sum("/ 100.0%" in line for line in lines(result)) == 2
