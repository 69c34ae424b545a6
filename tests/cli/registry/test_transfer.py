"""Push and pull: what is verified, and that a place is either whole or not there."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from offramp.cli.registry import transfer
from offramp.cli.registry.artifact import Artifact, Blob, digest_of
from offramp.cli.registry.transfer import STAGING, pull, push, read_artifact
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.signature import SIGNATURE, TrustedKeys, generate_key
from offramp.common.errors import BundleError, OutputError
from offramp.server.loader import find_bundles
from tests.registries import files_of
from tests.toy import BundleFolder


class Memory:
    """A store that notes what is asked of it."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.tagged = b""
        self.asked: list[str] = []

    async def manifest(self, known: str | None = None) -> bytes | None:
        return None if digest_of(self.tagged) == known else self.tagged

    async def blob(self, blob: Blob) -> AsyncIterator[bytes]:
        data = self.blobs[blob.digest]
        self.asked.append(blob.digest)
        yield data[:3]
        yield data[3:]

    async def upload(self, blob: Blob, data: bytes) -> bool:
        new = blob.digest not in self.blobs
        self.blobs[blob.digest] = data
        return new

    async def tag(self, manifest: bytes) -> None:
        self.tagged = manifest


@pytest.fixture
def store(toy_bundle: Bundle) -> Memory:
    """With the toy bundle."""
    memory = Memory()
    asyncio.run(push(toy_bundle, memory))
    return memory


def artifact(store: Memory) -> Artifact:
    found = asyncio.run(read_artifact(store))
    assert found is not None
    return found


def test_the_second_tag_uploads_nothing(store: Memory, toy_bundle: Bundle) -> None:
    tagged = store.tagged
    again = asyncio.run(push(toy_bundle, store))
    assert (again.uploaded, again.digest) == (0, digest_of(tagged))
    assert asyncio.run(read_artifact(store, again.digest)) is None


def test_a_pulled_bundle_is_the_same_files_readable_by_others(
    store: Memory, toy_bundle: Bundle, tmp_path: Path
) -> None:
    place = tmp_path / "bundle"
    bundle = asyncio.run(pull(artifact(store), store, place))
    assert (bundle.digest, bundle.path) == (toy_bundle.digest, place)
    assert {each.name: each.read_bytes() for each in place.iterdir()} == files_of(toy_bundle)
    umask = os.umask(0)
    os.umask(umask)
    assert place.stat().st_mode & 0o777 == 0o777 & ~umask
    assert list(tmp_path.iterdir()) == [place]


def test_a_bundle_that_changes_while_it_is_pushed_is_not_pushed(damaged: BundleFolder) -> None:
    bundle, memory = load_bundle(damaged.path), Memory()
    (damaged.path / "tail.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="changed while"):
        asyncio.run(push(bundle, memory))
    assert (memory.blobs, memory.tagged) == ({}, b"")


def test_a_signature_goes_along_and_is_checked_before_the_graphs(
    damaged: BundleFolder, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    from offramp.cli.app import main

    for name in ("mine", "theirs"):
        generate_key(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    assert main(["sign", str(damaged.path), "--key", str(tmp_path / "mine.key")]) == 0
    memory = Memory()
    asyncio.run(push(load_bundle(damaged.path), memory))
    with pytest.raises(BundleError, match="no trusted key"):
        asyncio.run(pull(artifact(memory), memory, tmp_path / "a", TrustedKeys([tmp_path / "theirs.pub"])))
    assert len(memory.asked) == 2
    bundle = asyncio.run(pull(artifact(memory), memory, tmp_path / "a", TrustedKeys([tmp_path / "mine.pub"])))
    assert (bundle.path / SIGNATURE).exists()


def test_what_is_not_whole_yet_is_nobodys_bundle(tmp_path: Path, toy_bundle: Bundle) -> None:
    with transfer.staging(tmp_path) as folder:
        for name, data in files_of(toy_bundle).items():
            (folder / name).write_bytes(data)
        assert folder.parent.name.startswith(STAGING)
        assert find_bundles([str(tmp_path)]) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["occupied", "gone", "full"])
def test_a_place_that_cannot_be_had(
    store: Memory, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "folder" / "bundle"
    if what != "gone":
        place.parent.mkdir()
    if what == "occupied":
        place.mkdir()
        (place / "mine").write_text("")
    if what == "full":

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="expected a place"):
        asyncio.run(pull(artifact(store), store, place))
    assert [each.name for each in tmp_path.rglob("*")] in ([], ["folder"], ["folder", "bundle", "mine"])
