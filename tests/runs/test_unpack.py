"""Pictures of a Parquet file as a folder that edge-device and ``offramp demo`` take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from offramp.common.inputs.labels import LABELS, read_labels

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("each", "expected"), [(None, 5), (2, 3)])
def test_pictures_keep_their_bytes_and_labels(tmp_path: Path, each: int | None, expected: int) -> None:
    pictures = [f"picture {number}".encode() for number in range(5)]
    rows = [
        {"image": {"bytes": data, "path": None}, "label": int(number == 4)}
        for number, data in enumerate(pictures)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    paths = [ROOT / "runs" / "unpack.py", tmp_path / "test.parquet", tmp_path / "out"]
    command = [sys.executable, *map(str, paths)]
    command += ["--classes", "a,b"] + ([] if each is None else ["--each", str(each)])
    subprocess.run(command, check=True)
    labels = read_labels(tmp_path / "out" / LABELS)
    assert len(labels) == expected and [label for _, label in labels][-1] == "b"
    written = [(tmp_path / "out" / name).read_bytes() for name, _ in labels]
    assert written == (pictures if each is None else [pictures[0], pictures[3], pictures[4]])
