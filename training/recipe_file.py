"""A recipe's file: TOML, with fields replaced from outside, and with variants.

A file may hold several recipes: each entry of its ``variants`` is the file's recipe with some fields
replaced, named ``<name>-<variant>``.

    variants = [
      { name = "exit5", model.exit = 5 },
      { name = "exit5-entropy1", model.exit = 5, train.regularised.entropy = 1.0 },
    ]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.common.errors import ConfigError
from offramp.common.files import read_bounded
from offramp.training.recipe import Recipe, toml_values

RECIPE_BYTES = 1 << 20


def read(path: Path, *, settings: Sequence[str] = (), only: Sequence[str] = ()) -> list[tuple[Recipe, str]]:
    """The recipes of a file, each with its text: the file's own where nothing was replaced.

    Paths in the file are relative to the file.

    Args:
        path: the TOML file.
        settings: fields to replace, as ``train.base.epochs=30``; what a variant says of them stays.
        only: names of the variants that are wanted; none: all.

    Raises:
        ConfigError: see `Recipe.parse`; also a file that cannot be read, or a variant that is not there.
    """
    text = _text(path)
    values = toml_values(text, str(path))
    variants = values.pop("variants", None)
    # Paths in the file are relative to it, those of --set to the current directory.
    own_paths = {"train", "test"}
    for setting in settings:
        replaced = toml_values(setting, f"--set {setting}")
        values = _merged(values, replaced)
        if isinstance(replaced.get("data"), dict):
            own_paths -= set(replaced["data"])
    if variants is None:
        if only:
            raise ConfigError(f"{path} has no variants")
        recipe = Recipe.checked(values, str(path)).beside(path.parent, own_paths)
        return [(recipe, to_toml(values) if settings else text)]
    found: dict[str, tuple[Recipe, str]] = {}
    for variant in variants if isinstance(variants, list) else [None]:
        if not isinstance(variant, dict) or not isinstance(variant.get("name"), str):
            raise ConfigError(f"{path}: variants: expected tables, each with a name")
        name = variant["name"]
        if name in found:
            raise ConfigError(f"{path}: variants: {name!r} is there twice")
        own = _merged(values, {**variant, "name": f"{values.get('name')}-{name}"})
        recipe = Recipe.checked(own, f"{path}, variant {name}").beside(path.parent, own_paths)
        found[name] = (recipe, to_toml(own))
    for name in only:
        if name not in found:
            raise ConfigError(f"{path}: variant: unknown {name!r}, use one of {', '.join(sorted(found))}")
    return [found[name] for name in (only or found)]


def _text(path: Path) -> str:
    try:
        return read_bounded(
            path, RECIPE_BYTES, name=f"cannot read recipe {path}", expected="a TOML file"
        ).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read recipe {path}: is not UTF-8 text, expected a TOML file") from None


def has_variants(path: Path) -> bool:
    """Whether a recipe file that ``read`` accepts holds several."""
    return "variants" in toml_values(_text(path), str(path))


def to_toml(values: Mapping[str, Any]) -> str:
    """TOML text of nested tables of strings, numbers, booleans and lists of these."""
    lines: list[str] = []

    def table(prefix: str, content: Mapping[str, Any]) -> None:
        if prefix:
            lines.append(f"\n[{prefix}]")
        lines.extend(
            # JSON's strings, numbers, booleans and lists are TOML's as well.
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in content.items()
            if not isinstance(value, dict)
        )
        for key, value in content.items():
            if isinstance(value, dict):
                table(f"{prefix}.{key}" if prefix else key, value)

    table("", values)
    return "\n".join(lines) + "\n"


def _merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the fields of ``other`` in place of its own, table by table."""
    merged = dict(base)
    for key, value in other.items():
        own = merged.get(key)
        merged[key] = _merged(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged
