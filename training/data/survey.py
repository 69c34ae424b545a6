"""What is in a folder of photos, before anything is made of it: classes, sizes, and what is wrong."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from offramp.common.errors import DataError
from offramp.training.data import sources
from offramp.training.data.photos import Columns, find_parts, folder_recipe

_SMALL = 8
"""Pixels a side that photos are decoded to: only whether they can be is of interest."""


@dataclass(frozen=True)
class Survey:
    """What was found.

    parts: train, and test where it is kept apart; counts: of each class in each of them.
    sides: the least, median and largest shorter side of a photo, pixels.
    problems: photos that cannot be used, a line each.
    twins: photos whose file is there more than once; leaked: those of them that are in both parts.
    notes: how it was read, a sentence each.
    """

    parts: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    sides: tuple[int, int, int]
    problems: tuple[str, ...]
    twins: int
    leaked: int
    notes: tuple[str, ...]

    @property
    def photos(self) -> int:
        """All that can be used."""
        return sum(map(sum, self.counts.values()))


def survey(
    path: Path,
    columns: Columns = Columns(),  # noqa: B008 - of plain values
    *,
    counted: Callable[[int], Callable[[], object]] = lambda _: lambda: None,
) -> Survey:
    """Decode every photo and count. Raises as `read_photos`, but not for photos that cannot be used.

    Args:
        path: a folder, a Parquet file or a CSV file.
        columns: of Parquet files.
        counted: called with the number of photos; what it returns is called for each that was decoded.
    """
    recipe, reader = folder_recipe(path, columns, _SMALL), sources.picture_reader(_SMALL)
    train, test, notes = find_parts(path, recipe)
    parts = [train] if test is None else [train, test]
    labelled = [sources.labels_in(part, recipe.label, recipe.classes, reader) for part in parts]
    names = labelled[0][1] or tuple(str(number) for number in range(int(labelled[0][0].max()) + 1))
    tick = counted(sum(len(part.rows) for part in parts))
    counts = np.zeros((len(names), len(parts)), np.int64)
    sides: list[int] = []
    problems: list[str] = []
    seen: dict[bytes, set[int]] = {}
    twins = 0
    for at, (part, (labels, _)) in enumerate(zip(parts, labelled, strict=True)):
        for row, cell in enumerate(sources.file_rows(part, recipe.image)[recipe.image]):
            try:
                file = sources.file_of(cell, f"{part.name}: row {row}")
                reader.decode(file)
            except DataError as error:
                problems.append(str(error))
            else:
                sides.append(_shorter(file.data))
                twins += (digest := hashlib.sha256(file.data).digest()) in seen
                seen.setdefault(digest, set()).add(at)
                if 0 <= labels[row] < len(names):
                    counts[labels[row], at] += 1
            tick()
    if not sides:
        raise DataError(f"{path}: has no photo that can be used: {problems[0]}")
    return Survey(
        parts=tuple("train" if number == 0 else "test" for number in range(len(parts))),
        counts={name: tuple(row) for name, row in zip(names, counts.tolist(), strict=True)},
        sides=(min(sides), int(np.median(sides)), max(sides)),
        problems=tuple(problems),
        twins=twins,
        leaked=sum(len(where) > 1 for where in seen.values()),
        notes=notes,
    )


def _shorter(data: bytes) -> int:
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:
        return int(min(picture.size))
