"""Every link in a document leads to a file that there is, and to a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(
        path
        for name in ("docs", "research", "models", "examples")
        for path in sorted((ROOT / name).rglob("*.md"))
    ),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
# A page that the code names: docs/reference/errors.md, models/…/README.md.
NAMED = re.compile(r"\b(?:docs|research)/[\w/.-]+\.md\b")
NAMING = ("*.py", "*.sh", "*.yml", "*.yaml", "*.toml", "*.proto", "*.c", "*.h", "*.conf", "*.service")


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The headings of a page as links name them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        text = re.sub(r"[^\w\s-]", "", text).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", text))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_pages_that_the_code_names_exist() -> None:
    folders = (
        "common",
        "device",
        "server",
        "training",
        "evaluation",
        "link",
        "bench",
        "research",
        "cli",
        "proto",
    )
    paths = [
        path
        for name in (*folders, "deploy", "runs", "tests")
        for kind in NAMING
        for path in (ROOT / name).rglob(kind)
    ]
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*paths, ROOT / "Makefile", ROOT / "pyproject.toml"]
        for name in NAMED.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    }
    assert missing == set()


def test_every_note_is_in_the_notebook_s_list() -> None:
    notes = ROOT / "research" / "notes"
    listed = LINK.findall((notes / "README.md").read_text(encoding="utf-8"))

    assert {path.name for path in notes.glob("2*.md")} == {name for name in listed if "/" not in name}


def test_every_plot_is_shown() -> None:
    shown = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text(encoding="utf-8"))
    }
    plots = {path for name in ("docs", "research") for path in (ROOT / name).rglob("*.png")}

    assert {path.name for path in plots - shown} == set()
