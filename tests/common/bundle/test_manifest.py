"""Manifests that are as they should be. Those that are not: ``tests/attacks``."""

from __future__ import annotations

import pytest

from offramp.common.bundle.document import manifest_text, parse_manifest
from offramp.common.bundle.load import Bundle, load_bundle
from tests.toy import BundleFolder


def test_a_manifest_survives_its_own_json(toy_bundle: Bundle) -> None:
    assert parse_manifest(manifest_text(toy_bundle.manifest)) == toy_bundle.manifest


@pytest.mark.parametrize("name", ["čaj", "猫", "ice cream", "'quoted'", "x" * 200])
def test_class_names_may_be_any_printable_text(name: str, damaged: BundleFolder) -> None:
    damaged.edit("classes", 0, value=name)

    assert load_bundle(damaged.path).manifest.classes[0] == name


def test_a_manifest_cannot_be_changed(toy_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="frozen"):
        toy_bundle.manifest.threshold = 0.1
