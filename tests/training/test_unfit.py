"""Why a checkpoint does not fit: the fields that differ, by name."""

from pathlib import Path

import torch

from offramp.training.recipe import Recipe
from offramp.training.unfit import kept_of, why


def test_the_fields_that_differ_are_named(recipe_text: str, tmp_path: Path) -> None:
    before, now = (
        kept_of(Recipe.parse(text), images)
        for text, images in (
            (recipe_text, "a" * 64),
            (recipe_text.replace("shift = 1", "shift = 2"), "b" * 64),
        )
    )
    assert why(tmp_path, "base", now) == ""
    torch.save({"recipe": before}, tmp_path / "base-1-2.pt")
    torch.save({"recipe": {}}, tmp_path / "exit-1-2.pt")
    assert why(tmp_path, "base", now) == (
        'base-1-2.pt has images = "aaaaaaaaaaaa", now "bbbbbbbbbbbb"; data.shift = 1, now 2'
    )
    assert why(tmp_path, "base", before) == "base-1-2.pt is of another release"
    torch.save({"epochs": []}, tmp_path / "base-1-2.pt")
    assert why(tmp_path, "base", now) == ("base-1-2.pt is of another recipe, other images or another release")
    (tmp_path / "base-1-2.pt").write_bytes(b"nothing")
    assert why(tmp_path, "base", now) == ""


def test_names_and_goals_decide_nothing(recipe_text: str) -> None:
    other = recipe_text.replace('"tiny-digits"', '"other"') + "\n[threshold]\ndrop = 0.1\n"
    assert kept_of(Recipe.parse(recipe_text), "a") == kept_of(Recipe.parse(other), "a")
