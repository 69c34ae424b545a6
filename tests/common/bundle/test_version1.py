"""Version 1 is read into the one model, and written from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.common.bundle.document import manifest_text, parse_manifest
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import MANIFEST
from offramp.common.bundle.version1 import Version1
from offramp.common.errors import BundleError
from tests import toy_tensor

DIGESTS = {
    "cifar10-mobilenetv2-exit12": "091ecdd4",
    "cifar10-mobilenetv2-rate": "65098192",
    "cifar10-mobilenetv2-whole": "53405423",
    "digits-mobilenetv2-exit12": "8c5939b5",
    "imagenette-mobilenetv2-rate": "eddd119b",
}
MODELS = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize("name", DIGESTS)
def test_shipped_bundles_have_the_digests_that_they_had(name: str) -> None:
    bundle = load_bundle(MODELS / name)
    stored = json.loads((MODELS / name / MANIFEST).read_bytes())
    manifest = bundle.manifest

    assert bundle.digest.hex().startswith(DIGESTS[name])
    assert manifest.format_version == 1
    assert (manifest.threshold, manifest.temperature) == (stored["threshold"], stored["temperature"])
    assert manifest.sent_answer == stored.get("sent_answer", "server")
    assert (manifest.model, manifest.cut.name) == (stored["split"]["model"], stored["split"]["layer"])
    assert list(manifest.activation.shape) == stored["activation"]["shape"]
    assert manifest.preprocessing.height == stored["preprocessing"]["height"]


def test_what_is_written_again_is_version_1_and_says_the_same(toy_bundle: Bundle) -> None:
    stored = (toy_bundle.path / MANIFEST).read_bytes()
    assert manifest_text(toy_bundle.manifest) == stored
    changed = toy_bundle.manifest.changed(threshold=0.25, sent_answer="both")
    again = parse_manifest(manifest_text(changed))

    assert again == changed
    assert (again.format_version, again.threshold, again.sent_answer) == (1, 0.25, "both")
    expected = {**json.loads(stored), "threshold": 0.25, "sent_answer": "both"}
    assert json.loads(manifest_text(changed)) == expected


def test_what_it_cannot_say_is_refused(tmp_path: Path) -> None:
    tensors = toy_tensor.write(tmp_path / "tensors").manifest
    tokens = toy_tensor.write(tmp_path / "tokens", tokens=True).manifest
    for manifest in (tensors, tokens):
        with pytest.raises(BundleError, match="toy-tensor: "):
            Version1.of(manifest)
