"""Where labelled images come from: a data recipe in, a `Source` with every image decoded out.

    sklearn-digits   scikit-learn's handwritten digits, which need no download
    hub              a data set of the Hugging Face hub, such as uoft-cs/cifar10
    parquet          local Parquet files of the hub's schema: a picture column (struct of bytes and path) and
                     a label column (integers, or class labels with names)
    imagefolder      a folder with one sub-folder a class, with its pictures at any depth

Whatever cannot be used is a `DataError` that names the part, the row or file, and what was expected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp.common.errors import ConfigError, DataError, printable
from offramp.common.files import read_bounded
from offramp.common.inputs.folder import find, kinds_of
from offramp.common.inputs.headers import EXTENSIONS
from offramp.common.inputs.labels import UNSORTED
from offramp.common.inputs.pictures import FILE_BYTES, decode
from offramp.common.inputs.spec import Preprocessing
from offramp.training.data.datasets import Dataset, Labelled, Source, split
from offramp.training.data.recipe import (
    DataRecipe,
    DigitsRecipe,
    FolderRecipe,
    HubRecipe,
    ParquetRecipe,
    PicturesRecipe,
)

if TYPE_CHECKING:
    import datasets

NAMED = 20
"""Pictures that cannot be used are named in an error up to this number."""


def load(
    recipe: DataRecipe,
    *,
    seed: int,
    progress: Callable[[], object] = lambda: None,
    skipped: Callable[[str], object] | None = None,
) -> Dataset:
    """Read and split what a recipe's ``[data]`` names.

    Args:
        recipe: the ``[data]`` table.
        seed: decides which images validate.
        progress: called for each picture that was decoded.
        skipped: called with one line for each picture that cannot be used, which is then left out; None: all
            such pictures together are one error.

    Raises:
        ConfigError: a file, folder or name that does not exist.
        DataError: pictures or labels that cannot be used.
    """
    if isinstance(recipe, DigitsRecipe):
        return split(_digits(), validation=recipe.validation, test=recipe.test, seed=seed)
    with tempfile.TemporaryDirectory(prefix="offramp-data-") as cache:
        if isinstance(recipe, HubRecipe):
            train, test = _hub(recipe)
        elif isinstance(recipe, ParquetRecipe):
            train, test = parquet_part("train", recipe.train, cache), parquet_part("test", recipe.test, cache)
        else:
            train, test = (
                folder_part(name, path, recipe)
                for name, path in (("train", recipe.train), ("test", recipe.test))
            )
        source = read(recipe, train, test, progress=progress, skipped=skipped)
    return split(source, validation=recipe.validation, seed=seed)


@dataclass(frozen=True)
class Part:
    """One part of a source before its pictures are decoded."""

    name: str
    rows: datasets.Dataset


@dataclass(frozen=True)
class File:
    """A file's bytes; name: in messages; path: where it lies, None where it has no place of its own."""

    name: str
    data: bytes
    path: Path | None


@dataclass(frozen=True)
class Reader:
    """How a file becomes an input.

    shape: of each, without the batch; decode: a file to uint8 [*shape], raises DataError.
    images, pictures: what they are called in messages.
    """

    shape: tuple[int, ...]
    decode: Callable[[File], NDArray[np.uint8]]
    images: str = "images"
    pictures: str = "pictures"


def picture_reader(size: int) -> Reader:
    """Pictures of so many pixels a side, RGB, decoded as the device does."""
    spec = Preprocessing(color="RGB", height=size, width=size, resize="bilinear")
    return Reader((3, size, size), lambda file: decode(file.name, file.data, spec))


def read(
    recipe: PicturesRecipe,
    train: Part,
    test: Part | None,
    *,
    progress: Callable[[], object],
    skipped: Callable[[str], object] | None,
    reader: Reader | None = None,
) -> Source:
    """Decode and check the parts of a source; test is None where it keeps none apart. Raises as `load`.

    reader: of its files; None: pictures of the recipe's size.
    """
    reader = reader or picture_reader(recipe.size)
    parts = [train] if test is None else [train, test]
    found = [labels_in(part, recipe.label, recipe.classes, reader) for part in parts]
    labels_of, names_of = [labels for labels, _ in found], [names for _, names in found]
    classes = names_of[0] or tuple(str(label) for label in range(int(labels_of[0].max()) + 1))
    if names_of[-1] and names_of[-1] != classes:
        raise DataError(f"test has the classes {_shown(names_of[-1])}, train has {_shown(classes)}")
    if len(classes) < 2:
        raise DataError(f"{train.name} has the one class {_shown(classes)}, expected two at least")
    for part, labels in zip(parts, labels_of, strict=True):
        bad = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(bad):
            raise DataError(
                f"{part.name}: row {bad[0]} has the label {labels[bad[0]]}, expected 0 … {len(classes) - 1}"
            )
        _require_all(part, labels, classes, reader)
    # All parts are read before any bad picture is an error: all of them are named at once.
    pixels = [_pixels(part, recipe.image, reader, progress) for part in parts]
    unusable = [message for one in pixels for message in one.unusable.values()]
    if unusable and skipped is None:
        raise DataError(_unusable(unusable, reader.pictures))
    for message in unusable:
        assert skipped is not None
        skipped(message)
    labelled = []
    for part, labels, one in zip(parts, labels_of, pixels, strict=True):
        good = np.setdiff1d(np.arange(len(labels)), list(one.unusable))
        _require_all(part, labels[good], classes, reader)
        labelled.append(
            Labelled(one.pixels[good], labels[good]) if one.unusable else Labelled(one.pixels, labels)
        )
    return Source(recipe.title, classes, *labelled)


def _require_all(part: Part, labels: NDArray[np.int64], classes: Sequence[str], reader: Reader) -> None:
    for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
        if not count:
            raise DataError(f"{part.name}: class {printable(name)!r} has no {reader.images}")


def _unusable(messages: Sequence[str], pictures: str) -> str:
    """One line for all pictures that cannot be used."""
    if len(messages) == 1:
        return messages[0]
    more = f"; and {len(messages) - NAMED} more" if len(messages) > NAMED else ""
    named = "; ".join(messages[:NAMED])
    return f"{len(messages)} {pictures} cannot be used (--skip-bad leaves them out): {named}{more}"


def labels_in(
    part: Part, column: str, given: Sequence[str], reader: Reader
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels, int64 [N], and class names, which may be none."""
    import datasets

    if not len(part.rows):
        raise DataError(f"{part.name}: has no {reader.images}")
    feature = _feature(part, column, "label")
    names = tuple(given)
    if isinstance(feature, datasets.ClassLabel):
        names = names or tuple(feature.names)
    elif not (isinstance(feature, datasets.Value) and "int" in feature.dtype):
        kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        raise DataError(
            f"{part.name}: label column {column!r} holds {printable(str(kind))}, expected integers 0 … K-1"
        )
    values = list(part.rows[column])
    if None in values:
        raise DataError(f"{part.name}: row {values.index(None)} has no label")
    return np.array(values, np.int64), names


def _feature(part: Part, column: str, what: str) -> Any:
    features = part.rows.features
    if column not in features:
        raise DataError(
            f"{part.name}: has no {what} column {column!r}, expected one of {_shown(list(features))}"
        )
    return features[column]


@dataclass(frozen=True)
class _Read:
    """A part's pictures."""

    pixels: NDArray[np.uint8]
    """uint8 [N, *shape]; anything where a picture cannot be used."""
    unusable: dict[int, str]
    """By row: why its picture cannot be used."""


def file_rows(part: Part, column: str) -> datasets.Dataset:
    """A part's rows with the files in a column as they are, structs of bytes and path."""
    import datasets

    feature = _feature(part, column, "picture")
    rows = part.rows
    if isinstance(feature, datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    elif isinstance(feature, datasets.Audio):
        rows = rows.cast_column(column, datasets.Audio(decode=False))
    elif not (isinstance(feature, dict) and {"bytes", "path"} <= set(feature)):
        raise DataError(
            f"{part.name}: picture column {column!r} is {printable(str(feature), 80)}, "
            "expected a struct of bytes and path"
        )
    return rows


def _pixels(part: Part, column: str, reader: Reader, progress: Callable[[], object]) -> _Read:
    """Every file of a part, decoded."""
    rows = file_rows(part, column)
    pixels = np.empty((len(rows), *reader.shape), np.uint8)
    unusable: dict[int, str] = {}
    for number, cell in enumerate(rows[column]):
        try:
            pixels[number] = reader.decode(file_of(cell, f"{part.name}: row {number}"))
        except DataError as error:
            unusable[number] = str(error)
        progress()
    return _Read(pixels, unusable)


def file_of(cell: dict[str, Any] | None, where: str) -> File:
    """A cell's file. Raises DataError for one that cannot be read."""
    cell = cell or {}
    data, path = cell.get("bytes"), cell.get("path")
    if path:
        where = f"{where} ({printable(Path(path).name)})"
    place = None if data is not None or path is None else Path(path)
    if data is None:
        if path is None:
            raise DataError(f"{where} has neither bytes nor a path, expected a picture")
        data = read_bounded(path, FILE_BYTES, name=where, error=DataError, expected="a picture's file")
    return File(where, data, place)


def _hub(recipe: HubRecipe) -> tuple[Part, Part]:
    datasets = _library()
    try:
        parts = datasets.load_dataset(recipe.name, recipe.config, revision=recipe.revision)
    except Exception as error:  # offline, no such name, no right to read it
        raise ConfigError(f"cannot load {recipe.name} from the hub: {_first_line(error)}") from None
    for name in (recipe.train, recipe.test):
        if name not in parts:
            raise ConfigError(f"{recipe.name} has no part {name!r}, expected one of {_shown(list(parts))}")
    return Part("train", parts[recipe.train]), Part("test", parts[recipe.test])


def parquet_part(name: str, files: str | Sequence[str], cache: str | None = None) -> Part:
    """Rows of Parquet files; their copy for mapping lies in ``cache``, None: they are read into memory."""
    paths = [files] if isinstance(files, str) else list(files)
    for path in paths:
        if not Path(path).is_file():
            raise ConfigError(f"{name}: {path} is no file")
    datasets = _library()
    try:
        if cache is None:
            with tempfile.TemporaryDirectory(prefix="offramp-data-") as folder:
                kept = datasets.Dataset.from_parquet(paths, cache_dir=folder, keep_in_memory=True)
            return Part(name, kept)
        return Part(name, datasets.Dataset.from_parquet(paths, cache_dir=cache))
    except Exception as error:  # Arrow's errors and the library's own have no common base
        cause = error.__cause__ or error
        raise DataError(f"{name}: {', '.join(paths)} is no Parquet file: {_first_line(cause)}") from None


def folder_part(
    name: str,
    folder: str,
    recipe: FolderRecipe,
    suffixes: tuple[str, ...] = EXTENSIONS,
    images: str = "images",
) -> Part:
    """Files by class: each sub-folder of ``folder`` is a class, its pictures at any depth below it.

    Classes are in the recipe's order, where it names them; else in the order of their names.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{name}: {folder} is no folder")
    try:
        classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not hidden(path.name))
        if not classes:
            raise DataError(f"{name}: {folder} has no sub-folders, expected one a class")
        if recipe.classes and sorted(recipe.classes) != classes:
            raise DataError(
                f"{name}: {folder} has the folders {_shown(classes)}, expected the recipe's classes "
                f"{_shown(sorted(recipe.classes))}"
            )
        classes = recipe.classes or classes
        files = [_files_of(name, root / one, suffixes, images) for one in classes]
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}, expected a folder to read") from None
    rows = [(path, label) for paths, label in zip(files, classes, strict=True) for path in paths]
    return listed_part(name, rows, recipe, classes)


def listed_part(
    name: str, rows: Sequence[tuple[Path, str]], recipe: PicturesRecipe, classes: Sequence[str] = ()
) -> Part:
    """Picture files with the name of their class; classes: in their order, else the recipe's, else sorted."""
    found = sorted({label for _, label in rows})
    classes = list(classes or recipe.classes or found)
    if unknown := [label for label in found if label not in classes]:
        raise DataError(f"{name}: has the class {_shown(unknown[:1])}, expected one of {_shown(classes)}")
    datasets = _library()
    features = {
        recipe.image: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        recipe.label: datasets.ClassLabel(names=classes),
    }
    number = {label: at for at, label in enumerate(classes)}
    columns = {
        recipe.image: [{"bytes": None, "path": str(path)} for path, _ in rows],
        recipe.label: [number[label] for _, label in rows],
    }
    return Part(name, datasets.Dataset.from_dict(columns, features=datasets.Features(features)))


def _files_of(name: str, folder: Path, suffixes: tuple[str, ...], images: str) -> list[Path]:
    found = find(folder, suffixes)
    # What programs leave behind, as ._1.jpg or .thumbnails, is not a user's picture.
    files = [path for path in found.files if not any(map(hidden, path.relative_to(folder).parts))]
    for path, error in found.faults.items():
        raise DataError(f"{name}: {path} cannot be listed: {error.strerror}")
    if not files:
        passed = f" of a known format: {kinds_of(found.passed_over)}" if found.passed_over else ""
        raise DataError(f"{name}: class {printable(folder.name)!r} has no {images}{passed}")
    return files


def hidden(name: str) -> bool:
    """Whether a file or folder is what programs leave behind, or waits to be sorted."""
    # The second is what a Mac puts into archives.
    return name.startswith(".") or name in ("__MACOSX", UNSORTED)


def _library() -> Any:
    """The ``datasets`` package, silent. Imported late: it takes seconds, and the digits do not need it."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits: 8x8 with 17 grey levels, made 32x32 RGB."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.rint(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)
    grey = np.stack(
        [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BILINEAR)) for one in small]
    )
    images = np.repeat(grey[:, None], 3, axis=1)
    labels = np.asarray(digits.target, dtype=np.int64)
    return Source("sklearn-digits", tuple(str(digit) for digit in range(10)), Labelled(images, labels))


def _shown(names: Iterable[str]) -> str:
    return ", ".join(repr(printable(name)) for name in names)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0]) if lines else type(error).__name__
