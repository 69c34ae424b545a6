"""Timing that a busy machine disturbs little: one core, interleaved rounds, processor time.

Each round runs every function once, for the same time and in an order of its own, so that what slows the
machine down slows all of them; two functions are compared within a round, and the median over rounds is
what counts. Processor time, not the wall's, leaves out the time in which another process had the core.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from offramp.common.codec.activation import coder_kind

SLOW_ROUNDS = 3
"""Rounds of a function of which a single call takes longer than its share."""


@contextmanager
def one_core() -> Iterator[int]:
    """Keep this process on one core while the block runs; yields its number. Garbage is not collected."""
    before = os.sched_getaffinity(0)
    core, collecting = max(before), gc.isenabled()
    os.sched_setaffinity(0, {core})
    gc.disable()
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)
        if collecting:
            gc.enable()


def environment(packages: Sequence[str], core: int) -> dict[str, Any]:
    """What a measurement depends on: processor, versions, core and load."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "core": core,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "coder": coder_kind(),
        "packages": {package: _version(package) for package in packages},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass
class Timed:
    """A function and the inputs that it is called with in turn."""

    function: Callable[[bytes], bytes]
    inputs: Sequence[bytes]
    rates: list[float] = field(default_factory=list)
    """Calls a second of each round in which it ran; round ``i`` is the same for all."""
    _next: int = 0

    def run(self, calls: int) -> float:
        """Seconds that this many calls take."""
        count = len(self.inputs)
        chosen = [self.inputs[(self._next + i) % count] for i in range(calls)]
        self._next = (self._next + calls) % count
        function = self.function
        start = time.thread_time_ns()
        for each in chosen:
            function(each)
        return max(time.thread_time_ns() - start, 1) * 1e-9

    @property
    def best(self) -> float:
        """Calls a second in the best round."""
        return max(self.rates)

    @property
    def median(self) -> float:
        """Calls a second in the median round."""
        return float(np.median(self.rates))

    def speed_of(self, other: Timed) -> float:
        """How many times as fast as another it is: the median over the rounds in which both ran."""
        return float(np.median([a / b for a, b in zip(self.rates, other.rates, strict=False)]))


def interleave(functions: Sequence[Timed], seconds: float, rounds: int, seed: int = 0) -> None:
    """Fill in the rates of all functions, in about ``seconds`` and at least one call a round of each."""
    share = seconds / (rounds * max(1, len(functions)))
    calls = {}
    for index, each in enumerate(functions):
        each.run(1)
        took, tried = each.run(2), 2
        while took < share / 4:
            tried *= 2
            took = each.run(tried)
        calls[index] = max(1, round(share * tried / took))
    order = list(calls)
    rng = random.Random(seed)
    for number in range(rounds):
        rng.shuffle(order)
        for index in order:
            each = functions[index]
            if calls[index] > 1 or number < SLOW_ROUNDS:
                each.rates.append(calls[index] / each.run(calls[index]))
