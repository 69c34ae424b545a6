"""Tables of docs/reference are what the code gives; a digest has the figures of the page that it links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DIGESTS = ["README.md", *(f"docs/results/{name}.md" for name in ("summary", "speed", "when-it-pays"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w%]*\])")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    for needed in ("torch", "constriction", "lz4", "matplotlib", "zstandard"):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / ".ci" / "docs_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_what_the_code_gives(tables: ModuleType) -> None:
    pages = list(tables.pages())

    assert len(pages) == 7
    stale = [path.name for path, shown, made in pages if shown != made]
    assert stale == [], "make docs-tables"


def test_a_flag_that_is_no_setting_is_documented(tables: ModuleType) -> None:
    text = (ROOT / "docs" / "reference" / "edge-device.md").read_text()
    parser = tables.parser_of("offramp.device.app")
    flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}

    assert {flag for flag in flags if f"`{flag}`" not in text and not flag.startswith("--no-")} == set()


@pytest.mark.parametrize("page", ["docs/how-to/train-the-papers-networks.md", "docs/reference/recipe.md"])
def test_a_recipe_that_a_page_shows_is_one(page: str) -> None:
    recipe = pytest.importorskip("offramp.training.recipe")
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r"^name = .*?(?=^END|^```)", text, re.MULTILINE | re.DOTALL)

    assert [recipe.Recipe.parse(block).data.source for block in shown] == ["imagefolder"]


@pytest.mark.parametrize("page", ["docs/tutorials/your-own-model.md", "docs/reference/recipe.md"])
def test_a_recipe_of_a_split_that_a_page_shows_is_one(page: str) -> None:
    recipe = pytest.importorskip("offramp.training.split_recipe")
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r"^\[split\]\n.*?(?=^```)", text, re.MULTILINE | re.DOTALL)

    assert [recipe.together(recipe.parse_recipe(b.encode(), page), {})["drop"] for b in shown] == [1.0]


def numbers(text: str) -> set[str]:
    """Figures with more than one digit: they are not names or counts of things."""
    return {found.replace(",", "") for found in NUMBER.findall(text) if len(re.sub(r"\D", "", found)) > 1}


def rows(path: Path) -> list[list[str]]:
    """The rows of all tables of a page, in cells."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]


@pytest.mark.parametrize("digest", DIGESTS)
def test_figures_of_a_digest_are_those_of_the_page_that_it_links(digest: str) -> None:
    path = ROOT / digest
    compared = 0
    for cells in rows(path):
        links = LINK.findall(" ".join(cells))
        if len(links) != 1:
            continue
        figures = numbers(" ".join(cell for cell in cells[1:] if links[0] not in cell))
        compared += len(figures)
        page = (path.parent / links[0]).resolve()
        assert figures - numbers(page.read_text(encoding="utf-8")) == set(), f"{cells}: not in {links[0]}"
    assert compared > 5


@pytest.mark.parametrize(
    ("heading", "note", "count"),
    [
        ("## CIFAR-10", "2026-11-25-cifar10-accuracy-for-bytes.md", 6),
        ("## Imagenette", "2026-11-25-imagenette-accuracy-for-bytes.md", 6),
    ],
)
def test_accuracy_for_bytes_has_the_figures_of_its_note(heading: str, note: str, count: int) -> None:
    page = (ROOT / "docs" / "results" / "accuracy-for-bytes.md").read_text(encoding="utf-8")
    section = page[page.index(heading) :].partition("\n## ")[0]
    shown = {
        cells[0]: cells
        for line in section.splitlines()
        if (cells := line.strip("| ").split(" | "))[0].isdigit()
    }
    measured = {cells[0]: cells for cells in rows(ROOT / "research" / "notes" / note) if cells[0].isdigit()}

    assert len(shown) == count
    for below, cells in shown.items():
        found = {cell.split(" ")[0] for cell in measured[below]}
        assert {cell for cell in cells if cell != "—"} - found == set(), f"{below} points below"
