"""T_c for an accuracy floor or a byte budget, alone or with pictures, chosen on held-out images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.manifest import SentAnswer
from offramp.common.errors import DataError
from offramp.training.calibrate.confidence import ece
from offramp.training.calibrate.frontier import THRESHOLDS, frontier
from offramp.training.calibrate.intervals import bootstrap_mean, wilson
from offramp.training.calibrate.measure import Answers
from offramp.training.calibrate.sent_pictures import SentAsPictures


@dataclass(frozen=True)
class PictureChoice:
    """What a device has to be set to besides, and what share of all images is then sent once more."""

    threshold: float
    quality: int
    rate: float


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and what it means on the images that it was chosen on; intervals cover 95 %."""

    threshold: float
    images: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    exit_rate: float
    exit_rate_interval: tuple[float, float]
    bytes_mean: float
    bytes_interval: tuple[float, float]
    accuracy_sent: float
    """With no image answered early."""
    sent_answer: SentAnswer
    """Who answers a sent image."""
    temperature: float
    ece: float
    """Of the early exit at this temperature."""
    ece_before: float
    """At the bundle's temperature."""
    picture: PictureChoice | None = None
    """Where pictures may be sent and some are worth it."""


@dataclass(frozen=True)
class _Point:
    """One way to run: T_c and, with pictures, which and how unsure; means over the images."""

    threshold: float
    bytes_mean: float
    right: int
    pictures: SentAsPictures | None = None
    again: float = 0.0


def choose_threshold(
    answers: Answers,
    payloads: NDArray[np.int64],
    *,
    pictures: Iterable[SentAsPictures] = (),
    accuracy: float | None = None,
    drop: float | None = None,
    budget: float | None = None,
    sure: bool = False,
    seed: int = 0,
) -> ThresholdChoice:
    """The threshold for one goal.

    Args:
        answers: of both exits on held-out images; their temperature is what confidences are taken at.
        payloads: bytes that each image's activation takes, int64 [N].
        pictures: what the images are as pictures, of each quality that may be sent.
        accuracy: floor, a share.
        drop: how far below the best accuracy of any threshold, or of any two, the floor is.
        budget: mean bytes an image, at most.
        sure: the worse end of the 95 % interval has to meet the goal.
        seed: of the bootstrap.

    Raises:
        DataError: no threshold meets the goal; says what the best one reaches.
    """
    count = len(answers)
    points = _points(answers, payloads, pictures)
    costs = np.array([point.bytes_mean for point in points])
    # By bytes, each more often right than the one before.
    best = [points[at] for at in frontier(costs, np.array([point.right for point in points]))]
    # The slack is for the last bit of a mean.
    slack = 1e-12
    if budget is not None:

        def cost(point: _Point) -> float:
            if not sure:
                return point.bytes_mean
            return bootstrap_mean(_bytes_sent(point, answers, payloads), seed=seed)[1]

        fits = next((point for point in reversed(best) if cost(point) <= budget + slack), None)
        if fits is None:
            raise DataError(
                f"no threshold sends {budget:g} B an image or fewer: "
                f"at {best[0].threshold:g} it is {cost(best[0]):,.1f}"
            )
        return _described(fits, answers, payloads, seed)

    def reached(point: _Point) -> float:
        return wilson(point.right, count)[0] if sure else point.right / count

    if drop is not None:
        accuracy = max(0.0, best[-1].right / count - drop)
    assert accuracy is not None
    for point in best:
        if reached(point) >= accuracy - slack:
            return _described(point, answers, payloads, seed)
    how = "with 95 % confidence" if sure else "on these images"
    raise DataError(
        f"no threshold reaches an accuracy of {accuracy:.4f} {how}: "
        f"the best, {best[-1].threshold:g}, reaches {reached(best[-1]):.4f}"
    )


def _bytes_sent(point: _Point, answers: Answers, payloads: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each image, float64 [N]."""
    sent = np.where(answers.exits(point.threshold), 0, payloads)
    if point.pictures is not None:
        sent = sent + np.where(_again(answers, point), point.pictures.payloads, 0)
    return sent.astype(np.float64)


def _described(point: _Point, answers: Answers, payloads: NDArray[np.int64], seed: int) -> ThresholdChoice:
    """A point with its intervals."""
    count, early = len(answers), answers.exits(point.threshold)
    sent = _bytes_sent(point, answers, payloads)
    calibrated = ece(answers.confidence, answers.early_right)
    picture = None
    if point.pictures is not None:
        rate = float(_again(answers, point).mean())
        picture = PictureChoice(point.again, point.pictures.quality, rate)
    return ThresholdChoice(
        threshold=point.threshold,
        images=count,
        accuracy=point.right / count,
        accuracy_interval=wilson(point.right, count),
        exit_rate=float(early.mean()),
        exit_rate_interval=wilson(int(early.sum()), count),
        bytes_mean=float(sent.mean()),
        bytes_interval=bootstrap_mean(sent, seed=seed),
        accuracy_sent=float(answers.sent_right.mean()),
        sent_answer=answers.sent_answer,
        temperature=answers.temperature,
        ece=calibrated,
        ece_before=calibrated,
        picture=picture,
    )


def _again(answers: Answers, point: _Point) -> NDArray[np.bool_]:
    """Which images are sent once more, bool [N]."""
    return ~answers.exits(point.threshold) & (answers.replied.confidence <= point.again)


def _points(
    answers: Answers, payloads: NDArray[np.int64], pictures: Iterable[SentAsPictures]
) -> list[_Point]:
    """Every T_c in hundredths; then with every picture threshold in hundredths, of every quality."""
    count, plain = len(answers), []
    for at in THRESHOLDS:
        sent = np.where(answers.exits(at), 0, payloads)
        plain.append(_Point(at, float(sent.mean()), int(answers.right(at).sum())))
    points = list(plain)
    # The lowest threshold at which an image is sent once more; beyond the last for none.
    first = np.searchsorted(np.array(THRESHOLDS, np.float32), answers.replied.confidence, "left")
    for one in pictures:
        gain = one.right.astype(np.int64) - answers.sent_right
        for point in plain:
            sent = ~answers.exits(point.threshold)
            more, gained = (
                np.bincount(first[sent], of[sent], minlength=len(THRESHOLDS) + 1).cumsum()
                for of in (one.payloads, gain)
            )
            points += [
                _Point(
                    point.threshold,
                    point.bytes_mean + float(more[number]) / count,
                    point.right + round(float(gained[number])),
                    one,
                    again,
                )
                for number, again in enumerate(THRESHOLDS)
                if more[number]
            ]
    return points
