"""One answer out of two, for an image that was sent: what the early exit said is not thrown away.

A reply has the server's likeliest class and its probability; the device has all of its early exit's. Both
are taken for equally good, so each class has the product of its two probabilities. What the server leaves to
the other classes is shared out among them as the early exit shares it, but none gets more than the one that
it named. It costs no byte: nothing else is sent.

A bundle's manifest says whether its images are answered so (``sent_answer``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from offramp.common.bundle.manifest import SentAnswer

ANSWERED_BY: dict[SentAnswer, str] = {"server": "the server", "both": "both exits"}
"""The same in words."""

_LEAST = 1e-9


def both_exits(
    early: NDArray[np.float32], best: NDArray[np.integer], probability: NDArray[np.float32]
) -> NDArray[np.float64]:
    """What both exits together give each class, float64 [N, K], each row's sum 1.

    Args:
        early: the early exit's probabilities, float32 [N, K].
        best: the class that the server names, [N].
        probability: what it gives that class, [N].
    """
    rows = np.arange(len(early))
    own = np.maximum(early.astype(np.float64), _LEAST)
    # The likeliest of K classes has at least this.
    named = np.maximum(probability.astype(np.float64), 1 / early.shape[1])
    others = np.maximum(1 - own[rows, best], _LEAST)
    server = np.minimum(own * ((1 - named) / others)[:, None], named[:, None])
    server[rows, best] = named
    # The square root, a geometric mean: the product alone would count both as independent.
    joint = np.sqrt(own * server)
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Replies:
    """What replies to N images say: class, int64 [N], and its probability, float32 [N]."""

    best: NDArray[np.int64]
    probability: NDArray[np.float32]

    @classmethod
    def of(cls, probabilities: NDArray[np.float32]) -> Self:
        """The replies of a server that gives the classes these probabilities, float32 [N, K]."""
        return cls(probabilities.argmax(axis=1), probabilities.max(axis=1))

    def answers(self, early: NDArray[np.float32], sent_answer: SentAnswer) -> NDArray[np.int64]:
        """The class that a device answers for each image, int64 [N].

        early: its early exit's probabilities, float32 [N, K]. sent_answer: as in a bundle's manifest.
        """
        if sent_answer == "server":
            return self.best
        return np.asarray(both_exits(early, self.best, self.probability).argmax(axis=1))


@dataclass(frozen=True)
class Replied:
    """N images, were they all sent: what a device makes of the replies.

    ``early`` are the early exit's probabilities, float32 [N, K]; ``sent_answer`` as in a bundle's manifest.
    """

    early: NDArray[np.float32]
    replies: Replies
    sent_answer: SentAnswer

    @cached_property
    def both(self) -> NDArray[np.float32]:
        """What both exits give each class, float32 [N, K], as the device keeps it."""
        joint = both_exits(self.early, self.replies.best, self.replies.probability)
        return joint.astype(np.float32)

    @property
    def answers(self) -> NDArray[np.int64]:
        """The class that the device answers for each image, int64 [N]."""
        return self.replies.answers(self.early, self.sent_answer)

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Of these answers, float32 [N]: what a picture threshold is compared with."""
        if self.sent_answer == "server":
            return self.replies.probability
        return np.asarray(self.both.max(axis=1))

    def answers_after(self, pictures: Replies) -> NDArray[np.int64]:
        """The class answered for each image, int64 [N], were it sent as a picture as well."""
        return pictures.answers(self.both, self.sent_answer)
