"""A report's table: numbers, files, and what is printed."""

import json
from pathlib import Path

import pytest

from offramp.bench.report_tables import Column, ReportTable, half_up, show


def test_numbers_in_tables() -> None:
    columns = [Column("a", "A"), Column("b", "B", 2), Column("c", "C")]
    report = ReportTable(
        "x", "X", columns, [{"a": "text", "b": 1234.565, "c": None}, {"a": "t", "b": 2, "c": -0.25}]
    )
    assert report.to_markdown() == (
        "### X\n\n| A | B | C |\n| --- | --: | --: |\n| text | 1,234.57 | — |\n| t | 2 | -0.3 |\n"
    )
    # Halves go up, as in the paper: Python's own rounding would make it 8.2.
    assert half_up(8.25, 1) == 8.3


def test_reports_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [ReportTable(name, name.upper(), [Column("a", "A")], [{"a": 1.0}]) for name in ("x", "y")]

    show(reports, as_json=True, out=tmp_path)

    printed = capsys.readouterr()
    assert [one["report"] for one in json.loads(printed.out)] == ["x", "y"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.md", "y.json", "y.md"]
    assert printed.err.count("wrote ") == 4
    show(reports, as_json=False, out=None)
    assert capsys.readouterr().out == f"{reports[0].to_markdown()}\n{reports[1].to_markdown()}"
