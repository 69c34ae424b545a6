"""``offramp inspect``: the card of a bundle, and the cards that the shipped bundles' READMEs show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.cli import inspect
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import BundleError
from tests.toy import BundleFolder

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = sorted(path.parent for path in MODELS.glob("*/manifest.json"))
SHIPPED_BYTES = 8_000_000


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


def test_a_card_has_the_agreement_that_its_bundle_measured(
    damaged: BundleFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = damaged.manifest["figures"]["thresholds"]
    measured = [
        {"threshold": row["threshold"], "exits": exits, "agree": exits and exits - 1}
        for row, exits in zip(rows, (40, 0), strict=False)
    ]
    damaged.edit("figures", "agreement", value=measured)
    assert inspect.main([str(damaged.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("server agrees") for line in lines) == 1
    assert any(line.endswith(" 97.50%") for line in lines)
