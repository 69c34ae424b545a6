"""A bundle as an OCI artifact: an image manifest whose layers are the bundle's files, each as it is on disk.

It is ORAS's layout (OCI image specification 1.1): ``artifactType`` says what it is, the configuration is the
empty one, and each layer's title is its file's name, so that ``oras pull`` writes the bundle's directory. The
same bundle always gives the same manifest: nothing in it is a time.

Pure: bytes in, values out. What is read came from a registry, so nothing of it is believed: only digests,
sizes and names that are plain are taken from it, and the bundle's own manifest has the last word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.common.bundle.manifest import FILE_BYTES, MANIFEST, Manifest
from offramp.common.bundle.signature import SIGNATURE
from offramp.common.errors import BundleError, PeerError, printable

ARTIFACT = "application/vnd.offramp.bundle.v1"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
BUNDLE_DIGEST = "vnd.offramp.bundle.digest"
EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TYPES = {
    MANIFEST: "application/vnd.offramp.bundle.manifest.v1+json",
    SIGNATURE: "application/vnd.offramp.bundle.signature.v1",
}
FILE_TYPE = "application/vnd.offramp.bundle.file.v1"
ARTIFACT_BYTES = 1 << 18
"""Of an artifact's manifest, at most; a bundle's has about 2 kB."""
LAYERS = 64
"""At most; a bundle has four files or so."""


@dataclass(frozen=True)
class Blob:
    """Some bytes of an artifact, by what names them."""

    digest: str
    """``sha256:`` and 64 hexadecimal digits."""
    size: int


@dataclass(frozen=True)
class Artifact:
    """What an artifact's manifest says that is of use here."""

    digest: str
    """Of the manifest itself."""
    files: Mapping[str, Blob]
    """The layers by their titles."""

    def blob(self, name: str, most: int) -> Blob:
        """The layer of this title, of at most so many bytes. Raises BundleError."""
        found = self.files.get(name)
        if found is None:
            raise BundleError(f"{name}: is not in the artifact, expected it there")
        if found.size > most:
            raise BundleError(f"{name}: has {found.size} bytes, expected at most {most}")
        return found

    def check_files(self, manifest: Manifest) -> None:
        """Raises BundleError unless each file of the bundle's manifest is a layer of that size and digest."""
        for name, entry in manifest.files.items():
            found = self.blob(name, FILE_BYTES)
            if found != Blob(f"sha256:{entry.sha256}", entry.size):
                raise BundleError(
                    f"{name}: is {found.size} bytes of {found.digest} in the artifact, the bundle's manifest "
                    f"says {entry.size} of sha256:{entry.sha256}"
                )


def blob_of(data: bytes) -> Blob:
    """What names these bytes."""
    return Blob(digest_of(data), len(data))


def digest_of(data: bytes) -> str:
    """``sha256:…``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_artifact(name: str, files: Mapping[str, bytes], version: str | None = None) -> bytes:
    """The manifest of an artifact.

    name: the bundle's. files: the bundle's, with its manifest and, where it has one, its signature. version:
    what the owner calls this release.
    """
    layers: list[dict[str, Any]] = [
        {
            "mediaType": TYPES.get(title, FILE_TYPE),
            "digest": digest_of(data),
            "size": len(data),
            "annotations": {TITLE: title},
        }
        for title, data in sorted(files.items())
    ]
    annotations = {TITLE: name, BUNDLE_DIGEST: hashlib.sha256(files[MANIFEST]).hexdigest()}
    if version is not None:
        annotations[VERSION] = version
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "artifactType": ARTIFACT,
        "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY), "data": "e30="},
        "layers": layers,
        "annotations": annotations,
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


class _Layer(BaseModel):
    model_config = ConfigDict(strict=True)

    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
    size: Annotated[int, Field(ge=0, le=1 << 40)]
    annotations: dict[str, str] = {}


class _Image(BaseModel):
    model_config = ConfigDict(strict=True)

    schemaVersion: Annotated[int, Field(ge=2, le=2)]
    mediaType: str | None = None
    artifactType: str | None = None
    config: dict[str, Any] = {}
    layers: Annotated[list[_Layer], Field(max_length=LAYERS)] = []


def parse_artifact(data: bytes) -> Artifact:
    """An artifact's manifest. Raises PeerError for what is not one, BundleError for one of something else."""
    if len(data) > ARTIFACT_BYTES:
        raise PeerError(f"the artifact's manifest is longer than {ARTIFACT_BYTES} bytes")
    try:
        image = _Image.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PeerError(
            f"the artifact's manifest is not OCI's: {printable(where, 60)}: {printable(first['msg'], 120)}"
        ) from None
    if image.mediaType not in (None, IMAGE):
        raise BundleError(f"is {printable(image.mediaType, 100)}, expected {IMAGE}, which one bundle has")
    # Before 1.1 the configuration's type was what says it.
    kind = image.artifactType or image.config.get("mediaType")
    if kind != ARTIFACT:
        raise BundleError(f"is an artifact of type {printable(str(kind), 100)}, expected {ARTIFACT}")
    files: dict[str, Blob] = {}
    for layer in image.layers:
        title = layer.annotations.get(TITLE, "")
        if not is_plain(title):
            raise BundleError(f"a layer has the title {printable(title, 60)!r}, expected a plain file name")
        if title in files:
            raise BundleError(f"two layers have the title {title!r}, expected one")
        files[title] = Blob(layer.digest, layer.size)
    return Artifact(digest_of(data), files)


def is_plain(title: str) -> bool:
    """Whether it names a file directly in a directory, on any system."""
    return (
        0 < len(title) <= 128
        and title.isascii()
        and all(each.isalnum() or each in "._-" for each in title)
        and not title.startswith((".", "-"))
    )
