"""The notebooks of examples/ run from the first cell to the last, in the root of the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
OUT = "build/notebook"
"""Where they write."""


def cells(path: Path) -> list[str]:
    """The code of a notebook, cell by cell."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["split.ipynb"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells(path)):
        assert OUT in source or number != 1
        # A folder of this test's own, in which nothing is left from before.
        exec(compile(source.replace(OUT, str(tmp_path / "out")), f"{path.name}:{number}", "exec"), names)
    pair, result = names["pair"], names["result"]
    assert pair.report["photos"] == {"train": 225, "validation": 60, "test": 79}
    assert pair.report["digest"] == pair.bundle.digest.hex()
    assert result.source == "early_exit" and result.label in pair.bundle.manifest.classes
    # It has learned, a little.
    assert pair.report["accuracy"]["unsplit"] > 0.3
    printed = capsys.readouterr().out
    assert pair.verdict in printed and "is cut after" in printed
    assert all(not each.requires_grad or each.grad is None for each in names["network"].parameters())
