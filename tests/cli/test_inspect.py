"""``offramp inspect``: the card of a bundle, and the cards that the shipped bundles' READMEs show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.cli import inspect
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import BundleError

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = sorted(path.parent for path in MODELS.glob("*/manifest.json"))
SHIPPED_BYTES = 3_000_000


@pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_bundle_has_its_card_in_its_readme(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(bundle)]) == 0
    card = capsys.readouterr().out
    assert f"```\n{card}```" in (bundle / "README.md").read_text()
    assert sum(path.stat().st_size for path in bundle.iterdir()) <= SHIPPED_BYTES


def test_json_is_the_manifest_and_the_digest(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(SHIPPED[0]), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    bundle = load_bundle(SHIPPED[0])
    assert printed.pop("digest") == bundle.digest.hex()
    assert printed["figures"] == bundle.manifest.figures.model_dump()


def test_a_damaged_bundle_has_no_card(tmp_path: Path) -> None:
    for path in SHIPPED[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tail.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"tail\.onnx"):
        inspect.main([str(tmp_path)])
