"""Manifests that are as they should be. Those that are not: ``tests/attacks``."""

from __future__ import annotations

import pytest

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import parse_manifest
from offramp.common.errors import BundleError
from tests.toy import BundleFolder


def test_a_manifest_survives_its_own_json(toy_bundle: Bundle) -> None:
    assert parse_manifest(toy_bundle.manifest.model_dump_json().encode()) == toy_bundle.manifest


@pytest.mark.parametrize("name", ["čaj", "猫", "ice cream", "'quoted'", "x" * 200])
def test_class_names_may_be_any_printable_text(name: str, damaged: BundleFolder) -> None:
    damaged.edit("classes", 0, value=name)

    assert load_bundle(damaged.path).manifest.classes[0] == name


def test_a_manifest_cannot_be_changed(toy_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="frozen"):
        toy_bundle.manifest.threshold = 0.1


def test_agreement_is_of_no_more_images_than_exit(damaged: BundleFolder) -> None:
    assert load_bundle(damaged.path).manifest.figures.agreement is None
    damaged.edit("figures", "agreement", value=[{"threshold": 0.5, "exits": 40, "agree": 38}])
    (found,) = load_bundle(damaged.path).manifest.figures.agreement or []
    assert found.ratio == 0.95
    damaged.edit("figures", "agreement", value=[{"threshold": 0.5, "exits": 40, "agree": 41}])
    with pytest.raises(BundleError, match=r"figures\.agreement\.0: .*41 of 40 images agree"):
        load_bundle(damaged.path)


def test_a_bundle_of_before_has_no_agreement(damaged: BundleFolder) -> None:
    document = damaged.manifest
    del document["figures"]["agreement"]
    damaged.write_manifest(document)
    assert load_bundle(damaged.path).manifest.figures.agreement is None
