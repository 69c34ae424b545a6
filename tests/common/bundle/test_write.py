"""What is written is a bundle, or nothing is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.common.bundle.document import parse_manifest
from offramp.common.bundle.manifest import CODEBOOK, HEAD, MANIFEST, TAIL
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.errors import BundleError
from tests import toy


def test_writing_again_replaces_the_bundle_and_leaves_other_files(tmp_path: Path) -> None:
    toy.write(tmp_path)
    (tmp_path / "notes").write_text("mine")

    again = toy.write(tmp_path, coded=False)

    assert again.manifest.codec.kind == "raw"
    assert sorted(path.name for path in tmp_path.iterdir()) == [CODEBOOK, HEAD, MANIFEST, "notes", TAIL]


def test_writing_what_does_not_match_its_manifest_is_refused(tmp_path: Path) -> None:
    files = {HEAD: toy.head().SerializeToString(), TAIL: toy.tail().SerializeToString()}
    manifest = parse_manifest(json.dumps(toy.manifest(files)).encode())

    with pytest.raises(BundleError, match=r"tail\.onnx: has \d+ bytes, the manifest says"):
        write_bundle(tmp_path, manifest, {**files, TAIL: files[TAIL][:-1]})


def test_file_entries() -> None:
    entries = file_entries({TAIL: b"abc"})

    assert entries[TAIL].size == 3
    assert entries[TAIL].sha256.startswith("ba7816bf")
