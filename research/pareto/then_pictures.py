"""Ours, then pictures: an early exit, the answer to an activation, and a picture where that is unsure too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.common.part.answer import Replies
from offramp.training.calibrate.frontier import frontier
from research.pareto.points import (
    SHARES,
    Coded,
    Points,
    Rights,
    Sent,
    Sizes,
    decimal,
    messages,
    thresholds_that_send,
)

_AGAIN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Shares of what was sent that are sent again, as pictures."""


def points_then_pictures(
    splits: Mapping[str, Coded], found: Mapping[str, Sent], payloads: Mapping[str, Sizes]
) -> Points:
    """An early exit, then both exits, then a picture: two thresholds, every quality and every whole model.

    Of so many only those are kept that no other beats in bytes and accuracy, which leaves a resampling fewer
    to choose from: its costs are no lower than those of all would be.

    Args:
        splits: by name.
        found: the answers of the whole models to the pictures.
        payloads: what each picture takes as a device sends it.
    """
    every = [
        again
        for name, split in splits.items()
        for form, payload in payloads.items()
        for number, answers in enumerate(found[form].answers)
        for again in _again(
            f"{name}, {form}" + (", model trained on WebP" if number else ""), split, answers, payload
        )
    ]
    kept = _unbeaten(every)
    sent, right = zip(*(again.images() for again in kept), strict=True)
    return Points([again.name for again in kept], np.stack(sent), np.stack(right))


@dataclass(frozen=True)
class _Again:
    """One point with pictures: its means, and how to have it for each image."""

    name: str
    bytes_mean: float
    right_mean: float
    images: Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]


def _unbeaten(points: list[_Again]) -> list[_Again]:
    """Those that no other beats, ordered by bytes."""
    means = np.array([(point.bytes_mean, point.right_mean) for point in points]).reshape(-1, 2)
    return [points[number] for number in frontier(means[:, 0], means[:, 1])]


def _again(name: str, coded: Coded, pictures: Replies, payload: Sizes) -> list[_Again]:
    """The unbeaten points of one split, quality and whole model."""
    answers = coded.answers
    confidence, sent_confidence = answers.confidence, answers.replied.confidence
    message, picture = messages(coded.payload), messages(payload)
    after = np.asarray(answers.replied.answers_after(pictures) == answers.labels)
    rights = answers.early_right, answers.sent_right, after
    order = np.sort(confidence)
    points: list[_Again] = []
    for threshold in thresholds_that_send(order, SHARES[1:]):
        first = decimal(float(threshold), order)
        sent = confidence <= threshold
        unsure = np.sort(sent_confidence[sent])
        for second in np.unique([unsure[int(np.ceil(share * len(unsure))) - 1] for share in _AGAIN]):

            def images(
                sent: Rights = sent, again: Rights = sent & (sent_confidence <= second)
            ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
                bytes_ = np.where(sent, message, np.float32(0)) + np.where(again, picture, np.float32(0))
                right = np.where(again, rights[2], np.where(sent, rights[1], rights[0]))
                return bytes_, right.astype(np.float32)

            bytes_, right = images()
            text = f"{name}, T_c = {first}, then {decimal(float(second), unsure)}"
            points.append(_Again(text, float(bytes_.mean()), float(right.mean()), images))
        points = _unbeaten(points)
    return points
