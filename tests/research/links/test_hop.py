"""What a gateway adds: the program runs, and says what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ExitCode
from research.links.hop import lines, main, shared_out
from tests import toy_chain


def test_each_has_cores_of_its_own_where_there_are_enough() -> None:
    assert shared_out({0, 1}) == [{0, 1}] * 3
    assert shared_out(set(range(8))) == [{0, 1}, {2, 3}, {4, 5, 6, 7}]


@pytest.mark.process
def test_both_ways_are_measured_and_the_difference_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = toy_chain.write(tmp_path)
    flags = ["--devices", "4", "--rate", "80", "--seconds", "0.5", "--rounds", "1", "--json"]
    assert main(["--bundle", str(bundle.path), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answers_by_fallback"] == 0
    assert found["answers_by_upstream"] >= found["frames"]["gateway"] > 0
    assert min(found["cpu_us_per_frame"].values()) > 0
    said = "\n".join(lines(found))
    assert "4 devices, 80 frames/s together; part 2 alone" in said and "the hop adds" in said


def test_two_parts_have_no_gateway(toy_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(toy_bundle.path)]) == ExitCode.CONFIG
    assert "has two parts, expected three or more" in capsys.readouterr().err
