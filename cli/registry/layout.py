"""A directory in the OCI image layout, as ``oras --oci-layout`` and ``skopeo`` read and write it.

Whoever wrote it may be hostile: only plain files are read, and no more of them than a digest's size.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offramp.cli.registry.artifact import ARTIFACT, ARTIFACT_BYTES, IMAGE, Blob, digest_of
from offramp.cli.registry.reference import DIGEST, Reference
from offramp.common.errors import BundleError, OutputError, PeerError
from offramp.common.files import read_bounded, replace_file

MARKER, INDEX_FILE = "oci-layout", "index.json"
TAG = "org.opencontainers.image.ref.name"
INDEX_BYTES = 1 << 20
LAYOUT_VERSION = "1.0.0"


class Layout:
    """A ``Store`` in a directory."""

    def __init__(self, reference: Reference) -> None:
        assert reference.directory is not None
        self._reference = reference
        self._root = reference.directory

    async def manifest(self, known: str | None = None) -> bytes | None:
        """As ``Store``."""
        digest = self._reference.version if self._reference.is_digest else self._tagged()
        if digest == known:
            return None
        data = read_bounded(self._path(digest), ARTIFACT_BYTES, follow=False, error=BundleError)
        if digest_of(data) != digest:
            raise PeerError(f"{self._path(digest)}: has {digest_of(data)}, expected the digest of its name")
        return data

    async def blob(self, blob: Blob) -> AsyncIterator[bytes]:
        """As ``Store``."""
        yield read_bounded(self._path(blob.digest), blob.size, follow=False, error=BundleError)

    async def upload(self, blob: Blob, data: bytes) -> bool:
        """As ``Store``."""
        path = self._path(blob.digest)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                return False
            replace_file(path, data)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}, expected a place for it") from None
        return True

    async def tag(self, manifest: bytes) -> None:
        """As ``Store``."""
        await self.upload(Blob(digest_of(manifest), len(manifest)), manifest)
        descriptor = {
            "mediaType": IMAGE,
            "artifactType": ARTIFACT,
            "digest": digest_of(manifest),
            "size": len(manifest),
            "annotations": {TAG: self._reference.version},
        }
        try:
            with self._alone():
                index = self._index() if (self._root / INDEX_FILE).exists() else {"manifests": []}
                others = [each for each in index["manifests"] if _tag(each) != self._reference.version]
                index |= {"schemaVersion": 2, "manifests": [*others, descriptor]}
                replace_file(self._root / INDEX_FILE, json.dumps(index).encode())
        except OSError as error:
            raise OutputError(f"{self._root}: {error.strerror}, expected a place for it") from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two that push at once must not lose each other's tag."""
        handle = os.open(self._root / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not os.fstat(handle).st_size:
                os.write(handle, json.dumps({"imageLayoutVersion": LAYOUT_VERSION}).encode())
            yield
        finally:
            os.close(handle)

    def _path(self, digest: str) -> Path:
        kind, _, name = digest.partition(":")
        return self._root / "blobs" / kind / name

    def _index(self) -> dict[str, Any]:
        path = self._root / INDEX_FILE
        wanted = "expected the index of an OCI image layout"
        try:
            index = json.loads(
                read_bounded(path, INDEX_BYTES, expected="the index of a layout", error=BundleError)
            )
        except (ValueError, RecursionError):
            raise PeerError(f"{path}: is not JSON, {wanted}") from None
        if not isinstance(index, dict) or not isinstance(index.get("manifests"), list):
            raise PeerError(f"{path}: has no manifests, {wanted}")
        return index

    def _tagged(self) -> str:
        """The digest that the tag names."""
        for each in self._index()["manifests"]:
            if _tag(each) == self._reference.version:
                digest = each.get("digest")
                if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
                    raise PeerError(
                        f"{self._root / INDEX_FILE}: names no SHA-256 for {self._reference.version}"
                    )
                return digest
        raise BundleError(f"{self._reference.text}: is not there, expected a tag that was pushed")


def _tag(descriptor: object) -> object:
    """A descriptor's tag; None where it has none."""
    annotations = descriptor.get("annotations") if isinstance(descriptor, dict) else None
    return annotations.get(TAG) if isinstance(annotations, dict) else None
