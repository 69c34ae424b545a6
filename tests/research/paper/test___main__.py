"""The command: what it writes, and what it says is wrong."""

import json
from pathlib import Path

import pytest

from offramp.training.record import RECORD
from research.paper.__main__ import COMPUTED, PROGRAM, TRAINED, main
from research.paper.baselines import BASELINES
from tests.records import paper_like, record


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for one in paper_like():
        path = folder / one.name / RECORD
        path.parent.mkdir(parents=True)
        path.write_text(one.model_dump_json())
    return folder


def test_every_report_is_written_with_its_plot(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert main(["all", "--runs", str(runs), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "left out" not in printed.err
    for name in (*COMPUTED, *TRAINED):
        content = json.loads((out / f"{name}.json").read_text())
        assert content["report"] == name
        assert content["rows"]
        assert f"### {content['title']}" in printed.out
        if name != "claims":
            assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert "<svg" in (out / f"{name}.svg").read_text()
            assert f"({name}.svg)" in (out / f"{name}.md").read_text()
    again = tmp_path / "again"
    assert main(["fig10", "--runs", str(runs), "--out", str(again)]) == 0
    for kind in ("md", "json", "png", "svg"):
        assert (again / f"fig10.{kind}").read_bytes() == (out / f"fig10.{kind}").read_bytes()


def test_all_leaves_out_what_has_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / RECORD).write_text(record(5).model_dump_json())
    assert main(["all", "--runs", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    names = [one["report"] for one in json.loads(printed.out)]
    assert names[:4] == ["table2", "fig1", "fig5", "table3"]
    assert "fig11 left out: no run of mobilenet-v2 with exit 4" in printed.err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["table9"], 2, "table9"),
        (["table3"], 2, "table3: needs --runs"),
        (["baselines"], 2, "baselines: needs --bundle"),
        (["baselines", "--bundle", "none"], 4, "none"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("damage", ["missing", "no JSON", "a field too many", "baselines"])
def test_bad_records_are_one_line(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    text = record(5).model_dump_json()
    if damage == "no JSON":
        text = text[:100]
    elif damage == "a field too many":
        text = text.replace('"name"', '"extra": 1, "name"', 1)
    elif damage == "baselines":
        (folder / BASELINES).write_text("{}")
    if damage != "missing":
        (folder / RECORD).write_text(text)
    assert main(["table3", "--runs", str(folder.parent)]) == 5
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{PROGRAM}: {tmp_path}")
    assert printed.err.count("\n") == 1
