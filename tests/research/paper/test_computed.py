"""What follows from the networks alone."""

from offramp.bench.report_tables import half_up
from research.paper import computed, paper
from tests.records import record


def test_table_ii_to_the_last_digit() -> None:
    report = computed.table2()
    assert [row["exit"] for row in report.rows] == list(paper.TABLE_II)
    for row in report.rows:
        for column in report.columns:
            if f"{column.key}_paper" not in row or (row["exit"], column.key) == (8, "device_kb"):
                continue
            value = row[column.key]
            assert isinstance(value, float)
            assert half_up(value, column.digits) == row[f"{column.key}_paper"], (row["exit"], column.key)
    text = report.to_markdown()
    # The one figure of the table that contradicts its own row.
    assert "| 8 | 267.9 | 268.9 |" in text
    assert "Its own row says 267.9" in text


def test_figures_1_and_5() -> None:
    largest = {str(row["network"]): row for row in computed.fig1([]).rows}
    assert largest["MobileNetV2"]["times"] == 48
    assert largest["ResNet-32"]["kb"] == 16
    assert largest["VGG-19"]["kb"] == 64
    sizes = {row["exit"]: row for row in computed.fig5().rows}
    assert [sizes[number]["int8_kb"] for number in (4, 5, 12)] == [96, 24, 8]
    assert sizes[12]["fp32_kb"] == paper.FIG_7_KB[1.0]
    # Inside a residual block two tensors travel; after it, one.
    assert [sizes[number]["travels_kb"] for number in (8, 9)] == [48, 24]
    ours = computed.fig1([record(12, entropy=1.0, shape=(32, 16, 16))]).rows[-1]
    assert ours["kb"] == 4
