"""Spoken digits for ``runs/spoken-digits.sh``: a small classifier, and WAV folders out of Parquet files."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from torch import nn

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _unit(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _unit(width, width, 1), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.end = nn.ReLU()

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.end(x + self.body(x))


def model() -> nn.Module:
    """A residual network for log-mel spectrograms, float32 [N, 1, mels, frames] → logits [N, 10]; 7 MMAC."""
    layers: list[nn.Module] = [_unit(1, 16, 2)]
    for c_in, c_out in ((16, 32), (32, 64)):
        layers += [_unit(c_in, c_out, 2), _Residual(c_out)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))


def unpack(source: Path, target: Path) -> None:
    """``train.parquet`` and ``test.parquet`` as class folders of WAV files; the test part also in one folder
    with ``labels.csv``."""
    import pyarrow.parquet as parquet

    flat = target / "device"
    flat.mkdir(parents=True, exist_ok=True)
    labels = []
    for part in ("train", "test"):
        for row in parquet.read_table(source / f"{part}.parquet").to_pylist():
            name, label = Path(row["audio"]["path"]).name, NAMES[row["label"]]
            folder = target / "classes" / part / label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(row["audio"]["bytes"])
            if part == "test":
                (flat / name).write_bytes(row["audio"]["bytes"])
                labels.append((name, label))
    with (flat / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "label"), *sorted(labels)])


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
