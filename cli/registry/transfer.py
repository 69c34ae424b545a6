"""A bundle from a directory to a store, and from a store to a directory.

Rules this module keeps:
- What is pushed was verified as a stranger's would be, and is what was verified.
- What is pulled lies beside its place until it is whole, verified, loaded and on the disk; then one rename
  gives it its name. A pull that is cut off leaves nothing under that name.
- The bundle's manifest comes first, then its signature where one is required. Nothing else is fetched until
  both are in order; then only what the manifest lists, in the sizes and with the digests that it states.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offramp.cli.registry.artifact import (
    EMPTY,
    Artifact,
    Blob,
    blob_of,
    digest_of,
    make_artifact,
    parse_artifact,
)
from offramp.cli.registry.store import Store
from offramp.common.bundle.document import MANIFEST_BYTES, parse_manifest
from offramp.common.bundle.load import BUNDLE_BYTES, Bundle, load_bundle
from offramp.common.bundle.manifest import MANIFEST
from offramp.common.bundle.signature import SIGNATURE, SIGNATURE_BYTES, UNDATED, TrustedKeys
from offramp.common.errors import BundleError, OutputError, PeerError
from offramp.common.files import read_bounded, sync_folder, write_new

STAGING = ".offramp-"
"""What the names of directories for what is not whole yet begin with."""


@dataclass(frozen=True)
class Pushed:
    """What became of a push."""

    digest: str
    """Of the artifact's manifest."""
    uploaded: int
    """Bytes that were not there before."""


async def push(bundle: Bundle, store: Store, version: str | None = None) -> Pushed:
    """Push a loaded bundle, files before manifest. Raises BundleError, ConfigError, PeerError, …"""
    files = _read_files(bundle)
    manifest = make_artifact(bundle.manifest.name, files, version)
    uploaded = 0
    for data in (*files.values(), EMPTY):
        if await store.upload(blob_of(data), data):
            uploaded += len(data)
    await store.tag(manifest)
    return Pushed(digest_of(manifest), uploaded)


def _read_files(bundle: Bundle) -> dict[str, bytes]:
    """The bytes that were verified, and the signatures beside them."""
    wanted = {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
    wanted[MANIFEST] = bundle.digest.hex()
    sizes = {name: entry.size for name, entry in bundle.manifest.files.items()}
    files = {}
    for name, digest in wanted.items():
        path = bundle.path / name
        data = read_bounded(path, sizes.get(name, MANIFEST_BYTES), follow=False, error=BundleError)
        if hashlib.sha256(data).hexdigest() != digest:
            raise BundleError(f"{path}: changed while it was pushed")
        files[name] = data
    if (bundle.path / SIGNATURE).exists():
        files[SIGNATURE] = read_bounded(
            bundle.path / SIGNATURE, SIGNATURE_BYTES, follow=False, error=BundleError
        )
    return files


@dataclass(frozen=True)
class Named:
    """What an artifact's bundle is, before its files are fetched."""

    manifest: bytes
    """The bytes of ``manifest.json``."""
    signature: bytes | None
    date: int
    """When a trusted key signed it, or UNDATED: also where none was asked for."""

    @property
    def digest(self) -> bytes:
        """The bundle's, 32 bytes."""
        return hashlib.sha256(self.manifest).digest()


async def read_named(artifact: Artifact, store: Store, trusted: TrustedKeys | None = None) -> Named:
    """Manifest and signature of an artifact's bundle, in order. Raises BundleError, PeerError, …"""
    text = await _fetch(store, artifact.blob(MANIFEST, MANIFEST_BYTES))
    signature = None
    if trusted is not None or SIGNATURE in artifact.files:
        signature = await _fetch(store, artifact.blob(SIGNATURE, SIGNATURE_BYTES))
    date = UNDATED
    if trusted is not None and signature is not None:
        date = trusted.check(text, signature)
    return Named(text, signature, date)


async def pull(
    artifact: Artifact,
    store: Store,
    place: Path,
    trusted: TrustedKeys | None = None,
    named: Named | None = None,
) -> Bundle:
    """Write an artifact's bundle to the directory ``place``, which must not be there yet.

    named: what ``read_named`` returned of it with the same keys, if that was asked before.
    Raises BundleError, PeerError, UnavailableError, OutputError.
    """
    named = named or await read_named(artifact, store, trusted)
    text, signature = named.manifest, named.signature
    manifest = parse_manifest(text)
    artifact.check_files(manifest)
    if (total := sum(entry.size for entry in manifest.files.values())) > BUNDLE_BYTES:
        raise BundleError(f"{MANIFEST}: files: have {total} bytes together, expected at most {BUNDLE_BYTES}")
    try:
        with staging(place.parent) as folder:
            for name in sorted(manifest.files):
                await _save(store, artifact.files[name], folder / name)
            if signature is not None:
                write_new(folder / SIGNATURE, signature)
            write_new(folder / MANIFEST, text)
            bundle = load_bundle(folder, trusted)
            sync_folder(folder)
            folder.rename(place)
            sync_folder(place.parent)
    except OSError as error:
        raise OutputError(f"{place}: {error.strerror}, expected a place for a new directory") from None
    return Bundle(place, bundle.manifest, bundle.digest, bundle.graphs, bundle.all_tables)


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """An empty directory that nobody takes for a bundle's, on the same disk; gone at the end."""
    above = Path(tempfile.mkdtemp(prefix=STAGING, dir=parent))
    try:
        # One deeper: who looks for bundles in the parent's directories finds none.
        folder = above / "bundle"
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(above, ignore_errors=True)


async def _fetch(store: Store, blob: Blob) -> bytes:
    """A small blob, checked."""
    data = b"".join([piece async for piece in store.blob(blob)])
    _check(blob, len(data), digest_of(data))
    return data


async def _save(store: Store, blob: Blob, path: Path) -> None:
    """A blob as a file, checked and on the disk."""
    found, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        async for piece in store.blob(blob):
            found.update(piece)
            size += len(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    _check(blob, size, f"sha256:{found.hexdigest()}")


def _check(blob: Blob, size: int, digest: str) -> None:
    if size != blob.size or digest != blob.digest:
        raise PeerError(f"a blob of {size} bytes has {digest}, expected {blob.size} bytes of {blob.digest}")


async def read_artifact(store: Store, known: str | None = None) -> Artifact | None:
    """What the reference names now; None where its digest is ``known``."""
    data = await store.manifest(known)
    return None if data is None else parse_artifact(data)
