"""A CSV file of inputs and their classes: columns ``file`` and ``label``, others are passed over."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from offramp.common.errors import DataError, printable
from offramp.common.files import read_bounded

LABELS = "labels.csv"
UNSORTED = "_unsorted"
"""A folder beside class folders whose files a person has yet to sort (``offramp samples``)."""
TABLE_BYTES = 1 << 28


def read_labels(path: Path) -> list[tuple[str, str]]:
    """Every row's file, relative to the table's folder, and label, in the table's order.

    Raises ConfigError for a file that cannot be read, DataError for one that is not such a table.
    """
    text = read_bounded(path, TABLE_BYTES, expected="a CSV file with the columns file and label")
    try:
        table = csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline=""))
        names = table.fieldnames or []
        if not {"file", "label"} <= set(names):
            found = ", ".join(printable(name, 40) for name in names[:8]) or "nothing"
            raise DataError(f"{path}: its first line has {found}; expected the columns file and label")
        rows = [(row["file"], row["label"]) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {printable(str(error))}") from None
    for number, (name, label) in enumerate(rows, 2):
        if not name or not label:
            raise DataError(f"{path}: line {number}: expected a file and a label")
    return rows
