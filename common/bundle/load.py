"""A bundle: the directory that is one deployable model. Safe to load from a stranger.

Rules this module keeps:
- Only ``manifest.json`` and the files that it lists are read (and ``manifest.sig``, where a signature is
  required); they are plain files of exactly the stated size and SHA-256, directly in the directory. A
  symbolic link, a device or a sub-directory is refused.
- Where a signature is required (``signature.py``), it is verified before anything of the manifest is used.
- What was hashed is what is used: each file is read once, and its bytes are handed on.
- Nothing is unpickled, unzipped or executed. The graphs are ONNX, in the standard operator domain,
  without control flow, functions or external data (``graphs.py``); what they cost is tried in a child
  process before they are loaded (``part/trial.py``).
- The manifest is strict (``manifest.py``).
- The SHA-256 of ``manifest.json`` as stored identifies the bundle on the wire.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from offramp.common.bundle.document import MANIFEST_BYTES, parse_manifest
from offramp.common.bundle.graphs import check_graph
from offramp.common.bundle.manifest import (
    FILE_BYTES,
    MANIFEST,
    Context,
    Crossing,
    FileEntry,
    Huffman,
    Manifest,
    Raw,
    RunHuffman,
)
from offramp.common.bundle.signature import SIGNATURE, SIGNATURE_BYTES, TrustedKeys
from offramp.common.codec.activation import ActivationCodec, Tables, make_coder
from offramp.common.codec.context import ContextModel
from offramp.common.codec.huffman import Codebook
from offramp.common.codec.rans import RansTables
from offramp.common.codec.run_huffman import RunTables
from offramp.common.errors import BundleError, CodebookError
from offramp.common.files import read_bounded

BUNDLE_BYTES = 4 * FILE_BYTES
"""All files of a bundle together."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: its manifest, the digest of it, and the verified bytes of its files.

    ``graphs``: of its parts, in their order; ``all_tables``: of its crossings, None for raw symbols.
    """

    path: Path
    manifest: Manifest
    digest: bytes
    """SHA-256 of manifest.json, 32 bytes: the bundle's name on the wire."""
    graphs: tuple[bytes, ...] = field(repr=False)
    all_tables: tuple[Tables | None, ...]

    @property
    def head(self) -> bytes:
        """The first part's graph."""
        return self.graphs[0]

    @property
    def tail(self) -> bytes:
        """The last part's graph."""
        return self.graphs[-1]

    @property
    def tables(self) -> Tables | None:
        """What the codec codes with that crosses behind the first part; None for raw symbols."""
        return self.all_tables[0]

    def require_pair(self, what: str) -> None:
        """Raise BundleError for a chain of more than two parts, which ``what`` does not take."""
        if (parts := len(self.manifest.parts)) != 2:
            raise BundleError(f"{self.path}: has {parts} parts, {what} takes bundles of 2")

    @property
    def codec(self) -> ActivationCodec:
        """The codec of what crosses behind the first part, which a device's frames are coded with."""
        return self._codecs[0]

    def codec_of(self, crossing: int) -> ActivationCodec:
        """The codec of one crossing, from 0. Raises IndexError."""
        return self._codecs[crossing]

    @cached_property
    def _codecs(self) -> tuple[ActivationCodec, ...]:
        return tuple(map(self._codec, range(len(self.all_tables))))

    def _codec(self, crossing: int) -> ActivationCodec:
        described, tables = self.manifest.crossings[crossing], self.all_tables[crossing]
        coder = None
        if tables is not None and not isinstance(described.codec, Raw):
            coder = make_coder(described.coded_shape, tables, described.codec.lanes)
        return ActivationCodec(described.shape, coder, described.channel_axis)


def load_bundle(directory: Path | str, trusted: TrustedKeys | None = None) -> Bundle:
    """Read and verify a bundle. Raises BundleError, or CodebookError, naming the file and what is wrong.

    trusted: one of these keys must have signed it; None: nobody need.
    """
    directory = Path(directory)
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BundleError(f"{directory}: {error.strerror}, expected a bundle's directory") from None
    try:
        text = _read_plain_file(folder, MANIFEST, MANIFEST_BYTES)
        if trusted is not None:
            trusted.check(text, _read_plain_file(folder, SIGNATURE, SIGNATURE_BYTES))
        manifest = parse_manifest(text)
        if (total := sum(entry.size for entry in manifest.files.values())) > BUNDLE_BYTES:
            raise BundleError(
                f"{MANIFEST}: files: have {total} bytes together, expected at most {BUNDLE_BYTES}"
            )
        contents: dict[str, bytes] = {
            name: _read_verified(folder, name, entry) for name, entry in sorted(manifest.files.items())
        }
        graphs = tuple(contents[part.graph] for part in manifest.parts)
        for part, graph in zip(manifest.parts, graphs, strict=True):
            check_graph(part.graph, graph)
        tables = tuple(_read_tables(contents, each) for each in manifest.crossings)
    except BundleError as error:
        raise type(error)(f"{directory}: {error}") from None
    finally:
        os.close(folder)
    return Bundle(directory, manifest, hashlib.sha256(text).digest(), graphs, tables)


def _read_plain_file(folder: int, name: str, limit: int) -> bytes:
    """The whole of one plain file of at most ``limit`` bytes in an open directory."""
    return read_bounded(name, limit, folder=folder, follow=False, error=BundleError)


def _read_verified(folder: int, name: str, entry: FileEntry) -> bytes:
    data = _read_plain_file(folder, name, entry.size)
    if len(data) != entry.size:
        raise BundleError(f"{name}: has {len(data)} bytes, the manifest says {entry.size}")
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise BundleError(f"{name}: has SHA-256 {found}, the manifest says {entry.sha256}")
    return data


def _read_tables(contents: dict[str, bytes], crossing: Crossing) -> Tables | None:
    entry = crossing.codec
    if crossing.tables is None or isinstance(entry, Raw):
        return None
    data = contents[crossing.tables]
    try:
        if isinstance(entry, Context):
            return ContextModel.from_bytes(data, crossing.coded_shape)
        if isinstance(entry, Huffman):
            return Codebook.from_bytes(data, entry.table_of_channel)
        if isinstance(entry, RunHuffman):
            return RunTables.from_bytes(data, entry.table_of_channel, entry.mode_of_channel)
        return RansTables.from_bytes(data, entry.table_of_channel)
    except CodebookError as error:
        raise CodebookError(f"{crossing.tables}: {error}") from None
