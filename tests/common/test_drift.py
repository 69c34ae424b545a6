"""The distance between two sets of images: its values, chance, and streams of photos that shift."""

from __future__ import annotations

import math

import numpy as np
import pytest

from offramp.common.drift import BEYOND_CHANCE, SHIFTED, deviations, distance, is_drift

# Of TrashNet's 379 test photos at 320x240: what the early exit of models/trashnet-efficientnet-lite0 says.
CONFIDENCE = {
    "as they are": [3, 22, 21, 18, 25, 44, 36, 74, 61, 75, 0],
    "dark": [17, 121, 66, 56, 45, 42, 15, 11, 5, 1, 0],
    "blurred": [5, 48, 46, 55, 45, 69, 38, 32, 18, 23, 0],
}
CLASSES = [59, 61, 66, 93, 80, 20]
"""Cardboard, glass, metal, paper, plastic, trash."""


def halves(counts: list[int]) -> tuple[list[int], list[int]]:
    """Two random halves of these images."""
    bins = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    first, second = np.array_split(rng.permutation(bins), 2)
    one, other = (np.bincount(half, minlength=len(counts)).tolist() for half in (first, second))
    return one, other


def test_the_same_is_0_and_nothing_in_common_is_1() -> None:
    assert distance([3, 6, 0], [1, 2, 0]) == 0
    assert distance([5, 0], [0, 7]) == pytest.approx(1)
    # By hand: 1/2 and 1/2 against 1/4 and 3/4, from the middle 3/8 and 5/8.
    first = 0.5 * math.log2(0.5 / 0.375) + 0.5 * math.log2(0.5 / 0.625)
    second = 0.25 * math.log2(0.25 / 0.375) + 0.75 * math.log2(0.75 / 0.625)
    assert distance([10, 10], [5, 15]) == pytest.approx((first + second) / 2)
    assert distance([10, 10], [5, 15]) == distance([5, 15], [10, 10])


@pytest.mark.parametrize(("live", "reference"), [([0, 0], [1, 2]), ([1, 2], [0, 0]), ([1], [1, 2])])
def test_nothing_and_other_bins_have_no_distance(live: list[int], reference: list[int]) -> None:
    with pytest.raises(ValueError, match="images in"):
        distance(live, reference)


def test_one_bin_alone_never_drifts() -> None:
    assert deviations([500, 0], [300, 0]) == 0


@pytest.mark.parametrize("counts", [*CONFIDENCE.values(), CLASSES], ids=[*CONFIDENCE, "classes"])
def test_halves_of_the_same_photos_do_not_drift(counts: list[int]) -> None:
    assert not is_drift(*halves(counts))


def test_chance_is_a_normal_deviation() -> None:
    rng = np.random.default_rng(0)
    share = np.array(CONFIDENCE["as they are"]) / 379
    drawn = [(rng.multinomial(500, share), rng.multinomial(379, share)) for _ in range(2000)]
    found = np.array([deviations(live.tolist(), reference.tolist()) for live, reference in drawn])
    assert abs(found.mean()) < 0.1 and abs(found.std() - 1) < 0.1 and found.max() < BEYOND_CHANCE + 0.5


@pytest.mark.parametrize("how", ["dark", "blurred"])
def test_a_dark_or_blurred_stream_drifts_also_where_half_of_it_is_as_it_was(how: str) -> None:
    usual, shifted = CONFIDENCE["as they are"], CONFIDENCE[how]
    assert is_drift(shifted, usual)
    mixed = [before + after for before, after in zip(usual, shifted, strict=True)]
    assert is_drift(mixed, usual) == (how == "dark")


@pytest.mark.parametrize("missing", range(5))
def test_a_stream_without_one_class_drifts(missing: int) -> None:
    live, reference = halves([2 * count for count in CLASSES])
    live[missing] = 0
    assert is_drift(live, reference)


def test_a_rare_class_may_be_missing() -> None:
    """20 of 379: less than a little."""
    live = [*CLASSES[:5], 0]
    assert distance(live, CLASSES) < SHIFTED and not is_drift(live, CLASSES)


def test_few_images_say_nothing() -> None:
    assert not is_drift([99, 0], [0, 379]) and is_drift([100, 0], [0, 379])
