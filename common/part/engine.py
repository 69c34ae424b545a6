"""Running a graph: ONNX Runtime behind two typed calls, one for each half of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

import offramp.common.libraries  # noqa: F401 - before onnxruntime, whose telemetry it turns off
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import HEAD, TAIL
from offramp.common.errors import BundleError
from offramp.common.part import trial
from offramp.common.part.session import Graph, Port


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Class probabilities, float32 [N, K], of logits [N, K] divided by the temperature."""
    scaled = logits / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


class Engine:
    """Both halves of a bundle. Each graph is loaded at its first use, or by ``load``.

    Before that a child process tries what it costs (``trial.py``): 0.1 s, once for a graph in a process.

    threads: how many threads one call uses inside ONNX Runtime. cancelled: looked at while a child runs.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 1, *, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._path = bundle.path
        self._threads = threads
        self._cancelled = cancelled
        manifest = bundle.manifest
        self._temperature = manifest.temperature
        image = manifest.preprocessing
        pixels: Port = ("tensor(uint8)", (3, image.height, image.width))
        symbols: Port = ("tensor(uint8)", manifest.activation.shape)
        logits: Port = ("tensor(float)", (len(manifest.classes),))
        self._subjects = {
            HEAD: trial.Subject(HEAD, bundle.head, {"image": pixels}, {"symbols": symbols, "logits": logits}),
            TAIL: trial.Subject(TAIL, bundle.tail, {"symbols": symbols}, {"logits": logits}),
        }
        self._graphs: dict[str, Graph] = {}

    def load(self, *names: str) -> None:
        """Load ``HEAD``, ``TAIL`` or both now.

        Raises BundleError if one is not what the manifest says, or costs too much; StoppedError if cancelled.
        """
        missing = [self._subjects[name] for name in names if name not in self._graphs]
        if missing:
            self.try_batches(*names)
        for each in missing:
            with self._named():
                graph = Graph(each.name, each.data, self._threads, each.inputs, each.outputs)
            self._graphs[each.name] = graph

    def try_batches(self, *names: str, batches: Sequence[int] = (), needed: bool = False) -> int:
        """The largest of these batches that a child process can run; see ``trial.require``."""
        subjects = [self._subjects[name] for name in names]
        with self._named():
            return trial.require(
                subjects, self._threads, batches=batches, needed=needed, cancelled=self._cancelled
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A server has several bundles: errors name theirs."""
        try:
            yield
        except BundleError as error:
            raise type(error)(f"{self._path}: {error}") from None

    def load_head(self) -> None:
        """Load the head now; see ``load``."""
        self.load(HEAD)

    def load_tail(self) -> None:
        """Load the tail now; see ``load``."""
        self.load(TAIL)

    def _graph(self, name: str) -> Graph:
        try:
            return self._graphs[name]
        except KeyError:
            self.load(name)
            return self._graphs[name]

    def head(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Images, uint8 [N, 3, H, W] → symbols, uint8 [N, C, h, w], and probabilities, float32 [N, K]."""
        symbols, logits = self._graph(HEAD).run(images)
        probabilities = softmax(logits.astype(np.float32, copy=False), self._temperature)
        return symbols.astype(np.uint8, copy=False), probabilities

    def tail(self, symbols: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Symbols, uint8 [N, C, h, w] → class probabilities, float32 [N, K]."""
        (logits,) = self._graph(TAIL).run(symbols)
        return softmax(logits.astype(np.float32, copy=False))
