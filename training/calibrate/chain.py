"""What a chain of parts does to labelled images: which part answers each, how often rightly, what crosses.

A part's exit answers an image that it is sure of: its confidence exceeds its threshold T_c. Else the image
goes on, and the last part answers what reaches it. Where all exits answer together, an answer is folded on
its way back to the device with what each exit that it passes said (``common/part/answer.py``).

A pair is a chain of two parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp.common import cpus
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import PartFigures, SentAnswer
from offramp.common.errors import ConfigError
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import softmax
from offramp.common.part.session import session
from offramp.training.calibrate.confidence import fit_temperature
from offramp.training.calibrate.measure import Answers

if TYPE_CHECKING:
    # It imports torch, which measuring graphs does not need.
    from offramp.training.data.datasets import Labelled

POINTS = 450
"""Sets of thresholds that `points` measures, about."""
_BATCH = 64
_LEAST = 1e-30


@dataclass(frozen=True)
class Chain:
    """All exits' answers for N images, each of which passed all parts.

    symbols: uint8 [N, …] of each crossing; logits: float32 [N, K] of each part; labels: int64 [N].
    temperatures: of each exit's softmax, one fewer than parts; sent_answer: as in a bundle's manifest.
    """

    symbols: tuple[NDArray[np.uint8], ...]
    logits: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]
    temperatures: tuple[float, ...]
    sent_answer: SentAnswer = "server"

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def probabilities(self) -> tuple[NDArray[np.float32], ...]:
        """Of each part's own answer, float32 [N, K]."""
        both = zip(self.logits, (*self.temperatures, 1.0), strict=True)
        return tuple(softmax(logits, temperature) for logits, temperature in both)

    @cached_property
    def confidence(self) -> tuple[NDArray[np.float32], ...]:
        """Of each exit, float32 [N]."""
        return tuple(each.max(axis=1) for each in self.probabilities[:-1])

    @cached_property
    def right(self) -> tuple[NDArray[np.bool_], ...]:
        """For each part where the device's answer is the label if that part answers, bool [N]."""
        if self.sent_answer == "server":
            return self.own_right
        behind = range(1, len(self.logits))
        return self.own_right[0], *(self._folded(each, 0).argmax(axis=1) == self.labels for each in behind)

    @cached_property
    def own_right(self) -> tuple[NDArray[np.bool_], ...]:
        """For each part where its own answer, not folded with others, is the label, bool [N]."""
        return tuple(each.argmax(axis=1) == self.labels for each in self.logits)

    def _folded(self, number: int, back_to: int) -> NDArray[np.floating]:
        """What part ``back_to`` makes of an answer of part ``number``, both from 0: [N, K]."""
        found: NDArray[np.floating] = self.probabilities[number]
        if self.sent_answer == "both":
            for own in reversed(self.probabilities[back_to:number]):
                # A reply has the likeliest class and its probability, as float32.
                found = both_exits(own, found.argmax(axis=1), found.max(axis=1).astype(np.float32))
        return found

    def stops(self, thresholds: Sequence[float], first: int = 0) -> NDArray[np.int64]:
        """Which part answers each image, from 0, int64 [N].

        thresholds: of each exit; first: the part at which all images begin.
        """
        found = np.full(len(self), len(self.logits) - 1)
        for number in reversed(range(first, len(thresholds))):
            found[self.confidence[number] > thresholds[number]] = number
        return found

    def accuracy(self, thresholds: Sequence[float]) -> float:
        """Of the answers that the device gets."""
        return float(np.choose(self.stops(thresholds), self.right).mean())

    def of_first(self, thresholds: Sequence[float]) -> Answers:
        """As the first part sees it: its own exit, and the answers of all that is behind it.

        thresholds: of each exit; the first one's is not used.
        """
        final = self.logits[-1]
        if len(self.logits) > 2:
            stops = self.stops(thresholds, first=1)
            final = np.empty_like(final)
            for number in range(1, len(self.logits)):
                own = stops == number
                # Their softmax is what was folded.
                final[own] = np.log(np.maximum(self._folded(number, 1)[own], _LEAST))
        return Answers(
            self.symbols[0], self.logits[0], final, self.labels, self.temperatures[0], self.sent_answer
        )

    def figures(
        self, thresholds: Sequence[float], payloads: Sequence[NDArray[np.int64]], in_float: Sequence[float]
    ) -> list[PartFigures]:
        """Of each part, every exit at its threshold.

        payloads: bytes of each image at each crossing, int64 [N]; in_float: accuracy of each part in float.
        """
        stops, found = self.stops(thresholds), []
        for number, accuracy_float in enumerate(in_float):
            own = stops == number
            sent = payloads[number] if number < len(payloads) else np.zeros(len(self), np.int64)
            found.append(
                PartFigures(
                    accuracy=float(self.own_right[number].mean()),
                    accuracy_float=accuracy_float,
                    answered=float(own.mean()),
                    right=float((own & self.right[number]).mean()),
                    payload_bytes_mean=float(sent.mean()),
                    sent_bytes_mean=float(np.where(stops > number, sent, 0).mean()),
                )
            )
        return found


@dataclass(frozen=True)
class Point:
    """A chain at one set of thresholds: accuracy, the share each part answers, mean bytes of each hop."""

    thresholds: tuple[float, ...]
    accuracy: float
    answered: tuple[float, ...]
    sent_bytes_mean: tuple[float, ...]


def points(chain: Chain, payloads: Sequence[NDArray[np.int64]], own: Sequence[float]) -> list[Point]:
    """The chain at thresholds from all over, and at its ``own``: what a plan chooses among.

    payloads: bytes of each image at each crossing, int64 [N].
    """
    exits = len(chain.temperatures)
    each = max(2, int(POINTS ** (1 / exits)))
    levels = [round(float(at), 2) for at in np.linspace(0, 1, each)]
    found = []
    for thresholds in sorted({*itertools.product(levels, repeat=exits), tuple(own)}):
        stops = chain.stops(thresholds)
        found.append(
            Point(
                thresholds,
                float(np.choose(stops, chain.right).mean()),
                tuple(float((stops == number).mean()) for number in range(exits + 1)),
                tuple(float(np.where(stops > n, of, 0).mean()) for n, of in enumerate(payloads)),
            )
        )
    return found


def require_two(bundle: Bundle, command: str) -> None:
    """Raise ConfigError for a chain that a command of pairs would take for one."""
    if (parts := len(bundle.manifest.parts)) != 2:
        raise ConfigError(
            f"{bundle.path}: has {parts} parts; {command} expects 2 (of a chain `offramp split` chooses all "
            "thresholds together)"
        )


def run_parts(graphs: Sequence[bytes], data: Labelled, threads: int | None = None) -> Chain:
    """Answers of the exported graphs, as ONNX Runtime computes them; temperatures are 1.

    threads: how many batches run at a time, each on one thread; None: one for each core.
    """
    parts = [session(each, threads=1) for each in graphs]
    outputs = [{each.name: tuple(each.shape[1:]) for each in part.get_outputs()} for part in parts]
    sent = [next((name for name in each if name.endswith("symbols")), "") for each in outputs]
    # Filled in place: the symbols of a data set are what takes the memory here.
    symbols = [
        np.empty((len(data), *map(int, shapes[name])), np.uint8)
        for shapes, name in zip(outputs[:-1], sent, strict=False)
    ]
    logits = [np.empty((len(data), int(shapes["logits"][0])), np.float32) for shapes in outputs]
    taken = [part.get_inputs()[0].name for part in parts]

    def answer(start: int) -> None:
        own = slice(start, start + _BATCH)
        x = data.images[own]
        for number, part in enumerate(parts[:-1]):
            x, logits[number][own] = part.run([sent[number], "logits"], {taken[number]: x})
            symbols[number][own] = x
        (logits[-1][own],) = parts[-1].run(["logits"], {taken[-1]: x})

    with ThreadPoolExecutor(threads or cpus.available()) as pool:
        list(pool.map(answer, range(0, len(data), _BATCH)))
    return Chain(tuple(symbols), tuple(logits), data.labels, (1.0,) * (len(parts) - 1))


def with_temperatures(chain: Chain) -> Chain:
    """The same with temperatures that make each exit's confidence what it is worth; held-out images."""
    found = (fit_temperature(each, chain.labels) for each in chain.logits[:-1])
    return replace(chain, temperatures=tuple(min(1000.0, max(0.001, each)) for each in found))
