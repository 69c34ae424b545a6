"""What is wrong with a recipe's field, in words; tests/training/test_recipe.py has whole recipes."""

from typing import Literal

import pytest
from pydantic import ValidationError

from offramp.training.fields import Section, Share, in_words, problem


class Inner(Section):
    shape: list[int]
    share: Share = 0.5


class Outer(Section):
    inner: Inner
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "inner: is missing; expected a table"),
        ({"inner": {}}, "inner.shape: is missing; expected a list of integer"),
        ({"inner": {"shape": [1], "shar": 1}}, "inner.shar: no such field; expected share"),
        ({"inner": {"shape": [1]}, "x": 1}, "x: no such field; expected one of inner, kind"),
        ({"inner": {"shape": [1], "share": 2.0}}, "inner.share = 2.0: Input should be less than 1"),
        ({"inner": {"shape": [1]}, "kind": "c"}, "kind = \"c\": Input should be 'a' or 'b'"),
    ],
)
def test_a_problem_names_the_field_and_what_was_expected(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    assert problem(caught.value, Outer) == message


def test_types_in_words() -> None:
    assert in_words(str | list[str] | None) == "text or a list of text"
    assert in_words(Literal["a", "b"]) == '"a" or "b"'
