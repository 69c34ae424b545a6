"""Why a checkpoint of another recipe does not fit: which fields differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offramp.common.errors import ConfigError, printable
from offramp.training.checkpoint import read_any
from offramp.training.recipe import Recipe

NAMED = 3
"""Fields that are named, at most."""
_ELSEWHERE = ("name", "threshold", "quantize", "data.train", "data.test", "data.source", "data.name")
"""Fields that decide nothing of a stage: the images themselves are compared by their hash."""


def kept_of(recipe: Recipe, images: str) -> dict[str, Any]:
    """What a checkpoint keeps of a recipe and its images' hash, for `why`."""
    return {"images": images[:12], **dict(_flat(recipe.model_dump(mode="json")))}


def why(folder: Path, stage: str, wanted: Mapping[str, Any]) -> str:
    """A sentence about the newest checkpoint of a stage that is of another recipe; empty if there is none.

    Args:
        folder: of checkpoints, none of which fits.
        stage: its name.
        wanted: of `kept_of`, as it is now.
    """
    others = sorted(folder.glob(f"{stage}-*.pt"), key=lambda path: path.stat().st_mtime)
    if not others:
        return ""
    try:
        kept = read_any(others[-1]).get("recipe")
    except ConfigError:
        return ""
    if not isinstance(kept, dict):
        return f"{others[-1].name} is of another recipe, other images or another release"
    differing = [name for name in {**kept, **wanted} if kept.get(name) != wanted.get(name)]
    if not differing:
        return f"{others[-1].name} is of another release"
    shown = [f"{n} = {_short(kept.get(n))}, now {_short(wanted.get(n))}" for n in differing[:NAMED]]
    more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    return f"{others[-1].name} has {'; '.join(shown)}{more}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name.startswith(_ELSEWHERE):
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _short(value: object) -> str:
    return "absent" if value is None else printable(json.dumps(value), 60)
