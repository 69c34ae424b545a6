"""Tables III to V: our values beside the paper's."""

import pytest

from research.paper import tables
from tests.records import paper_like, record


def test_tables_have_the_papers_values_beside_ours() -> None:
    report = tables.table3(paper_like())
    rows = {row["weight"]: row for row in report.rows}
    assert list(rows) == ["0", "0.5", "1", "2", "2.5", "5", "10"]
    assert rows["1"]["huffman"] == pytest.approx(8.1, abs=0.01)
    assert rows["1"]["huffman_paper"] == 8.1
    assert rows["0"]["csr"] == 60
    assert "huffman_paper" not in rows["2"]
    assert "huffman" not in rows["10"]
    assert "Epochs: 300 + 50 + 10" in report.to_markdown()
    assert "batches of 256, seed 1, on some machine (float32)" in report.to_markdown()
    assert [row["weight"] for row in tables.table5(paper_like()).rows][:2] == ["0", "1e-05"]


def test_parts_of_epochs_are_shown() -> None:
    run = record(entropy=1.0).model_copy(update={"images": {"exit": 450, "regularised": 30}})
    assert "Epochs: 300 + 25 + 0.33" in tables.table3([run]).to_markdown()
