"""Arguments of the Python API, held to the ranges that ``config.py`` states for the flags of that name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, get_args

from pydantic.fields import FieldInfo

from offramp.common.errors import ConfigError
from offramp.common.settings import Settings


def check_argument(kind: type[Settings], name: str, value: object, *, per_unit: float = 1.0) -> None:
    """Raise ConfigError, naming the argument, for a value that the field of this name does not take.

    per_unit: how many of the field's units one of the argument's is: 1000 for seconds where the flag takes
    milliseconds. None is taken where the field takes it. Strings, paths, booleans and numbers only.
    """
    field = kind.model_fields[name]
    kinds = set(_plain(field.annotation))
    if value is None and type(None) in kinds:
        return
    shown = f"{name}={value!r:.80}"
    if bool in kinds:
        if not isinstance(value, bool):
            raise ConfigError(f"{shown}: expected True or False")
    elif str in kinds:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ConfigError(f"{shown}: expected a path")
    else:
        _check_number(shown, value, int in kinds, _limits(field), per_unit)


def _check_number(shown: str, value: object, whole: bool, limits: dict[str, float], per_unit: float) -> None:
    low = limits.get("ge", limits.get("gt", -math.inf)) / per_unit
    high = limits.get("le", math.inf) / per_unit
    over = "more than " if "gt" in limits else ""
    expected = f"expected {'a whole number' if whole else 'a number'}, {over}{low:.15g} … {high:.15g}"
    # A numpy.bool is neither; a bool is an int.
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise ConfigError(f"{shown}: {expected}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # NaN fails every comparison.
    if not low <= number <= high or (over and number == low) or not math.isfinite(number):
        raise ConfigError(f"{shown}: {expected}")


def _plain(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows."""
    inner = get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        yield from _plain(inner[0])
    elif inner:
        for each in inner:
            yield from _plain(each)
    else:
        yield annotation


def _limits(field: FieldInfo) -> dict[str, float]:
    """``ge``, ``gt`` and ``le`` of a field, also where only one of its alternatives has them."""
    notes = [*field.metadata]
    for alternative in get_args(field.annotation):
        for note in getattr(alternative, "__metadata__", ()):
            notes += note.metadata if isinstance(note, FieldInfo) else [note]
    return {
        name: float(getattr(note, name))
        for note in notes
        for name in ("ge", "gt", "le")
        if getattr(note, name, None) is not None
    }
