"""Bundles that are as they should be. Those that are not: ``tests/attacks``."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.graphs import OPERATORS, check_graph
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import CODEBOOK, HEAD, MANIFEST, TAIL, Manifest, parse_manifest
from offramp.common.bundle.write import file_entries, write_bundle
from offramp.common.codec.activation import CodecId
from offramp.common.errors import BundleError
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


def test_writing_again_replaces_the_bundle_and_leaves_other_files(tmp_path: Path) -> None:
    toy.write(tmp_path)
    (tmp_path / "notes").write_text("mine")

    again = toy.write(tmp_path, coded=False)

    assert again.manifest.codec.kind == "raw"
    assert sorted(path.name for path in tmp_path.iterdir()) == [CODEBOOK, HEAD, MANIFEST, "notes", TAIL]


def test_writing_what_does_not_match_its_manifest_is_refused(tmp_path: Path) -> None:
    files = {HEAD: toy.head().SerializeToString(), TAIL: toy.tail().SerializeToString()}
    manifest = Manifest.model_validate_json(json.dumps(toy.manifest(files)))

    with pytest.raises(BundleError, match=r"tail\.onnx: has \d+ bytes, the manifest says"):
        write_bundle(tmp_path, manifest, {**files, TAIL: files[TAIL][:-1]})


def test_file_entries() -> None:
    entries = file_entries({TAIL: b"abc"})

    assert entries[TAIL].size == 3
    assert entries[TAIL].sha256.startswith("ba7816bf")


def test_a_manifest_survives_its_own_json(toy_bundle: Bundle) -> None:
    assert parse_manifest(toy_bundle.manifest.model_dump_json().encode()) == toy_bundle.manifest


@pytest.mark.parametrize("name", ["čaj", "猫", "ice cream", "'quoted'", "x" * 200])
def test_class_names_may_be_any_printable_text(name: str, damaged: BundleFolder) -> None:
    damaged.edit("classes", 0, value=name)

    assert load_bundle(damaged.path).manifest.classes[0] == name


def test_a_manifest_cannot_be_changed(toy_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="frozen"):
        toy_bundle.manifest.threshold = 0.1


def test_allowed_operators_have_no_control_flow_and_nothing_random() -> None:
    assert OPERATORS.isdisjoint(
        {"If", "Loop", "Scan", "SequenceMap", "Optional", "RandomUniform", "Multinomial"}
    )
    for graph in (toy.head(), toy.tail()):
        check_graph(HEAD, graph.SerializeToString())
