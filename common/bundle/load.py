"""A bundle: the directory that is one deployable model. Safe to load from a stranger.

Rules this module keeps:
- Only ``manifest.json`` and the files that it lists are read (and ``manifest.sig``, where a signature is
  required); they are plain files of exactly the stated size and SHA-256, directly in the directory. A
  symbolic link, a device or a sub-directory is refused.
- Where a signature is required (``signature.py``), it is verified before anything of the manifest is used.
- What was hashed is what is used: each file is read once, and its bytes are handed on.
- Nothing is unpickled, unzipped or executed. The two graphs are ONNX, in the standard operator domain,
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

from offramp.common.bundle.graphs import check_graph
from offramp.common.bundle.manifest import (
    CODEBOOK,
    HEAD,
    MANIFEST,
    MANIFEST_BYTES,
    TAIL,
    Context,
    FileEntry,
    Huffman,
    Manifest,
    Rans,
    Raw,
    RunHuffman,
    parse_manifest,
)
from offramp.common.bundle.signature import SIGNATURE, SIGNATURE_BYTES, TrustedKeys
from offramp.common.codec.activation import ActivationCodec, Tables, make_coder
from offramp.common.codec.context import ContextModel
from offramp.common.codec.huffman import Codebook
from offramp.common.codec.rans import RansTables
from offramp.common.codec.run_huffman import RunTables
from offramp.common.errors import BundleError, CodebookError
from offramp.common.files import read_bounded


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: its manifest, the digest of it, and the verified bytes of its files."""

    path: Path
    manifest: Manifest
    digest: bytes
    """SHA-256 of manifest.json, 32 bytes: the bundle's name on the wire."""
    head: bytes = field(repr=False)
    tail: bytes = field(repr=False)
    tables: Tables | None
    """What its codec codes with; None for raw symbols."""

    @cached_property
    def codec(self) -> ActivationCodec:
        """The codec that this bundle's frames are coded with."""
        shape, entry = self.manifest.activation.shape, self.manifest.codec
        if self.tables is None or isinstance(entry, Raw):
            return ActivationCodec(shape, None)
        return ActivationCodec(shape, make_coder(shape, self.tables, entry.lanes))


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
        contents: dict[str, bytes] = {
            name: _read_verified(folder, name, entry) for name, entry in sorted(manifest.files.items())
        }
        check_graph(HEAD, contents[HEAD])
        check_graph(TAIL, contents[TAIL])
        shape, entry = manifest.activation.shape, manifest.codec
        tables = None if isinstance(entry, Raw) else _read_tables(contents[CODEBOOK], entry, shape)
    except BundleError as error:
        raise type(error)(f"{directory}: {error}") from None
    finally:
        os.close(folder)
    digest = hashlib.sha256(text).digest()
    return Bundle(directory, manifest, digest, contents[HEAD], contents[TAIL], tables)


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


def _read_tables(
    data: bytes, entry: Huffman | RunHuffman | Rans | Context, shape: tuple[int, int, int]
) -> Tables:
    try:
        if isinstance(entry, Context):
            return ContextModel.from_bytes(data, shape)
        if isinstance(entry, Huffman):
            return Codebook.from_bytes(data, entry.table_of_channel)
        if isinstance(entry, RunHuffman):
            return RunTables.from_bytes(data, entry.table_of_channel, entry.mode_of_channel)
        return RansTables.from_bytes(data, entry.table_of_channel)
    except CodebookError as error:
        raise CodebookError(f"{CODEBOOK}: {error}") from None
