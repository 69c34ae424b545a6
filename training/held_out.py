"""The data that a bundle was made of, read again by its own recipe."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.common.bundle import Bundle
from offramp.common.errors import ConfigError, DataError
from offramp.training import sources
from offramp.training.data import Dataset
from offramp.training.recipe import Recipe


def load_data(
    bundle: Bundle, train: Sequence[str] | None = None, test: Sequence[str] | None = None
) -> Dataset:
    """All three parts, split as they were when the bundle was made.

    Args:
        bundle: its manifest holds the recipe.
        train: Parquet files in place of the recipe's train part; None: as the recipe says.
        test: the same for the test part; both or neither.

    Raises:
        ConfigError: a recipe that this release does not read, or one of the two parts without the other.
        DataError: data that are not those that the bundle was made of.
    """
    provenance = bundle.manifest.provenance
    recipe = Recipe.parse(provenance.recipe, origin=f"the recipe in {bundle.path}")
    if (train is None) != (test is None):
        raise ConfigError("--train-data and --test-data: expected both or neither")
    if train is not None and test is not None:
        recipe = recipe.with_files(train, test)
    data = sources.load(recipe.data, seed=recipe.seed)
    if data.sha256 != provenance.dataset.sha256:
        raise DataError(
            f"these data have SHA-256 {data.sha256[:12]}…, the bundle was made of "
            f"{provenance.dataset.sha256[:12]}…"
        )
    return data
