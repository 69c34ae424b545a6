"""Pictures in place of activations, and the command that measures them."""

from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import load_bundle
from offramp.common.inputs.formats import FORMATS
from offramp.training.data import sources
from offramp.training.data.datasets import Labelled
from offramp.training.data.recipe import DigitsRecipe
from research.paper.__main__ import main
from research.paper.baselines import BASELINES, measure, read_baselines

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"
SOME = tuple(form for form in FORMATS if form.name in ("raw pixels", "PNG", "JPEG 50", "WebP 50"))


@pytest.fixture(scope="module")
def images() -> Labelled:
    recipe = DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2)
    return sources.load(recipe, seed=1).test.take(np.arange(60))


def test_pictures_to_the_whole_model_and_behind_an_early_exit(images: Labelled) -> None:
    bundle = load_bundle(BUNDLE)
    found = measure(bundle, images, formats=SOME)
    points = {point.name: point for point in found.pictures}
    assert points["raw pixels"].bytes_mean == 3072
    assert points["PNG"].accuracy == points["raw pixels"].accuracy > 0.9
    assert points["WebP 50"].bytes_mean < points["PNG"].bytes_mean < 3072
    (hybrid,) = found.hybrids
    assert hybrid.name == "early exit + WebP 50"
    # T_c = 1 sends every image, T_c = 0 none.
    assert hybrid.bytes_mean[-1] == points["WebP 50"].bytes_mean
    assert hybrid.accuracy[-1] == points["WebP 50"].accuracy
    assert hybrid.bytes_mean[0] == 0
    assert hybrid.bytes_mean == sorted(hybrid.bytes_mean)


def test_the_command_leaves_them_beside_the_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    for file in BUNDLE.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("offramp.common.inputs.formats.FORMATS", SOME)
    assert main(["baselines", "--bundle", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "| raw pixels | 3,072.0 |" in printed.out
    (found,) = read_baselines(tmp_path)
    assert found.images == load_bundle(folder).manifest.figures.images
    whole = next(point for point in found.pictures if point.name == "raw pixels")
    assert whole.accuracy == load_bundle(folder).manifest.figures.accuracy_final
    assert (folder / BASELINES).exists()
