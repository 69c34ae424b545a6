"""What a manifest says of its early exit's answers to test images."""

from __future__ import annotations

import json
from typing import Any

import pytest

from offramp.common.bundle.document import manifest_text
from offramp.common.bundle.drift import EDGES, bin_of
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import BundleError
from tests.toy import BundleFolder


def section(count: int, **changes: Any) -> dict[str, Any]:
    return {"edges": [0.5, 0.9], "confidence": [1, 4, 5], "classes": [10] + [0] * (count - 1)} | changes


def test_a_bin_holds_its_upper_edge() -> None:
    assert [bin_of([0.5, 0.9], value) for value in (0.2, 0.5, 0.51, 0.9, 0.91, 1.0)] == [0, 0, 1, 1, 2, 2]
    assert list(EDGES) == sorted(set(EDGES)) and EDGES[0] > 0 and EDGES[-1] < 1


def test_a_bundle_has_it_or_is_read_and_written_without_it(damaged: BundleFolder) -> None:
    before = load_bundle(damaged.path).manifest
    assert before.figures.drift is None and "drift" not in json.loads(manifest_text(before))["figures"]
    wanted = section(len(before.classes))
    damaged.edit("figures", "drift", value=wanted)
    found = load_bundle(damaged.path).manifest
    assert found.figures.drift is not None and found.figures.drift.images == 10
    assert json.loads(manifest_text(found))["figures"]["drift"] == wanted


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"edges": [0.9, 0.5]}, "expected each to be higher than the one before"),
        ({"confidence": [5, 5]}, "2 counts of confidence, expected 3"),
        ({"confidence": [1, 1, 1]}, "3 images by confidence, 10 by class"),
        ({"confidence": [0, 0, 0], "classes": [0] * 10}, "0 images by confidence"),
        ({"classes": [10]}, "1 counts of classes, expected"),
    ],
)
def test_what_does_not_fit_is_refused(damaged: BundleFolder, changes: dict[str, Any], said: str) -> None:
    count = len(load_bundle(damaged.path).manifest.classes)
    damaged.edit("figures", "drift", value=section(count, **changes))
    with pytest.raises(BundleError, match=said):
        load_bundle(damaged.path)
