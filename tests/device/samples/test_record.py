"""Records: what is written is read; what a stranger wrote is one error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offramp.common.errors import DataError
from offramp.device.samples.record import (
    RECORD_BYTES,
    Decision,
    Record,
    now,
    plain,
    read_file,
    read_record,
)

STEM = "000000000041-audit"


def record(**changed: Any) -> Record:
    given: dict[str, Any] = {
        "file": f"{STEM}.jpg",
        "size": 4,
        "name": "photos/1.jpg",
        "index": 7,
        "time": now(),
        "reasons": ["audit"],
        "label": "glass",
        "class_index": 1,
        "confidence": 0.9,
        "source": "early_exit",
        "unknown": False,
        "early": Decision(label="glass", class_index=1, confidence=0.9),
        "audit": Decision(label="metal", class_index=2, confidence=0.6),
        "bundle": "toy",
        "digest": "0f" * 32,
    }
    return Record(**given | changed)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / f"{STEM}.json"
    name = plain("bad \udcff name\n" + "x" * 5000)
    path.write_bytes(record(name=name).text())
    (tmp_path / f"{STEM}.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    found = read_record(path)
    assert found == record(name=name, time=found.time) and len(name) == 4096
    assert read_file(found, tmp_path) == b"\xff\xd8\xff\xd9"
    # A later release's field.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))
    assert read_record(path) == found


HOSTILE: dict[str, dict[str, Any] | bytes] = {
    "not JSON": b"\x00\xff",
    "half": record().text()[:100],
    "empty": b"",
    "nested": b"[" * 10_000,
    "a list": b"[]",
    "long": b" " * (RECORD_BYTES + 1),
    "another folder": {"file": "../../etc/passwd"},
    "an absolute path": {"file": "/etc/passwd"},
    "another sample": {"file": "000000000040-audit.jpg"},
    "its own record": {"file": f"{STEM}.json"},
    "no suffix": {"file": STEM},
    "a later format": {"format": 2},
    "a confidence": {"confidence": 1.5},
    "NaN": b'{"confidence": NaN}',
    "a type": {"unknown": 1},
    "a size": {"size": 1 << 50},
    "a negative size": {"size": -1},
    "a time": {"time": "yesterday\n"},
    "a reason": {"reasons": ["because"]},
    "no reason": {"reasons": []},
    "a source": {"source": "oracle"},
    "a digest": {"digest": "0f"},
    "a label": {"label": "x" * 5000},
    "a class": {"class_index": 70_000},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_stranger_s_record_is_one_error(tmp_path: Path, kind: str) -> None:
    path, given = tmp_path / f"{STEM}.json", HOSTILE[kind]
    if isinstance(given, dict):
        given = json.dumps(json.loads(record().text()) | given).encode()
    path.write_bytes(given)
    with pytest.raises(DataError) as error:
        read_record(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_the_longest_record_is_read(tmp_path: Path) -> None:
    label = "\U0001f600" * 200
    longest = Decision(label=label, class_index=65_535, confidence=1 / 3)
    name = plain("\U0001f600" * 5000)
    path = tmp_path / f"{STEM}.json"
    path.write_bytes(record(name=name, label=label, early=longest, audit=longest, bundle="b" * 100).text())
    assert path.stat().st_size < RECORD_BYTES
    assert read_record(path).name == name


def test_links_and_files_of_another_size_are_not_read(tmp_path: Path) -> None:
    path, file = tmp_path / f"{STEM}.json", tmp_path / f"{STEM}.jpg"
    path.write_bytes(record().text())
    found = read_record(path)
    (tmp_path / "secret").write_bytes(b"abcd")
    file.symlink_to("secret")
    with pytest.raises(DataError, match=r"audit\.jpg: is a symbolic link"):
        read_file(found, tmp_path)
    for data in (b"abc", b"abcde"):
        file.unlink()
        file.write_bytes(data)
        with pytest.raises(DataError, match=r"audit\.jpg: "):
            read_file(found, tmp_path)
    path.rename(tmp_path / "real.json")
    path.symlink_to("real.json")
    with pytest.raises(DataError, match=r"audit\.json: is a symbolic link"):
        read_record(path)
