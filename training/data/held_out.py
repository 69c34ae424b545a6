"""The data that a bundle was made of, read again by its own recipe."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, DataError
from offramp.training.data import sources
from offramp.training.data.datasets import Dataset
from offramp.training.recipe import Recipe

SPLIT_RECIPE = "# Made by `offramp split`.\n"
"""How the recipes begin that `offramp split` writes."""


def load_data(
    bundle: Bundle, train: Sequence[str] | None = None, test: Sequence[str] | None = None
) -> Dataset:
    """All three parts, split as they were when the bundle was made.

    Args:
        bundle: its manifest holds the recipe.
        train: Parquet files or a folder in place of the recipe's train part; None: as the recipe says.
        test: the same for the test part; both or neither.

    Raises:
        ConfigError: a recipe that this release does not read, or one of the two parts without the other.
        DataError: data that are not those that the bundle was made of.
    """
    provenance = bundle.manifest.provenance
    if provenance.recipe.startswith(SPLIT_RECIPE):
        raise ConfigError(
            f"{bundle.path}: was made by `offramp split`; run that again with another --drop or --budget, "
            "which trains nothing again"
        )
    recipe = Recipe.parse(provenance.recipe, origin=f"the recipe in {bundle.path}")
    if (train is None) != (test is None):
        raise ConfigError("--train-data and --test-data: expected both or neither")
    if train is not None and test is not None:
        recipe = recipe.with_files(train, test)
    # The bundle may have been made with --skip-bad; the hash decides whether the others are the same.
    unusable: list[str] = []
    try:
        data = sources.load(recipe.data, seed=recipe.seed, skipped=unusable.append)
    except ConfigError as error:
        if train is not None:
            raise
        raise ConfigError(
            f"{error}, as the recipe in {bundle.path} says; expected --train-data and --test-data"
        ) from None
    if data.sha256 != provenance.dataset.sha256:
        left_out = f"; {len(unusable)} pictures cannot be used, first {unusable[0]}" if unusable else ""
        raise DataError(
            f"these data have SHA-256 {data.sha256[:12]}…, the bundle was made of "
            f"{provenance.dataset.sha256[:12]}…{left_out}"
        )
    return data
