"""Points run from nothing sent to everything sent."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from offramp.common.bundle.load import load_bundle
from offramp.common.inputs.formats import FORMATS
from offramp.common.part.answer import Replies
from offramp.training.data import sources
from offramp.training.data.recipe import DigitsRecipe
from research.pareto import pictures, points
from tests.research.pareto.coded import coded

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


def test_points_run_from_nothing_sent_to_everything_sent() -> None:
    split = coded([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], [1, 1, 1, 0], [10, 20, 30, 40])
    found = points.split_points("ours", split.answers, split.answers.sent_right, split.payload)
    assert found.sent[0].tolist() == [0, 0, 0, 0]
    assert found.right[0].tolist() == [0, 1, 0, 1]
    assert found.sent[-1].tolist() == [16, 26, 36, 46]
    assert found.right[-1].tolist() == [1, 1, 1, 0]
    # Between them, unsure images go first.
    assert [16, 0, 36, 0] in found.sent.tolist()
    assert [0, 26, 0, 0] not in found.sent.tolist()


def test_a_point_names_thresholds_that_part_the_images_as_it_does() -> None:
    confidences = np.sort(np.random.default_rng(0).random(1_000).astype(np.float32))
    for threshold in confidences[::37]:
        named = float(points.decimal(threshold, confidences))
        assert [float(one) > named for one in confidences] == (confidences > threshold).tolist()
    assert points.decimal(0.5, np.array([0.2, 0.5, 0.9], np.float32)) == "0.5"
    assert points.decimal(0.5, np.array([0.5, 0.512], np.float32)) == "0.5"
    assert points.decimal(1.0, np.array([0.5, 1], np.float32)) == "1.0"


def test_pictures_of_two_models_have_points_of_both() -> None:
    recipe = DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2)
    data = sources.load(recipe, seed=1).test.take(np.arange(40))
    bundle = load_bundle(BUNDLE)
    some = [form for form in FORMATS if form.name in ("PNG", "WebP 20")]
    found = pictures.run_pictures([bundle, bundle], data.images, some)
    assert points.picture_points(found, data.labels).names == [
        "PNG",
        "PNG, model trained on WebP",
        "WebP 20",
        "WebP 20, model trained on WebP",
    ]


def test_the_hybrids_have_the_better_of_both_rules() -> None:
    """The server is wrong about the second image, where the early exit is surer than it is."""
    split = coded([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], [1, 1, 1, 1], [10] * 4)
    replies = Replies(np.array([0, 1, 0, 0]), np.array([0.9, 0.6, 0.9, 0.9], np.float32))
    found = points.hybrid_points(split.answers, {"WebP 50": points.Sent(np.full(4, 100), [replies])})
    sent = found.right[(found.sent > 0).all(axis=1)]
    assert set(sent.sum(axis=1).tolist()) == {3, 4}


def test_without_an_early_exit_every_image_is_sent() -> None:
    split = coded([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], [1, 1, 1, 0], [10, 20, 30, 40])
    answers = split.answers
    other = replace(answers, early=answers.early[:, ::-1], sent_answer="both")
    found = points.sent_points({"ours": replace(split, answers=other)})
    assert found.names == ["ours"]
    assert found.sent.tolist() == [[16, 26, 36, 46]]
    assert found.right.tolist() == [[1, 1, 1, 0]]
