"""Types of a recipe's fields, and what is wrong with one in words."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from offramp.common.errors import printable

Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A table of a recipe: unknown or missing fields and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def problem(error: ValidationError, model: type[BaseModel], tags: Collection[str] = ()) -> str:
    """The first thing that is wrong with values, as ``data.validation: is missing; expected a number``.

    Args:
        error: what checking them against ``model`` raised.
        tags: parts of a place that are not tables, but names of alternatives.
    """
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    name = printable(".".join(part for part in place if part not in tags)) or "top level"
    tables = list(_tables(model, place[:-1]))
    if first["type"] == "union_tag_not_found":
        found_tag = str(first["ctx"]["discriminator"]).strip("'")
        return f"{name}.{found_tag}: is missing; expected one of {', '.join(tags)}"
    if first["type"] == "missing":
        found = [table.model_fields[place[-1]] for table in tables if place[-1] in table.model_fields]
        return f"{name}: is missing; expected {in_words(found[0].annotation) if found else 'a value'}"
    if first["type"] == "extra_forbidden":
        known = sorted({each for table in tables for each in table.model_fields})
        near = get_close_matches(place[-1], known, 1, 0.6) or known
        return f"{name}: no such field; expected {'one of ' * (len(near) > 1)}{', '.join(near)}"
    return f"{name}{_value(first)}: {printable(first['msg'])}"


def _value(found: ErrorDetails) -> str:
    """`` = 3``, where it is a plain value."""
    value = found["input"]
    if not isinstance(value, str | int | float):
        return ""
    return f" = {printable(json.dumps(value, ensure_ascii=False), 60)}"


def _tables(model: Any, place: list[str]) -> Iterator[type[BaseModel]]:
    """The tables that lie at a place; several where there are alternatives."""
    for table in _models(model):
        if not place:
            yield table
        elif (field := table.model_fields.get(place[0])) is not None:
            yield from _tables(field.annotation, place[1:])
        elif any(place[0] in typing.get_args(each.annotation) for each in table.model_fields.values()):
            # An alternative's name, as "imagefolder".
            yield from _tables(table, place[1:])


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for each in typing.get_args(annotation):
            yield from _models(each)


_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def in_words(annotation: Any) -> str:
    """What a field of this type takes."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return in_words(inner[0])
    if origin is typing.Literal:
        return " or ".join(json.dumps(value) for value in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(in_words(each) for each in inner if each is not type(None)))
    if origin is list:
        return f"a list of {in_words(inner[0]).removeprefix('a ').removeprefix('an ')}"
    return _WORDS.get(annotation, "a table")
