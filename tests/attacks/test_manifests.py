"""Generated manifests: whatever they hold, the bundle loads or is refused with one line."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.bundle.document import parse_manifest
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, MANIFEST, TAIL
from offramp.common.errors import BundleError
from tests.toy import BundleFolder

Path_ = tuple[str | int, ...]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, -1, 1 << 31, 1 << 63, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "../x", "/etc/passwd", "a/b", "\0", "\x1b[2J", "\n", "raw", "huffman", "channel"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)


@pytest.fixture(scope="module")
def shared_folder(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    """One copy whose manifest each example replaces."""
    path = tmp_path_factory.mktemp("manifests") / "bundle"
    shutil.copytree(toy_bundle.path, path)
    return BundleFolder(path)


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where each value of a JSON document is."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


def mutate(data: st.DataObject, document: Any) -> Any:
    """A copy with one value replaced, removed, moved, or one field added."""
    document = {"root": copy.deepcopy(document)}
    path: list[str | int]
    last: str | int
    *path, last = ("root", *data.draw(st.sampled_from(list(places(document["root"])))))
    parent: Any = document
    for key in path:
        parent = parent[key]
    match data.draw(st.sampled_from(["replace", "remove", "add", "copy"])):
        case "replace":
            parent[last] = data.draw(values)
        case "remove" if path:
            del parent[last]
        case "add" if isinstance(parent[last], dict):
            parent[last][data.draw(st.text(max_size=9))] = data.draw(values)
        case "copy":
            source: Any = document
            for key in ("root", *data.draw(st.sampled_from(list(places(document["root"]))))):
                source = source[key]
            parent[last] = copy.deepcopy(source)
    return document["root"]


def assert_loads_or_is_refused(folder: BundleFolder) -> None:
    try:
        load_bundle(folder.path)
    except BundleError as error:
        message = str(error)
    else:
        return
    assert message.startswith(f"{folder.path}: ")
    assert message.isprintable()
    assert len(message) < 1000


@given(data=st.data(), count=st.integers(1, 4))
def test_mutated_manifests(
    data: st.DataObject, count: int, shared_folder: BundleFolder, toy_bundle: Bundle
) -> None:
    document = json.loads((toy_bundle.path / MANIFEST).read_bytes())
    for _ in range(count):
        document = mutate(data, document)
    shared_folder.write_manifest(json.dumps(document).encode())

    assert_loads_or_is_refused(shared_folder)


@given(edits=st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=4)), min_size=1, max_size=4))
def test_damaged_manifests(
    edits: list[tuple[int, bytes]], shared_folder: BundleFolder, toy_bundle: Bundle
) -> None:
    text = (toy_bundle.path / MANIFEST).read_bytes()
    for place, insert in edits:
        text = text[:place] + insert + text[place + 1 :]
    shared_folder.write_manifest(text)

    assert_loads_or_is_refused(shared_folder)


@given(st.binary(max_size=100) | values.map(json.dumps).map(str.encode))
def test_arbitrary_documents_are_refused(text: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        parse_manifest(text)
    assert str(caught.value).isprintable()


@given(name=st.text(min_size=1, max_size=30).filter(lambda name: name not in (HEAD, TAIL, CODEBOOK)))
def test_no_file_name_leads_out_of_the_folder(
    name: str, shared_folder: BundleFolder, toy_bundle: Bundle
) -> None:
    document = json.loads((toy_bundle.path / MANIFEST).read_bytes())
    document["files"][name] = document["files"]["tail.onnx"]
    shared_folder.write_manifest(document)

    with pytest.raises(BundleError, match=r"manifest\.json: files"):
        load_bundle(shared_folder.path)


def test_the_good_bundle_still_loads(toy_bundle: Bundle) -> None:
    assert load_bundle(Path(toy_bundle.path)).digest == toy_bundle.digest
