"""Pictures to whole models, and what is kept of them."""

from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import load_bundle
from offramp.common.errors import DataError
from offramp.common.inputs.formats import FORMATS, sent
from offramp.common.wire.picture import LEFT_OUT, decode_picture, encode_picture
from offramp.training.data import sources
from offramp.training.data.recipe import DigitsRecipe
from research.pareto import pictures

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


def test_pictures_are_kept_for_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2)
    data = sources.load(recipe, seed=1).test.take(np.arange(40))
    bundle = load_bundle(BUNDLE)
    some = [form for form in FORMATS if form.name in ("PNG", "WebP 1")]
    first = pictures.run_pictures([bundle], data.images, some, kept=tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patched:
        patched.setattr(pictures, "whole_answers", never)
        again = pictures.run_pictures([bundle], data.images, some, kept=tmp_path)
        with pytest.raises(AssertionError, match="made again"):
            pictures.run_pictures([bundle], data.images[:39], some, kept=tmp_path)
    assert again.keys() == first.keys()
    for name, one in first.items():
        other = again[name]
        assert np.array_equal(other.sizes, one.sizes)
        assert np.array_equal(other.answers[0].best, one.answers[0].best)
        assert np.array_equal(other.answers[0].probability, one.answers[0].probability)
    for number, damaged in enumerate(sorted(tmp_path.glob("*.npz"))):
        damaged.write_bytes(b"no archive" if number else damaged.read_bytes()[:100])
        with pytest.raises(DataError, match=f"{damaged.name}: expected kept answers.*remove it"):
            pictures.run_pictures([bundle], data.images, some, kept=tmp_path)
        damaged.unlink()


def test_a_picture_weighs_what_a_device_sends_and_shows_what_its_file_shows() -> None:
    recipe = DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2)
    images = sources.load(recipe, seed=1).test.images[:20]
    some = [form for form in FORMATS if form.name in ("PNG", "WebP lossless", "WebP 1", "WebP 50")]
    payloads = pictures.picture_payloads(images, some)
    assert list(payloads) == ["WebP 1", "WebP 50"]
    for form in some[2:]:
        sizes, decoded = sent(form, images)
        assert set(sizes - payloads[form.name]) <= {LEFT_OUT, LEFT_OUT + 1}
        quality = dict(form.settings)["quality"]
        ours = [decode_picture(encode_picture(image, quality), *image.shape[1:]) for image in images]
        assert np.array_equal(np.stack(ours), decoded)
