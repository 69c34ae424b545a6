"""Hostile manifests of format version 2: each is refused with its one line; generated ones load or are."""

from __future__ import annotations

import copy
import json
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.bundle.document import MANIFEST_BYTES, parse_manifest
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import HEAD, MANIFEST, TAIL
from offramp.common.errors import BundleError
from offramp.common.part.engine import Engine
from tests import toy_tensor
from tests.attacks.test_manifests import mutate
from tests.toy import BundleFolder
from tests.toy_tensor import ARRAYS, TRANSFORM, WAV

Edit = Callable[[dict[str, Any]], object]


def put(*keys: str | int, value: object) -> Edit:
    """An edit that sets one value."""

    def edit(document: dict[str, Any]) -> None:
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return edit


SOUND = ("input", "file")
ATTACKS: list[tuple[str, Edit, str]] = [
    ("input-of-no-kind", put("input", "kind", value="video"),
     r"input: Input tag 'video' found using 'kind'.*"),
    ("both-kinds", put("input", "color", value="RGB"),
     r"input\.tensor\.color: Extra inputs are not permitted"),
    ("tensor-of-rank-5", put("input", "shape", value=[1] * 5), r"input\.tensor\.shape: .* at most 4 items.*"),
    ("tensor-of-rank-0", put("input", "shape", value=[]), r"input\.tensor\.shape: .* at least 1 item.*"),
    ("tensor-of-281-gb", put("input", value={**ARRAYS, "shape": [1 << 24, 1 << 14]}),
     r"input\.tensor: .*has over 16777216 values"),
    ("tensor-of-objects", put("input", "dtype", value="object"), r"input\.tensor\.dtype: Input should be .*"),
    ("range-of-nothing", put("input", value={**ARRAYS, "range": [1.0, 1.0]}),
     r"input\.tensor: .*range is 1 … 1.*"),
    ("range-that-overflows", put("input", value={**ARRAYS, "range": [-1e308, 1e308]}),
     r"input\.tensor\.range.*"),
    ("sound-of-a-year", put(*SOUND, "seconds", value=3e7), r"input\.tensor\.file\.wav\.seconds: .*"),
    ("sound-of-a-gigahertz", put(*SOUND, "rate", value=10**9), r"input\.tensor\.file\.wav\.rate: .*"),
    ("windows-of-gigabytes", put(*SOUND, value={**WAV, "rate": 48_000, "seconds": 20.0,
                                                "transform": {**TRANSFORM, "window": 8192, "hop": 1}}),
     r"input\.tensor\.file\.wav: .*windows of 8192 samples are over.*"),
    ("a-million-bands", put(*SOUND, "transform", "mels", value=10**6),
     r"input\.tensor\.file\.wav\.transform\.mels.*"),
    ("no-hop", put(*SOUND, "transform", "hop", value=0), r"input\.tensor\.file\.wav\.transform\.hop: .*"),
    ("bands-backwards", put(*SOUND, "transform", "fmin", value=4000.0),
     r"input\.tensor\.file\.wav: .*bands of.*"),
    ("another-shape-than-the-transform's", put("input", "shape", value=[1, 8, 80]),
     r"input\.tensor: .*the sound's transform makes \(1, 8, 8\)"),
    ("one-part", lambda d: (d["parts"].pop(), d["crossings"].pop()), r"parts: .*at least 2 items.*"),
    ("17-parts", lambda d: d.update(parts=d["parts"] * 9), r"parts: .*at most 16 items.*"),
    ("no-crossing", put("crossings", value=[]), r"crossings: .*at least 1 item.*"),
    ("a-crossing-too-many", lambda d: d["crossings"].append(d["crossings"][0]),
     r"the document: .*2 parts with 2 crossings, expected one between two"),
    ("one-file-for-both", put("parts", 1, "graph", value=HEAD),
     r"the document: .*expected each of them once"),
    ("a-part-without-a-file", put("parts", 1, "graph", value="other.onnx"),
     r"the document: .*files are.*expected.*"),
    ("a-part-is-the-manifest", lambda d: (put("parts", 1, "graph", value=MANIFEST)(d),
                                          d["files"].update({MANIFEST: d["files"].pop(TAIL)})),
     r"the document: .*files are.*"),
    ("a-graph-outside", lambda d: (put("parts", 1, "graph", value="../x.onnx")(d),
                                   d["files"].update({"../x.onnx": d["files"].pop(TAIL)})),
     r"files\.\.\./x\.onnx\.\[key\]: String should match pattern.*"),
    ("no-early-exit", put("parts", 0, "exit", value=None), r"the document: .*the first part has no exit.*"),
    ("an-exit-at-the-end", put("parts", 1, "exit", value={"threshold": 0.5, "temperature": 1.0}),
     r"the document: .*the last part has an exit.*"),
    ("no-cut", put("parts", 0, "cut", value=None), r"the document: .*has no cut.*"),
    ("cut-of-two-lines", put("parts", 0, "cut", "name", value="a\nb"),
     r"parts\.0\.cut\.name: String should match.*"),
    ("macs-below-0", put("parts", 0, "macs", value=-1), r"parts\.0\.macs: .*"),
    ("threshold-above-1", put("parts", 0, "exit", "threshold", value=1.5), r"parts\.0\.exit\.threshold: .*"),
    ("activation-of-rank-5", put("crossings", 0, "shape", value=[2] * 5),
     r"crossings\.0\.shape: .*at most 4 items.*"),
    ("activation-of-68-gb", put("crossings", 0, "shape", value=[4096] * 3),
     r"crossings\.0: .*has over 4194304 symbols"),
    ("channels-on-no-axis", put("crossings", 0, "channel_axis", value=3),
     r"crossings\.0: .*channel_axis is 3, the activation has 3 axes"),
    ("coded-without-tables", put("crossings", 0, "codec", value={"kind": "context"}),
     r"crossings\.0: .*tables: expected a file's name for every codec but raw"),
    ("raw-with-tables", put("crossings", 0, "tables", value="codebook.bin"),
     r"crossings\.0: .*tables: expected a file's name for every codec but raw"),
    ("tables-of-other-channels", put("crossings", 0, "codec",
                                     value={"kind": "rans", "lanes": 1, "table_of_channel": [0] * 5}),
     r"crossings\.0: .*table_of_channel has 5 entries, the activation 4 channels"),
    ("65537-classes", put("classes", value=["c"] * 65_537),
     r"classes: List should have at most 65536 items.*"),
    ("answers-by-vote", put("answers", value="vote"), r"answers: Input should be 'last' or 'all'"),
    ("gigabytes-of-files", lambda d: d["files"].update({TAIL: {"size": 1, "sha256": "0" * 64}}),
     r"tail\.onnx: is longer than 1 bytes, expected at most that"),
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    """A bundle whose manifest each test replaces."""
    path = tmp_path_factory.mktemp("version-2") / "bundle"
    toy_tensor.write(path)
    return BundleFolder(path)


@pytest.fixture(scope="module")
def document(good: BundleFolder) -> dict[str, Any]:
    """Its manifest, as JSON values."""
    return good.manifest


@pytest.mark.parametrize(("name", "edit", "expected"), ATTACKS, ids=[name for name, *_ in ATTACKS])
def test_is_refused_with_one_line(
    name: str, edit: Edit, expected: str, good: BundleFolder, document: dict[str, Any]
) -> None:
    damaged = copy.deepcopy(document)
    edit(damaged)
    good.write_manifest(damaged)

    with pytest.raises(BundleError) as caught:
        load_bundle(good.path)
    message = str(caught.value).removeprefix(f"{good.path}: ").removeprefix(f"{MANIFEST}: ")
    assert message.isprintable() and len(message) < 1000
    assert re.fullmatch(expected, message), message
    good.write_manifest(document)
    load_bundle(good.path)


@given(data=st.data(), count=st.integers(1, 4))
def test_mutated_ones_load_or_are_refused(
    data: st.DataObject, count: int, good: BundleFolder, document: dict[str, Any]
) -> None:
    damaged: Any = document
    for _ in range(count):
        damaged = mutate(data, damaged)
    good.write_manifest(json.dumps(damaged).encode())
    try:
        load_bundle(good.path)
    except BundleError as error:
        assert str(error).startswith(f"{good.path}: ") and str(error).isprintable() and len(str(error)) < 1000


def test_a_graph_that_takes_another_tensor_is_refused(good: BundleFolder, document: dict[str, Any]) -> None:
    damaged = copy.deepcopy(document)
    damaged["input"] = {**ARRAYS, "shape": [1, 8, 9]}
    good.write_manifest(damaged)
    with pytest.raises(BundleError, match=r"head\.onnx: its inputs are .*'tensor'"):
        Engine(load_bundle(good.path)).load_head()


WRONG = b'{"format_version": 2, "classes": [%s]}'
LARGE = [
    b'{"format_version": 2, %s}' % b",".join(b'"k%d":0' % n for n in range(20_000)),
    WRONG % b",".join([b"1"] * 100_000),
    WRONG % (b"[" * 400_000),
    b'{"format_version": 2, "name": "' + b'\\"' * 2_000_000,
    b"[" + b",".join([b"{}"] * 200_000) + b"]",
]


@pytest.mark.parametrize("text", LARGE, ids=["fields", "classes", "nested", "a string", "objects"])
def test_megabytes_of_what_is_wrong_take_bounded_memory(text: bytes) -> None:
    assert len(text) < MANIFEST_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            parse_manifest(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_too_many_values_are_said_so() -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: has over 524,288 names and values"):
        parse_manifest(LARGE[-1])
