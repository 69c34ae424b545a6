"""Several parts of a chain in one process: all that is left of it, where a server has no upstream.

    frame → decode → batch → part k ── sure ───────────────────▶ reply
                               └────── unsure → part k + 1 → … ─▶ reply

The answers are those of a chain of gateways with these exits' thresholds: ``common/part/chain.py`` has the
rule. A device whose gateway is gone may ask for the gateway's part here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram

from offramp.common.metrics import timed
from offramp.common.part.chain import Answered, run_chain, thresholds_of
from offramp.common.part.engine import Engine
from offramp.server.batch import Answers, Job
from offramp.server.metrics import ServerMetrics


class Rest:
    """Part ``first`` and all behind it. Its calls come from several threads at once.

    threshold: of the first part's exit; None: the bundle's. Later exits have the bundle's.
    """

    def __init__(self, engine: Engine, first: int, threshold: float | None = None) -> None:
        self.first = first
        self.last = len(engine.manifest.parts)
        self._engine = engine
        self._thresholds = thresholds_of(engine.manifest, first)
        if threshold is not None:
            self._thresholds[0] = threshold

    def tail(self, symbols: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """See ``batch.Tail``; for measuring: all parts run, as for inputs that no exit is sure of."""
        for number in range(self.first, self.last):
            following, _ = self._engine.part(number, symbols)
            assert following is not None
            symbols = following
        return self._engine.tail(symbols)

    def run(self, symbols: NDArray[np.uint8]) -> Answered:
        """The answers to symbols, uint8 [N, …], of the crossing before the first part."""
        return run_chain(self._engine, symbols, self._thresholds, first=self.first)


class Finish:
    """Answers every frame here, by whichever part is sure; in the place of ``forward.Forward``."""

    def __init__(self, rest: Rest, metrics: ServerMetrics) -> None:
        self._rest = rest
        numbers = range(rest.first, rest.last + 1)
        self._counts = {number: metrics.answered_by_part.labels(str(number)) for number in numbers}

    def check_room(self) -> None:
        """See ``batch.Onward``: nothing goes on."""

    def infer(self, symbols: NDArray[np.uint8], run_seconds: Histogram) -> Answers:
        """Run the parts; on a worker's thread."""
        with timed(run_seconds):
            found = self._rest.run(symbols)
        return Answers(found.best.tolist(), found.probability.tolist(), parts=found.part.tolist())

    def deliver(self, batch: Sequence[Job], answers: Answers) -> None:
        """Answer each job, and say by which part."""
        assert answers.parts is not None
        said = zip(batch, answers.best, answers.probabilities, answers.parts, strict=True)
        for job, best, probability, part in said:
            if not job.owner.gone:
                self._counts[part].inc()
            job.owner.answered(job, best, probability, 0 if part == self._rest.first else part)
