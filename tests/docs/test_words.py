"""Documents keep to plain words; program output and generated tables have their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(p for d in ("docs", "research", "models") for p in sorted((ROOT / d).rglob("*.md"))),
]
WORDS = {
    r"\btold\b": "answer, measured from, callback",
    r"\bwhat travels\b|\bthat travels?\b": "the transmitted activation, the payload",
    r"\bis none\b|\bthat is no\b": "is not a …",
    r"\bof the unsure\b|\bfor the unsure\b": "for unsure images",
    r"\basked for:": "(target: …)",
    r"\bwhere its code bears\b|\bas [a-z' ]*answers bear\b": "if the code tolerates it",
    r"\ba mean image\b|\ba mean one\b": "on average, per image",
    r"\banew\b": "again",
    r"\blikewise\b": "also, in the same way",
    r"\bthereby\b": "",
}  # fmt: skip
"""What is not written, and what is written for it."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_keeps_to_plain_words(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<!-- generated: .*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    found = {
        f"{match[0]!r}: write {better}"
        for word, better in WORDS.items()
        for match in re.finditer(word, " ".join(text.split()), re.I)
    }

    assert found == set()
