"""Running graphs: ONNX Runtime behind two typed calls, one for each half of the network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import offramp.common.libraries  # noqa: F401 - before onnxruntime, whose telemetry it turns off
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import HEAD, TAIL, Manifest
from offramp.common.errors import BundleError
from offramp.common.part import trial
from offramp.common.part.providers import CPU, Placement, Providers, in_trial
from offramp.common.part.session import Graph, Port, require_built_in


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Class probabilities, float32 [N, K], of logits [N, K] divided by the temperature."""
    scaled = logits / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def _input_port(manifest: Manifest) -> dict[str, Port]:
    """The first part's input: ``image`` for a picture, ``tensor`` for a tensor."""
    taken = manifest.input
    kind = "tensor(uint8)" if taken.dtype == "uint8" else "tensor(float)"
    return {"image" if taken.kind == "picture" else "tensor": (kind, taken.shape)}


def _subjects(bundle: Bundle) -> list[trial.Subject]:
    """Each part's graph with what the manifest says of its inputs and outputs."""
    manifest, found = bundle.manifest, []
    logits: Port = ("tensor(float)", (len(manifest.classes),))
    inputs = _input_port(manifest)
    for number, (part, graph) in enumerate(zip(manifest.parts, bundle.graphs, strict=True)):
        outputs: dict[str, Port] = {}
        following: dict[str, Port] = {}
        if number < len(manifest.crossings):
            symbols: Port = ("tensor(uint8)", manifest.crossings[number].shape)
            # A graph's input and output cannot have one name.
            outputs["next_symbols" if "symbols" in inputs else "symbols"] = symbols
            following["symbols"] = symbols
        if part.exit is not None or not outputs:
            outputs["logits"] = logits
        found.append(trial.Subject(part.graph, graph, inputs, outputs))
        inputs = following
    return found


_on_cpu_only: dict[tuple[bytes, str, Providers], str] = {}
"""Graphs, by bundle and name, that a trial passed on the CPU but not on these providers, and why not."""


class Engine:
    """The parts of a bundle. Each graph is loaded at its first use, or by ``load``.

    Before that a child process tries what it costs (``trial.py``): 0.1 s, once for a graph in a process.

    threads: how many threads one call uses inside ONNX Runtime. providers: what runs the graphs, in order of
    preference; where a graph does not run on them, and ``cpu`` is one of them, it runs on the CPU.
    cancelled: looked at while a child runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 1,
        *,
        providers: Providers = CPU,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.bundle = bundle
        self._path = bundle.path
        self._threads = threads
        self._asked = providers
        self._cancelled = cancelled
        manifest = bundle.manifest
        self.manifest = manifest
        self._temperature = manifest.temperature
        self._subjects = dict(zip(self.names(manifest), _subjects(bundle), strict=True))
        self._graphs: dict[str, Graph] = {}

    @staticmethod
    def names(manifest: Manifest) -> list[str]:
        """What ``load`` calls the parts: ``HEAD`` the first, ``TAIL`` the last, others by number."""
        between = [f"part {number}" for number in range(2, len(manifest.parts))]
        return [HEAD, *between, TAIL]

    def load(self, *names: str) -> None:
        """Load some of its parts now, by their ``names``.

        Raises BundleError if one is not what the manifest says, or costs too much; ConfigError where there is
        none of the providers; StoppedError if cancelled.
        """
        missing = [name for name in names if name not in self._graphs]
        if missing:
            self.try_batches(*names)
        for name in missing:
            each = self._subjects[name]
            with self._named():
                self._graphs[name] = self._loaded(each)

    def _loaded(self, subject: trial.Subject) -> Graph:
        def graph(providers: Providers) -> Graph:
            return Graph(
                subject.name, subject.data, self._threads, subject.inputs, subject.outputs, providers
            )

        if (reason := _on_cpu_only.get(self._key(subject.name))) is None:
            try:
                loaded = graph(self._asked)
                if in_trial(self._asked)[1] is not None:
                    # The child has not tried these providers.
                    loaded.try_batch(1)
                    loaded.try_batch(2)
                return loaded
            except BundleError as error:
                if not self._may_fall_back:
                    raise
                reason = str(error)
        loaded = graph(CPU)
        names = tuple(each.name for each in self._asked)
        loaded.placement = replace(loaded.placement, asked=names, left_out=((names[0], reason),))
        return loaded

    def try_batches(self, *names: str, batches: Sequence[int] = (), needed: bool = False) -> int:
        """The largest of these batches that a child process can run; see ``trial.require``."""
        require_built_in(self._asked)
        subjects = [self._subjects[name] for name in names]
        providers, _ = in_trial(self._asked)
        if any(self._key(name) in _on_cpu_only for name in names):
            providers = CPU

        def largest(providers: Providers) -> int:
            return trial.require(
                subjects,
                self._threads,
                batches=batches,
                needed=needed,
                providers=providers,
                cancelled=self._cancelled,
            )

        with self._named():
            try:
                return largest(providers)
            except BundleError as error:
                if providers == CPU or not self._may_fall_back:
                    raise
                found = largest(CPU)
                _on_cpu_only.update({self._key(name): str(error) for name in names})
                return found

    @property
    def _may_fall_back(self) -> bool:
        return self._asked != CPU and self._asked[-1] in CPU

    def _key(self, name: str) -> tuple[bytes, str, Providers]:
        return self.bundle.digest, name, self._asked

    @property
    def placements(self) -> dict[str, Placement]:
        """What runs each graph that is loaded, by its file's name."""
        return {name: graph.placement for name, graph in self._graphs.items()}

    def log_placements(self, log: logging.Logger, *names: str) -> None:
        """Say what runs these graphs, which are loaded, where that is not simply the CPU."""
        if self._asked == CPU:
            return
        for name in names:
            placement = self._graphs[name].placement
            if placement.warning is not None:
                log.warning("%s: %s: %s", self._path, name, placement.warning)
            else:
                log.info("%s: %s: runs on %s", self._path, name, placement)
        if (untried := in_trial(self._asked)[1]) is not None:
            log.info("%s: %s", self._path, untried)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A server has several bundles: errors name theirs."""
        try:
            yield
        except BundleError as error:
            raise type(error)(f"{self._path}: {error}") from None

    def name(self, number: int) -> str:
        """What ``load`` calls part 1, 2, …. Raises BundleError for one that the bundle does not have."""
        names = self.names(self.manifest)
        if not 1 <= number <= len(names):
            raise BundleError(f"{self._path}: part {number}: has parts 1 … {len(names)}")
        return names[number - 1]

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

    def head(self, images: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Inputs [N, …], as the manifest says → symbols, uint8 [N, …], and probabilities, float32 [N, K]."""
        symbols, logits = self._graph(HEAD).run(images)
        probabilities = softmax(logits.astype(np.float32, copy=False), self._temperature)
        return symbols.astype(np.uint8, copy=False), probabilities

    def tail(self, symbols: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Symbols, uint8 [N, …] → class probabilities, float32 [N, K]."""
        (logits,) = self._graph(TAIL).run(symbols)
        return softmax(logits.astype(np.float32, copy=False))

    def part(
        self, number: int, inputs: NDArray[Any]
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.float32] | None]:
        """Part 1, 2, … of the chain: inputs [N, …] → symbols, uint8 [N, …], probabilities, float32 [N, K].

        None for the symbols of the last part, and for the probabilities of one without an exit. Raises
        BundleError for a part that the bundle does not have.
        """
        results = list(self._graph(self.name(number)).run(inputs))
        part = self.manifest.parts[number - 1]
        symbols: NDArray[np.uint8] | None = None
        probabilities: NDArray[np.float32] | None = None
        if number <= len(self.manifest.crossings):
            symbols = results.pop(0).astype(np.uint8, copy=False)
        if results:
            temperature = 1.0 if part.exit is None else part.exit.temperature
            probabilities = softmax(results[0].astype(np.float32, copy=False), temperature)
        return symbols, probabilities
