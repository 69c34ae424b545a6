"""Points of a contender: what each of its settings sends and answers, image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.bench.messages import framed_bytes
from offramp.common.part.answer import ANSWERED_BY, Replies
from offramp.training.calibrate.measure import Answers

Rights = NDArray[np.bool_]
Sizes = NDArray[np.int64]

SHARES = np.concatenate([np.linspace(0.0, 0.05, 51), np.linspace(0.055, 1.0, 190)])
"""Of images that are sent: in fine steps where few are."""


@dataclass(frozen=True)
class Coded:
    """A bundle's answers for N images, and the payload of each, int64 [N]."""

    answers: Answers
    payload: Sizes


@dataclass(frozen=True)
class Sent:
    """N images in one format: bytes of each, int64 [N], and the answers of each whole model."""

    sizes: Sizes
    answers: list[Replies]


@dataclass(frozen=True)
class Points:
    """One contender: for each of P points and N images, bytes sent and whether the answer is right."""

    names: list[str]
    sent: NDArray[np.float32]
    right: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """All points of all parts."""
        return cls(
            [name for part in parts for name in part.names],
            np.concatenate([part.sent for part in parts]),
            np.concatenate([part.right for part in parts]),
        )


def messages(payloads: Sizes) -> NDArray[np.float32]:
    """Bytes of the message that holds each payload, float32 [N]."""
    return np.array([framed_bytes(int(size)) for size in payloads], np.float32)


def split_points(name: str, device: Answers, server: Rights, payload: Sizes) -> Points:
    """An early exit in front of a server, at thresholds that send 0 … 100 % of the images.

    Args:
        name: the contender's part in this.
        device: whose early exit decides, and answers what it is sure of.
        server: where the answer is right, were the image sent.
        payload: what that would take.
    """
    confidence = device.confidence
    order = np.sort(confidence)
    at = thresholds_that_send(order, SHARES)
    thresholds = np.concatenate([[0.0], at, [1.0]]).astype(np.float32)
    offloaded = confidence[None] <= thresholds[:, None]
    message = messages(payload)
    return Points(
        [f"{name}, T_c = {decimal(threshold, order)}" for threshold in thresholds],
        np.where(offloaded, message, np.float32(0)),
        np.where(offloaded, server, device.early_right).astype(np.float32),
    )


def thresholds_that_send(
    confidences: NDArray[np.float32], shares: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The confidences, out of these, ascending, below which such shares of the images are sent."""
    return np.unique(confidences[np.minimum((shares * len(confidences)).astype(int), len(confidences) - 1)])


def decimal(threshold: float, confidences: NDArray[np.float32]) -> str:
    """The shortest number that parts these confidences, ascending, as this threshold does."""
    after = int(np.searchsorted(confidences, threshold, "right"))
    following = float(confidences[after]) if after < len(confidences) else np.inf
    for digits in range(1, 18):
        value = math.ceil(float(threshold) * 10**digits) / 10**digits
        if float(threshold) <= value < following:
            return f"{value:.{digits}f}"
    return repr(float(threshold))


def picture_points(found: Mapping[str, Sent], labels: NDArray[np.int64]) -> Points:
    """Every image sent as a picture to the whole model."""
    names, sent, right = [], [], []
    for name, one in found.items():
        message = messages(one.sizes)
        for number, named in enumerate(one.answers):
            names.append(name + (", model trained on WebP" if number else ""))
            sent.append(message)
            right.append((named.best == labels).astype(np.float32))
    return Points(names, np.stack(sent), np.stack(right))


def hybrid_points(device: Answers, found: Mapping[str, Sent]) -> Points:
    """Unsure images sent as WebP of every quality; the server answers, or both exits do."""
    return Points.joined(
        [
            split_points(name, device, named.answers(device.replied.early, rule) == device.labels, one.sizes)
            for name, one in found.items()
            if name.startswith("WebP")
            for named in one.answers
            for rule in ANSWERED_BY
        ]
    )


def sent_points(coded: Mapping[str, Coded]) -> Points:
    """Every image sent, and answered by the server alone: one point for each bundle."""
    taken = [messages(one.payload) for one in coded.values()]
    rights = [one.answers.final_right for one in coded.values()]
    return Points(list(coded), np.stack(taken), np.array(rights, np.float32))
