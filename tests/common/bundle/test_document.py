"""``manifest.json`` in either version. Documents from strangers: ``tests/attacks``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.common.bundle.document import MANIFEST_BYTES, manifest_text, parse_manifest
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import CLASSES, MANIFEST
from offramp.common.bundle.write import write_bundle
from offramp.common.errors import BundleError
from tests import toy_tensor


def test_version_2_is_read_as_it_was_written(tmp_path: Path) -> None:
    bundle = toy_tensor.write(tmp_path)
    text = (tmp_path / MANIFEST).read_bytes()

    assert json.loads(text)["format_version"] == 2
    assert manifest_text(parse_manifest(text)) == text == manifest_text(bundle.manifest)


def test_65536_classes_fit(tmp_path: Path) -> None:
    bundle = toy_tensor.write(tmp_path)
    names = [f"{number:05} {'c' * 50}" for number in range(CLASSES)]
    many = bundle.manifest.changed(classes=names)
    text = manifest_text(many)

    assert len(text) < MANIFEST_BYTES
    assert parse_manifest(text).classes == names


def test_what_would_be_too_long_is_not_written(tmp_path: Path) -> None:
    bundle = toy_tensor.write(tmp_path)
    many = bundle.manifest.changed(classes=[f"{number:05} {'c' * 190}" for number in range(CLASSES)])

    with pytest.raises(BundleError, match=r"manifest\.json: would have 1\d,\d{3},\d{3} bytes"):
        write_bundle(tmp_path / "new", many, {})
    assert not (tmp_path / "new").exists()


def test_a_field_of_the_other_version_is_unknown(tmp_path: Path) -> None:
    toy_tensor.write(tmp_path)
    document = json.loads((tmp_path / MANIFEST).read_bytes())
    document["threshold"] = 0.5
    (tmp_path / MANIFEST).write_text(json.dumps(document))

    with pytest.raises(BundleError, match="threshold: Extra inputs are not permitted"):
        load_bundle(tmp_path)
