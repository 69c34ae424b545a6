"""One sample's record: JSON beside its file. Written here, and read as input from a stranger's disk.

    000000000041-audit.jpg     the input
    000000000041-audit.json    what was decided of it

The number orders samples, no clock does; the reason in the name is the one that the sample counts against.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.common.errors import DataError, printable
from offramp.common.files import read_bounded
from offramp.device.result import Source
from offramp.device.samples.choice import REASONS

SUFFIXES = ("png", "jpg", "webp", "bmp", "gif", "tif", "heic", "avif", "wav", "npy")
"""Of files that are kept."""
RECORD_BYTES = 1 << 16
"""More than the longest record takes, each character in twelve bytes."""
NAME_CHARACTERS = 4096
LABEL_CHARACTERS = 200
"""As a manifest has them."""
NUMBERS = 9 * 10**11
"""Larger ones are not a device's: they would leave none for the next sample."""
STEM = re.compile(rf"([0-9]{{12}})-({'|'.join(REASONS)})")
"""A sample's name without its suffix."""

Probability = Annotated[float, Field(ge=0, le=1)]
Label = Annotated[str, Field(max_length=LABEL_CHARACTERS)]
Index = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Checked(BaseModel):
    # Other fields are of a later release.
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


class Decision(_Checked):
    """What one exit says."""

    label: Label
    class_index: Annotated[int, Field(ge=0, lt=65_536)]
    confidence: Probability


class Record(_Checked):
    """What is known of one sample."""

    format: Literal[1] = 1
    file: Annotated[str, Field(max_length=64)]
    """Its input, beside the record."""
    size: Annotated[int, Field(ge=1, lt=1 << 40)]
    """Bytes of that file."""
    name: Annotated[str, Field(max_length=NAME_CHARACTERS)]
    """As the input was handed in."""
    index: Index
    time: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
    """Of the answer, by the device's clock."""
    reasons: Annotated[
        list[Literal["random", "audit", "unknown", "unsure"]], Field(min_length=1, max_length=4)
    ]
    label: Label
    class_index: Annotated[int, Field(ge=0, lt=65_536)]
    confidence: Probability
    source: Source
    """Who decided."""
    unknown: bool
    early: Decision
    """The early exit's."""
    audit: Decision | None = None
    """The server's, where the input was audited and answered."""
    bundle: Annotated[str, Field(max_length=256)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def text(self) -> bytes:
        """As it is stored."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1).encode() + b"\n"


def now() -> str:
    """The time of a record: the wall clock's, for whoever reads it; nothing is decided by it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time()))


def plain(text: str, most: int = NAME_CHARACTERS) -> str:
    """A name that may hold bytes that are not text, as text of at most so many characters."""
    return text[:most].encode("utf-8", "backslashreplace").decode()[:most]


def read_record(path: Path) -> Record:
    """A record from a disk. Raises DataError naming the file; its sample's file lies beside it."""
    data = read_bounded(path, RECORD_BYTES, follow=False, error=DataError)
    shown = printable(str(path))
    try:
        found = Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{shown}: is not a sample's record: {where and where + ': '}{first['msg']}"
        ) from None
    stem, _, suffix = found.file.rpartition(".")
    if stem != path.stem or suffix not in SUFFIXES:
        expected = f"{path.stem}.{SUFFIXES[0]} or another of its kinds"
        raise DataError(f"{shown}: names the file {printable(found.file)!r}, expected {expected}")
    return found


def read_file(record: Record, folder: Path) -> bytes:
    """A sample's file. Raises DataError for one that is not what its record says."""
    path = folder / record.file
    data = read_bounded(path, record.size, follow=False, error=DataError)
    if len(data) != record.size:
        raise DataError(f"{printable(str(path))}: has {len(data):,} bytes, its record says {record.size:,}")
    return data
