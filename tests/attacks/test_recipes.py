"""Recipes of strangers: one clear line each, in bounded time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.training import split_recipe
from offramp.training.profile import read_profile
from offramp.training.recipe_file import RECIPE_BYTES, read

DOTS = 200_000

CASES: dict[str, tuple[Callable[[], str], str]] = {
    "lists in lists": (lambda: "a = " + "[" * 100_000, "nested too deeply|not TOML"),
    "tables in tables": (lambda: "a = " + "{ b = " * 50_000, "nested too deeply|not TOML"),
    # The parser's time goes with the square of a key's parts.
    "a key of many parts": (lambda: "a." * DOTS + "a = 1", "over 100 parts"),
    "a table of many parts": (lambda: "[" + "a." * DOTS + "a]", "over 100 parts"),
    "many keys of many parts": (
        lambda: "\n".join(f"b{n}." + "a." * 150 + "a = 1" for n in range(2000)),
        "over 100 parts",
    ),
    "a number of many digits": (lambda: "seed = " + "9" * 100_000, "not TOML|seed"),
    "not UTF-8": (lambda: "\udcff", "not UTF-8"),
    "too large": (lambda: "#" * (RECIPE_BYTES + 1), "at most|over"),
    "code": (lambda: 'name = "x"\nimport os\n', "not TOML"),
    "control characters": (lambda: 'name = "\x1b[2J"', "not TOML"),
    "many variants": (lambda: "variants = [" + '{ name = "a", seed = 1 }, ' * 5000 + "]", "variant"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_strangers_recipe_is_one_clear_line(tmp_path: Path, name: str) -> None:
    make, expected = CASES[name]
    path = tmp_path / "recipe.toml"
    path.write_bytes(make().encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=expected) as caught:
        read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


SPLITS = (
    "lists in lists",
    "a key of many parts",
    "a table of many parts",
    "a number of many digits",
    "not UTF-8",
)


@pytest.mark.parametrize("name", SPLITS)
def test_a_strangers_recipe_of_a_split_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(CASES[name][0]().encode(errors="surrogateescape"))
    for read_file in (split_recipe.read_recipe, read_profile):
        with pytest.raises(ConfigError, match="TOML") as caught:
            read_file(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
