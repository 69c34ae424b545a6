"""A directory in the OCI image layout: tags, several of them, and files that a stranger put there."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from offramp.cli.registry.artifact import digest_of, make_artifact
from offramp.cli.registry.layout import INDEX_FILE, MARKER, Layout
from offramp.cli.registry.reference import parse_reference
from offramp.cli.registry.transfer import pull, push, read_artifact
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import BundleError, OfframpError, OutputError, PeerError

MANIFEST = make_artifact("toy", {"manifest.json": b"{}"})


def layout(folder: Path, version: str = ":stable") -> Layout:
    """The store of a tag in this directory."""
    return Layout(parse_reference(f"oci-layout:{folder}{version}"))


@pytest.fixture
def pushed(tmp_path: Path, toy_bundle: Bundle) -> Path:
    """A layout with the toy bundle."""
    asyncio.run(push(toy_bundle, layout(tmp_path / "layout")))
    return tmp_path / "layout"


def take(folder: Path, place: Path, version: str = ":stable") -> Bundle:
    """Pull what is there."""

    async def run() -> Bundle:
        store = layout(folder, version)
        artifact = await read_artifact(store)
        assert artifact is not None
        return await pull(artifact, store, place)

    return asyncio.run(run())


def test_what_is_pushed_is_pulled_by_tag_and_digest(pushed: Path, toy_bundle: Bundle, tmp_path: Path) -> None:
    assert json.loads((pushed / MARKER).read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert take(pushed, tmp_path / "a").digest == toy_bundle.digest
    (descriptor,) = json.loads((pushed / INDEX_FILE).read_text())["manifests"]
    assert take(pushed, tmp_path / "b", f"@{descriptor['digest']}").digest == toy_bundle.digest
    assert load_bundle(tmp_path / "b").digest == toy_bundle.digest


def test_a_tag_moves_and_others_stay(pushed: Path) -> None:
    before = asyncio.run(layout(pushed).manifest())
    asyncio.run(layout(pushed, ":other").tag(MANIFEST))
    asyncio.run(layout(pushed, ":stable").tag(MANIFEST))
    asyncio.run(layout(pushed, ":old").tag(before or b""))
    tags = [each["annotations"] for each in json.loads((pushed / INDEX_FILE).read_text())["manifests"]]
    assert len(tags) == 3
    assert asyncio.run(layout(pushed).manifest()) == MANIFEST
    assert asyncio.run(layout(pushed).manifest(digest_of(MANIFEST))) is None
    assert asyncio.run(layout(pushed, ":old").manifest()) == before


def link(path: Path) -> None:
    """A link in its place."""
    path.unlink()
    path.symlink_to("/etc/passwd")


def pipe(path: Path) -> None:
    """A pipe that nobody writes to in its place."""
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], type[OfframpError]]] = {
    "no index": (lambda path: (path / INDEX_FILE).unlink(), BundleError),
    "not JSON": (lambda path: (path / INDEX_FILE).write_text("[" * 100_000), PeerError),
    "no manifests": (lambda path: (path / INDEX_FILE).write_text("{}"), PeerError),
    "odd manifests": (lambda path: (path / INDEX_FILE).write_text('{"manifests": [7, {}]}'), BundleError),
    "a path for a digest": (
        lambda path: (path / INDEX_FILE).write_text(
            (path / INDEX_FILE).read_text().replace('"sha256:', '"../../sha256:')
        ),
        PeerError,
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_one_error(pushed: Path, damage: str, tmp_path: Path) -> None:
    change, error = DAMAGE[damage]
    change(pushed)
    with pytest.raises(error):
        take(pushed, tmp_path / "a")


@pytest.mark.parametrize("change", [link, pipe, lambda path: path.write_bytes(b"x")])
def test_a_blob_that_is_no_longer_itself_is_refused(
    pushed: Path, change: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    for path in (pushed / "blobs" / "sha256").iterdir():
        change(path)
    with pytest.raises((BundleError, PeerError)):
        take(pushed, tmp_path / "here" / "a")
    assert list((tmp_path / "here").iterdir()) == []


def test_no_place_for_one_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected a place"):
        asyncio.run(layout(tmp_path / "file").tag(MANIFEST))
