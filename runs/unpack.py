"""A Parquet file of pictures as a folder of files and ``labels.csv``, for ``offramp demo`` and edge-device.

    python runs/unpack.py test.parquet OUT --classes a,b,c [--each 25]

The bytes of each picture stay as they are. ``--each``: so many of each class, from all over the file.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", required=True)
    parser.add_argument("--each", type=int)
    arguments = parser.parse_args()
    names = arguments.classes.split(",")
    found = parquet.read_table(arguments.source)
    column = "image" if "image" in found.column_names else "img"
    rows = found.to_pylist()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "label"])
        for label, name in enumerate(names):
            own = [row for row in rows if row["label"] == label]
            count = min(len(own), arguments.each or len(own))
            for number, at in enumerate(np.linspace(0, len(own) - 1, count).round().astype(int)):
                path = f"{name}-{number:03}.jpg"
                (arguments.out / path).write_bytes(own[at][column]["bytes"])
                table.writerow([path, name])


if __name__ == "__main__":
    main()
