"""TOML in bounded time; strangers' recipes: tests/attacks/test_recipes.py."""

import pytest

from offramp.training.toml import PARTS, parsed


@pytest.mark.parametrize(
    "text",
    [
        "a.b.c = 1.5\n[d.e]\nf = [0.1, 0.2]\n",
        "train = [" + ", ".join(f'"part-{n}.of.many.parquet"' for n in range(300)) + "]",
        "rho = [" + ", ".join(["0.1"] * 300) + "]",
        "# " + "A sentence. " * 300 + "\na = 1",
        ".".join(["a"] * PARTS) + " = 1",
    ],
)
def test_what_recipes_have_is_read(text: str) -> None:
    assert parsed(text)


@pytest.mark.parametrize("quoted", ["a", '"a"', "'a'"])
def test_a_key_of_too_many_parts_is_not(quoted: str) -> None:
    for text in (".".join([quoted] * (PARTS + 1)) + " = 1", "[" + " . ".join([quoted] * (PARTS + 1)) + "]"):
        with pytest.raises(ValueError, match="over 100 parts"):
            parsed(text)
