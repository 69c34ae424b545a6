"""What the exported graphs do to labelled images: the figures in a bundle's manifest, and its default
threshold.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp.common import cpus
from offramp.common.bundle.manifest import SentAnswer
from offramp.common.part.answer import Replied, Replies
from offramp.common.part.engine import softmax
from offramp.common.part.session import session
from offramp.training.calibrate.frontier import THRESHOLDS

if TYPE_CHECKING:
    # They import torch, which measuring graphs does not need.
    from offramp.training.data.datasets import Labelled
    from offramp.training.export import Graphs

_BATCH = 64


@dataclass(frozen=True)
class Answers:
    """Both exits' answers for N images.

    ``symbols`` uint8 [N, C, H, W] (empty [N, 0] for a float model), ``early`` and ``final`` float32 [N, K]
    logits, ``labels`` int64 [N], ``temperature`` of the early exit's softmax, ``sent_answer`` as in a
    bundle's manifest.
    """

    symbols: NDArray[np.uint8]
    early: NDArray[np.float32]
    final: NDArray[np.float32]
    labels: NDArray[np.int64]
    temperature: float = 1.0
    sent_answer: SentAnswer = "server"

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """The early exit's largest class probability, float32 [N], as the device computes it."""
        return np.asarray(softmax(self.early, self.temperature).max(axis=1))

    @cached_property
    def early_right(self) -> NDArray[np.bool_]:
        """Where the early exit names the label, bool [N]."""
        return np.asarray(self.early.argmax(axis=1) == self.labels)

    @cached_property
    def final_right(self) -> NDArray[np.bool_]:
        """Where the final exit names the label, bool [N]."""
        return np.asarray(self.final.argmax(axis=1) == self.labels)

    @cached_property
    def agree(self) -> NDArray[np.bool_]:
        """Where both exits name the same class, bool [N]."""
        return np.asarray(self.early.argmax(axis=1) == self.final.argmax(axis=1))

    @cached_property
    def replied(self) -> Replied:
        """The answers of both exits together, were all images sent."""
        early = softmax(self.early, self.temperature)
        return Replied(early, Replies.of(softmax(self.final)), self.sent_answer)

    @cached_property
    def sent_right(self) -> NDArray[np.bool_]:
        """Where the answer to the image, were it sent, is the label, bool [N]."""
        if self.sent_answer == "server":
            return self.final_right
        return np.asarray(self.replied.answers == self.labels)

    def right_after(self, pictures: Replies) -> NDArray[np.bool_]:
        """Where the answer to the image, were it sent as a picture as well, is the label, bool [N].

        pictures: what a whole model answers to them.
        """
        return np.asarray(self.replied.answers_after(pictures) == self.labels)

    def exits(self, threshold: float) -> NDArray[np.bool_]:
        """Which images exit early: those whose confidence exceeds T_c (Sec. III-B); at 1, none."""
        return self.confidence > threshold

    def right(self, threshold: float) -> NDArray[np.bool_]:
        """Where the two exits together name the label at a confidence threshold T_c, bool [N]."""
        return np.where(self.exits(threshold), self.early_right, self.sent_right)

    def accuracy(self, threshold: float) -> float:
        """Top-1 accuracy of the two exits together at a confidence threshold T_c."""
        return float(self.right(threshold).mean())

    @property
    def best_accuracy(self) -> float:
        """The best `accuracy` that any threshold on a grid of hundredths has."""
        return max(self.accuracy(threshold) for threshold in THRESHOLDS)

    def take(self, index: NDArray[np.int64]) -> Answers:
        """The answers for the images at these positions."""
        return replace(
            self,
            symbols=self.symbols[index],
            early=self.early[index],
            final=self.final[index],
            labels=self.labels[index],
        )


def run_graphs(graphs: Graphs, data: Labelled, threads: int | None = None) -> Answers:
    """Answers of the exported graphs, as ONNX Runtime computes them.

    threads: how many batches run at a time, each on one thread; None: one for each core.
    """
    head, tail = session(graphs.head, threads=1), session(graphs.tail, threads=1)
    # Filled in place: the symbols of a data set are what takes the memory here.
    symbols = np.empty((len(data), *(int(side) for side in head.get_outputs()[0].shape[1:])), np.uint8)
    early, final = (np.empty((len(data), head.get_outputs()[1].shape[1]), np.float32) for _ in range(2))

    taken = head.get_inputs()[0].name

    def answer(start: int) -> None:
        own = slice(start, start + _BATCH)
        symbols[own], early[own] = head.run(["symbols", "logits"], {taken: data.images[own]})
        (final[own],) = tail.run(["logits"], {"symbols": symbols[own]})

    with ThreadPoolExecutor(threads or cpus.available()) as pool:
        list(pool.map(answer, range(0, len(data), _BATCH)))
    return Answers(symbols, early, final, data.labels)


def with_better_answer(answers: Answers) -> Answers:
    """The same with the ``sent_answer`` that is more often right at its best T_c; of equals, the server's.

    Choose on validation images.
    """
    server, both = replace(answers, sent_answer="server"), replace(answers, sent_answer="both")
    return both if both.best_accuracy > server.best_accuracy else server


def lowest_threshold(answers: Answers, drop: float) -> float:
    """The lowest T_c on a grid of hundredths whose accuracy is at most ``drop`` below the best that any has.

    Both exits together can be more often right than the final one alone, which can be no better than the
    early one: to be measured by it would then mean to send nothing.
    Choose on validation images: on test images the figures at it would be too good.
    """
    # The slack is for the means' last bit.
    floor = answers.best_accuracy - drop - 1e-12
    return next(t for t in THRESHOLDS if answers.accuracy(t) >= floor)
