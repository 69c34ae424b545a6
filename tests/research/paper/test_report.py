import json
from pathlib import Path

import pytest

from offramp.bench.report_tables import half_up
from offramp.common.errors import DataError
from offramp.training.record import RECORD, Record
from research.paper import computed, figure_10, figures, paper, tables, text
from research.paper import runs as recorded
from research.paper.__main__ import COMPUTED, PROGRAM, TRAINED, main
from research.paper.baselines import BASELINES, AsPictures, Baselines, Hybrid
from tests.records import paper_like, record


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for one in paper_like():
        path = folder / one.name / RECORD
        path.parent.mkdir(parents=True)
        path.write_text(one.model_dump_json())
    return folder


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


def test_parts_of_epochs_are_told() -> None:
    run = record(entropy=1.0).model_copy(update={"images": {"exit": 450, "regularised": 30}})
    assert "Epochs: 300 + 25 + 0.33" in tables.table3([run]).to_markdown()


def test_figure_10_takes_the_least_bytes_at_the_floor() -> None:
    runs = paper_like()
    # Accuracy is 0.7 + 0.2 T_c: T_c = 0.8 is the first of the grid with 85 %.
    plain = recorded.runs_at_exit(runs, 5)[0.0]
    assert figure_10.cost_at_floor(plain, "raw", 0.85) == pytest.approx(0.8 * 24_576)
    assert figure_10.cost_at_floor(plain, "raw", 0.95) is None
    report = figure_10.fig10(runs)
    rows = {row["line"]: row for row in report.rows}
    assert rows["raw, λ_e = 0"]["kb"] == pytest.approx(19.2)
    assert rows["raw, λ_e = 0"]["kb_paper"] == 6.5
    saved = 1 - 11_674 / 24_576
    assert f"85.0 %: {saved:.0%}" in report.notes[0]


def test_figure_10_shows_what_sends_pictures_instead() -> None:
    one = Baselines(
        bundle="some",
        digest="0",
        images=10,
        pictures=[AsPictures(name="WebP 50", bytes_mean=256, accuracy=0.88)],
        hybrids=[
            Hybrid(name="early exit + WebP 50", threshold=[0, 1], bytes_mean=[0, 256], accuracy=[0.7, 0.88])
        ],
    )
    report = figure_10.fig10(paper_like(), [one])
    rows = {row["line"]: row for row in report.rows}
    assert rows["WebP 50 (some)"]["kb"] == 0.25
    assert rows["early exit + WebP 50 (some)"]["kb"] == 0.25
    assert report.plot is not None
    assert report.plot.log_x


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


def test_runs_that_are_missing_or_there_twice() -> None:
    with pytest.raises(DataError, match="no run of mobilenet-v2 with exit 5"):
        tables.table3([record(12)])
    with pytest.raises(DataError, match="are runs of one configuration"):
        tables.table3([record(5), record(5)])
    with pytest.raises(DataError, match="without a regularised stage"):
        figures.fig6([record(5)])


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


def test_a_record_survives_json() -> None:
    values = json.loads(record(5).model_dump_json())
    assert Record.model_validate(values) == record(5)
