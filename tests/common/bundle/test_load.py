"""Bundles that are as they should be. Those that are not: ``tests/attacks``."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import CODEBOOK, MANIFEST
from offramp.common.codec.activation import CodecId
from tests import toy
from tests.toy import BundleFolder


def test_loads_what_was_written(toy_bundle: Bundle) -> None:
    loaded = load_bundle(toy_bundle.path)

    assert loaded.manifest == toy_bundle.manifest
    assert loaded.head == toy.head().SerializeToString()
    assert loaded.tail == toy.tail().SerializeToString()
    assert loaded.tables is not None
    assert loaded.tables.to_bytes() == (toy_bundle.path / CODEBOOK).read_bytes()


def test_the_digest_is_that_of_the_manifest_as_stored(toy_bundle: Bundle) -> None:
    assert toy_bundle.digest == hashlib.sha256((toy_bundle.path / MANIFEST).read_bytes()).digest()


def test_the_same_manifest_in_other_white_space_is_another_bundle(
    damaged: BundleFolder, toy_bundle: Bundle
) -> None:
    damaged.write_manifest(json.dumps(damaged.manifest, indent=4).encode())
    loaded = load_bundle(damaged.path)

    assert loaded.manifest == toy_bundle.manifest
    assert loaded.digest != toy_bundle.digest


def test_a_directory_by_name_or_behind_a_link_is_taken(toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(toy_bundle.path)

    assert load_bundle(str(tmp_path / "current")).digest == toy_bundle.digest


def test_other_files_in_the_directory_are_not_looked_at(damaged: BundleFolder, toy_bundle: Bundle) -> None:
    (damaged.path / "README.md").write_text("notes")
    (damaged.path / "link").symlink_to("/nonexistent")
    os.mkfifo(damaged.path / "pipe")

    assert load_bundle(damaged.path).digest == toy_bundle.digest


def test_the_codec_is_the_bundles(toy_bundle: Bundle, raw_bundle: Bundle) -> None:
    symbols = np.zeros(toy.SHAPE, np.uint8)

    assert toy_bundle.codec.encode(symbols)[0] is CodecId.BUNDLE
    assert raw_bundle.codec.encode(symbols)[0] is CodecId.RAW
    assert toy_bundle.codec is toy_bundle.codec
    assert raw_bundle.tables is None
