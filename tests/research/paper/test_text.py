"""Claims, and a coarser step."""

import pytest

from offramp.common.errors import DataError
from research.paper import tables, text
from tests.records import paper_like, record


def test_claims_say_by_how_much_they_are_missed() -> None:
    rows = {str(row["claim"]): row for row in text.claims(paper_like()).rows}
    five = rows["exit 5, λ_e = 1: Huffman bytes, % of raw"]
    assert five["verdict"] == "holds"
    twelve = rows["exit 12, λ_e = 1: Huffman bytes, % of raw"]
    assert (twelve["ours"], twelve["verdict"]) == (50, "missed by 19.0")
    assert rows["exit 5: what INT8 costs the early exit, mean over λ_e, points"]["ours"] == pytest.approx(0.5)
    assert rows["exit 5, λ_e = 0: final exit, %"]["verdict"] == "missed by 1.0"
    low = [record(5, entropy=w, final=0.8) for w in (0.0, 0.5)]
    rows = {str(row["claim"]): row for row in text.claims(low).rows}
    missing = rows["exit 5, λ_e = 0.5: bytes saved against raw at 85 %, %"]
    assert (missing["ours"], missing["verdict"]) == (None, "the accuracy is not reached")
    assert rows["exit 12, λ_e = 1: Huffman bytes, % of raw"]["verdict"] == "no run"


def test_a_chosen_step_is_beside_the_papers_8_bits() -> None:
    (row,) = text.steps(paper_like()).rows
    assert (row["exit"], row["weight"], row["step"]) == (12, "1", 8)
    assert [row["share_8"], row["share_step"]] == pytest.approx([50, 100 * 2000 / 8192])
    assert [row["final_8"], row["final_step"]] == pytest.approx([89, 88.5])
    # The paper's own tables are of its 8 bits alone.
    table = {row["weight"]: row for row in tables.table4(paper_like()).rows}
    assert table["1"]["huffman"] == 4
    found = {str(one["claim"]): one for one in text.claims(paper_like()).rows}
    assert found["the same at the chosen step (8.0): Huffman bytes, % of raw"]["verdict"] == "holds"
    assert found["the same at the chosen step: final exit's loss, points"]["ours"] == pytest.approx(1.5)
    with pytest.raises(DataError, match="with a chosen step"):
        text.steps([record(5)])
