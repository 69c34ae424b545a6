from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from offramp.common.bundle.document import manifest_text
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.unknown import NUMBERS
from offramp.common.bundle.write import write_bundle
from offramp.common.errors import BundleError
from tests.toy import CLASSES, SHAPE, BundleFolder

MODELS = Path(__file__).parents[3] / "models"
FEATURES = 2 * SHAPE[0]


def unknown(**fields: Any) -> dict[str, Any]:
    valid = {
        "centres": [[1.0] * FEATURES] * len(CLASSES),
        "deviations": [1.0] * FEATURES,
        "threshold": 3.0,
        "false_alarms": 0.05,
    }
    return valid | fields


def test_a_bundle_without_it_is_written_as_before(tmp_path: Path) -> None:
    shipped = load_bundle(MODELS / "digits-mobilenetv2-exit12")
    assert shipped.manifest.unknown is None
    document = json.loads(manifest_text(shipped.manifest))

    assert "unknown" not in document
    before = json.loads((shipped.path / "manifest.json").read_bytes())
    assert document == {**before, "sent_answer": "server", "preprocessing": document["preprocessing"]}


def test_it_is_kept_and_the_digest_is_that_of_the_file(damaged: BundleFolder) -> None:
    damaged.edit("unknown", value=unknown())

    bundle = load_bundle(damaged.path)
    assert bundle.manifest.unknown is not None and bundle.manifest.unknown.threshold == 3
    files = {name: (damaged.path / name).read_bytes() for name in bundle.manifest.files}
    again = write_bundle(damaged.path, bundle.manifest, dict(files))
    assert again.manifest == bundle.manifest
    assert again.digest == hashlib.sha256((damaged.path / "manifest.json").read_bytes()).digest()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"centres": [[1.0] * FEATURES] * 2}, f"2 centres, expected 1 or {len(CLASSES)}"),
        (
            {"centres": [[1.0] * 4], "deviations": [1.0] * 4},
            f"4 features, the activation {SHAPE[0]} channels",
        ),
        ({"deviations": [1.0] * 4}, "lengths"),
        ({"deviations": [0.0] * FEATURES}, "greater than 0"),
        ({"threshold": float("nan")}, "finite"),
        ({"false_alarms": 1.0}, "less than 1"),
        ({"centres": [[1.0] * FEATURES] * (NUMBERS // FEATURES + 1)}, "numbers"),
        ({"more": 1}, "not permitted"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], expected: str, damaged: BundleFolder) -> None:
    damaged.edit("unknown", value=unknown(**fields))

    with pytest.raises(BundleError, match=expected):
        load_bundle(damaged.path)
