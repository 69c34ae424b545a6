"""The data that a bundle was made of, read again by its own recipe.

A bundle's manifest says nothing of where its data lie. `BESIDE` in its folder does, with paths from there; a
flag does where that file is gone or the data have moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, DataError
from offramp.common.files import replace_file
from offramp.common.inputs.spec import PictureInput
from offramp.training import recipe_file, split_recipe
from offramp.training.data import sources
from offramp.training.data.datasets import Dataset
from offramp.training.data.photos import Columns, read_photos
from offramp.training.data.recipe import LocalRecipe, listed
from offramp.training.recipe import Recipe, toml_values

BESIDE = split_recipe.RECIPE


def load_data(
    bundle: Bundle,
    train: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    *,
    photos: Path | None = None,
) -> Dataset:
    """All three parts, split as they were when the bundle was made.

    Args:
        bundle: its manifest holds the recipe.
        train: Parquet files or a folder in place of the recipe's train part; None: as the recipe says.
        test: the same for the test part; both or neither.
        photos: the folder or file that `offramp split` was given, in place of that of `BESIDE`.

    Raises:
        ConfigError: a recipe that this release does not read, data that are not where it says, or one of the
            two parts without the other.
        DataError: data that are not those that the bundle was made of.
    """
    provenance = bundle.manifest.provenance
    if (train is None) != (test is None):
        raise ConfigError("--train-data and --test-data: expected both or neither")
    # The bundle may have been made with --skip-bad; the hash decides whether the others are the same.
    unusable: list[str] = []
    if provenance.recipe.startswith(split_recipe.MARK):
        if train is not None:
            raise ConfigError(
                f"--train-data and --test-data: {bundle.path} was made by `offramp split`; expected --data"
            )
        data = _photos(bundle, photos, unusable)
    elif photos is not None:
        raise ConfigError(
            f"--data {photos}: {bundle.path} was made by `offramp train`; "
            "expected --train-data and --test-data"
        )
    else:
        data = _parts(bundle, train, test, unusable)
    if data.sha256 != provenance.dataset.sha256:
        left_out = f"; {len(unusable)} pictures cannot be used, first {unusable[0]}" if unusable else ""
        raise DataError(
            f"these data have SHA-256 {data.sha256[:12]}…, the bundle was made of "
            f"{provenance.dataset.sha256[:12]}…{left_out}"
        )
    return data


def _photos(bundle: Bundle, photos: Path | None, unusable: list[str]) -> Dataset:
    manifest = bundle.manifest
    if not isinstance(manifest.input, PictureInput):
        raise ConfigError(
            f"{bundle.path}: takes {manifest.input.what}, not photos; run `offramp split` again with another "
            "--drop or --budget, which trains nothing again"
        )
    made_by = split_recipe.parse_recipe(manifest.provenance.recipe.encode(), f"the recipe in {bundle.path}")
    beside = bundle.path / BESIDE
    if photos is None and beside.is_file():
        photos = split_recipe.read_recipe(beside).get("data")
    if photos is None:
        raise ConfigError(f"{beside}: is not there to say where the photos are; expected --data FOLDER")
    if not photos.exists():
        raise ConfigError(f"{photos}: no such folder or file; expected --data FOLDER")
    values = {name: made_by.get(name, field.default) for name, field in split_recipe.BY_NAME.items()}
    columns = Columns(values["image_column"], values["label_column"], values["classes"])
    side = manifest.input.height
    return read_photos(photos, size=side, seed=values["seed"], columns=columns, skipped=unusable.append).data


def _parts(
    bundle: Bundle, train: Sequence[str] | None, test: Sequence[str] | None, unusable: list[str]
) -> Dataset:
    recipe = Recipe.parse(bundle.manifest.provenance.recipe, origin=f"the recipe in {bundle.path}")
    beside = bundle.path / BESIDE
    if train is not None and test is not None:
        recipe = recipe.with_files(train, test)
    elif isinstance(recipe.data, LocalRecipe) and beside.is_file():
        there = recipe_file.read(beside)[0][0].data
        if isinstance(there, LocalRecipe):
            recipe = recipe.with_files(listed(there.train), listed(there.test))
    try:
        return sources.load(recipe.data, seed=recipe.seed, skipped=unusable.append)
    except ConfigError as error:
        if train is not None:
            raise
        where = beside if beside.is_file() else f"the recipe in {bundle.path}"
        raise ConfigError(f"{error}, as {where} says; expected --train-data and --test-data") from None


def write_beside(folder: Path, text: str, recipe: Recipe) -> None:
    """Write a recipe of `offramp train` beside its bundle, its paths from there; only where it has paths.

    Args:
        folder: of the bundle.
        text: the recipe's own.
        recipe: it, with paths from the current folder.
    """
    if not isinstance(recipe.data, LocalRecipe):
        return
    values = toml_values(text, "recipe")
    values["data"] |= {"source": recipe.data.source}
    for part in ("train", "test"):
        names: str | list[str] = getattr(recipe.data, part)
        paths = [split_recipe.path_from(Path(name), folder) for name in listed(names)]
        values["data"][part] = paths[0] if isinstance(names, str) else paths
    replace_file(folder / BESIDE, recipe_file.to_toml(values).encode())
