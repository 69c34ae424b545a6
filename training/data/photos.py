"""Labelled photos as people have them: a folder of class folders, Parquet files, or a CSV file.

photos/cat/1.jpg …                          class folders; seeded parts are made
photos/train/cat/1.jpg, photos/test/…       two parts; val or validation where there is no test
photos/train-0.parquet, photos/test.parquet the hub's schema: a picture column and a label column
photos.csv, photos/labels.csv               columns file and label, files relative to it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from offramp.common.errors import ConfigError, printable
from offramp.common.inputs.folder import suffix_of
from offramp.common.inputs.headers import EXTENSIONS
from offramp.common.inputs.labels import LABELS, UNSORTED, read_labels
from offramp.training.data import sources
from offramp.training.data.datasets import Dataset, split
from offramp.training.data.recipe import FolderRecipe

VALIDATION, TEST = 0.15, 0.2
"""Shares of the photos that are held out where there are no parts."""
HELD_OUT = ("test", "val", "validation", "valid")


@dataclass(frozen=True)
class Photos:
    """What was read.

    data: all three parts.
    notes: how it was divided, a sentence each.
    """

    data: Dataset
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """Where a Parquet file has them: its picture column, its label column, and names of classes by label."""

    image: str = "image"
    label: str = "label"
    classes: Sequence[str] = ()


def read_photos(
    path: Path,
    *,
    size: int,
    seed: int,
    columns: Columns = Columns(),
    counted: Callable[[int], Callable[[], object]] = lambda _: lambda: None,
    skipped: Callable[[str], object] | None = None,
) -> Photos:
    """Read, check and divide photos; every one is decoded before anything else happens.

    Args:
        path: a folder, a Parquet file or a CSV file.
        size: pixels a side that they are resized to.
        seed: decides which validate and test.
        columns: of Parquet files; its classes also give the order of folders.
        counted: called with the number of photos; what it returns is called for each that was decoded.
        skipped: called with one line for each photo that cannot be used, which is then left out; None: all
            such photos together are one error.

    Raises:
        ConfigError: no such folder or file, or nothing in it that is known.
        DataError: photos or labels that cannot be used.
    """
    recipe = folder_recipe(path, columns, size)
    return divided(path, recipe, find_parts(path, recipe), seed=seed, counted=counted, skipped=skipped)


def folder_recipe(path: Path, columns: Columns, size: int = 32) -> FolderRecipe:
    """What a folder, a Parquet file or a CSV file is to `sources`."""
    return FolderRecipe(
        source="imagefolder", train=str(path), test=str(path), size=size, validation=VALIDATION,
        image=columns.image, label=columns.label, classes=list(columns.classes),
    )  # fmt: skip


Parts = tuple[sources.Part, sources.Part | None, tuple[str, ...]]
"""A part to train and validate on, one to test on where there is one, and notes."""


def divided(
    path: Path,
    recipe: FolderRecipe,
    parts: Parts,
    *,
    seed: int,
    counted: Callable[[int], Callable[[], object]],
    skipped: Callable[[str], object] | None,
    reader: sources.Reader | None = None,
) -> Photos:
    """The parts of `find_parts`, read and divided; the other arguments as of `read_photos`."""
    train, test, notes = parts
    total = len(train.rows) + (0 if test is None else len(test.rows))
    source = sources.read(recipe, train, test, progress=counted(total), skipped=skipped, reader=reader)
    source = replace(source, name=(printable(path.name) or "photos")[:200])
    data = split(source, validation=VALIDATION, test=TEST if test is None else None, seed=seed)
    if test is None:
        notes = (*notes, f"divided by seed {seed}: {TEST:.0%} to test, {VALIDATION:.0%} to validate")
    else:
        notes = (*notes, f"{VALIDATION:.0%} of train, by seed {seed}, validate")
    return Photos(data, notes)


def find_parts(
    path: Path, recipe: FolderRecipe, suffixes: tuple[str, ...] = EXTENSIONS, images: str = "images"
) -> Parts:
    """What a path holds, its files not yet read. Raises as `read_photos`.

    suffixes: of the files in class folders; images: what they are called in messages.
    """
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return _csv(path, recipe), None, ()
        with path.open("rb") as file:
            start = file.read(4)
        if start != b"PAR1":
            raise ConfigError(
                f"{path}: not a Parquet or CSV file (starts with {start.hex(' ') or 'nothing'})"
            )
        return sources.parquet_part(path.name, str(path)), None, ()
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder or file; expected photos in class folders, Parquet or CSV")
    try:
        inside = sorted(each for each in path.iterdir() if not sources.hidden(each.name))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a folder to read") from None
    if parquet := [each for each in inside if each.suffix.lower() == ".parquet"]:
        return _parquet(path, parquet)
    folders = {each.name.lower(): each for each in inside if each.is_dir()}
    if "train" in folders:
        held_out = [name for name in HELD_OUT if name in folders]
        others = sorted(folders.keys() - {"train", *HELD_OUT})
        if not held_out or others:
            found = others[0] if others else "train alone"
            raise ConfigError(
                f"{path}: has the folder {printable(found)}; expected train and test, or one folder a class"
            )
        notes = [f"{name} is not used" for name in held_out[1:]]
        train, test = (
            sources.folder_part(name, str(folders[name]), recipe, suffixes, images)
            for name in ("train", held_out[0])
        )
        held_out_notes = tuple(
            note for name in ("train", held_out[0]) for note in _left_out(folders[name], suffixes, images)
        )
        return train, test, (*notes, *held_out_notes)
    if (path / LABELS).is_file() and not folders:
        return _csv(path / LABELS, recipe), None, ()
    if not folders:
        raise ConfigError(f"{path}: has no class folders, Parquet files or {LABELS}")
    if (inner := _only_folder(inside, suffixes)) is not None:
        whole, held, said = find_parts(inner, recipe, suffixes, images)
        return whole, held, (f"read from its only folder, {printable(inner.name)}", *said)
    part = sources.folder_part(path.name, str(path), recipe, suffixes, images)
    return part, None, _left_out(path, suffixes, images)


def _only_folder(inside: list[Path], suffixes: tuple[str, ...]) -> Path | None:
    """The one folder that is there, if it has folders itself: an archive, unpacked one level too deep."""
    if len(inside) != 1 or not inside[0].is_dir():
        return None
    try:
        below = [each for each in inside[0].iterdir() if not sources.hidden(each.name)]
    except OSError:
        return None
    return inside[0] if any(each.is_dir() for each in below) and not _of(below, suffixes) else None


def _of(files: Iterable[Path], suffixes: tuple[str, ...]) -> list[Path]:
    return [each for each in files if suffix_of(each.name) in suffixes and not each.is_dir()]


def _left_out(root: Path, suffixes: tuple[str, ...], images: str) -> tuple[str, ...]:
    """What a user of class folders might not expect, a sentence each."""
    notes = []
    inside = [each for each in root.iterdir() if not sources.hidden(each.name)]
    if loose := _of(inside, suffixes):
        notes.append(f"{len(loose):,} {images} in {printable(root.name)} are in no class folder: left out")
    if (root / UNSORTED).is_dir():
        notes.append(f"{UNSORTED} is not a class: left out")
    nested = [
        printable(each.name)
        for each in sorted(inside)
        if each.is_dir() and any(one.is_dir() and not sources.hidden(one.name) for one in each.iterdir())
    ]
    if nested:
        shown = ", ".join(nested[:3]) + (", …" if len(nested) > 3 else "")
        notes.append(
            f"{images} in folders below {shown} count as {'that class' if len(nested) == 1 else 'these'}"
        )
    return tuple(notes)


def _parquet(path: Path, files: list[Path]) -> Parts:
    test = [each for each in files if each.name.lower().startswith(HELD_OUT[:1])]
    test = test or [each for each in files if each.name.lower().startswith(HELD_OUT)]
    unused = [each for each in files if each not in test and each.name.lower().startswith(HELD_OUT)]
    train = [each for each in files if each not in test and each not in unused]
    if not train:
        raise ConfigError(f"{path}: has no Parquet file to train on; expected such as train.parquet")
    notes = tuple(f"{each.name} is not used" for each in unused)
    part = sources.parquet_part("train", [str(each) for each in train])
    return part, sources.parquet_part("test", [str(each) for each in test]) if test else None, notes


def _csv(path: Path, recipe: FolderRecipe) -> sources.Part:
    rows = [(path.parent / name, label) for name, label in read_labels(path)]
    return sources.listed_part(path.name, rows, recipe)
