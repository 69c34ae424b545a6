"""``manifest.json`` as bytes: read, and written, in either format version.

What a stranger chose reaches a message only through ``printable``: one line, no control characters.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from pydantic import BaseModel, ValidationError

from offramp.common.bundle.manifest import MANIFEST, Manifest
from offramp.common.bundle.version1 import Version1
from offramp.common.errors import BundleError, printable

MANIFEST_BYTES = 4 << 20
"""65,536 classes of 58 bytes each, and everything else."""
TOKENS = 1 << 19
"""Strings, and signs between values, of one document: twice what 65,536 classes and 15 crossings have. A
parser remembers every value that is wrong."""
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},:]', re.DOTALL)
"""A string that does not end reaches to the end: nothing is looked at twice."""


class _Versioned(BaseModel):
    """What says how to read the rest."""

    format_version: Literal[1, 2]


def parse_manifest(text: bytes) -> Manifest:
    """The manifest in these bytes, of either version. Raises BundleError naming the first wrong field.

    Pydantic keeps the last of two equal keys, other readers the first: a manifest says one thing only.
    """
    if sum(1 for _ in _TOKEN.finditer(text)) > TOKENS:
        raise BundleError(f"{MANIFEST}: has over {TOKENS:,} names and values, expected a bundle's manifest")
    try:
        version = _Versioned.model_validate_json(text, strict=True).format_version
        if version == 1:
            manifest = Version1.model_validate_json(text).manifest()
        else:
            manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST}: {_first(error)}") from None
    json.loads(text, object_pairs_hook=_distinct)
    return manifest


def manifest_text(manifest: Manifest) -> bytes:
    """A manifest as it is stored, in its own version. Raises BundleError for one that says too much."""
    try:
        document = Version1.of(manifest) if manifest.format_version == 1 else manifest
    except ValidationError as error:
        raise BundleError(f"{MANIFEST}: {_first(error)}") from None
    text = (document.model_dump_json(indent=1) + "\n").encode()
    if len(text) > MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST}: would have {len(text):,} bytes, expected at most {MANIFEST_BYTES:,}")
    return text


def _first(error: ValidationError) -> str:
    """The first of its errors, and how many more there are."""
    first, count = error.errors(include_url=False)[0], error.error_count()
    where = printable(".".join(str(part) for part in first["loc"])) or "the document"
    more = f" (and {count - 1} more)" if count > 1 else ""
    return f"{where}: {printable(first['msg'])}{more}"


def _distinct(pairs: list[tuple[str, object]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise BundleError(f"{MANIFEST}: {printable(key)}: is there twice, expected once")
        seen.add(key)
