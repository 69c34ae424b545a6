"""How a tail runs best on this machine: measured at start-up, before the first frame.

Two layouts are compared: one worker whose runs use all threads, and one worker a thread. For each the batch
is doubled until that gains nothing. What flags fix is not measured.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import ActivationCodec
from offramp.common.errors import BundleError, ConfigError, StoppedError
from offramp.common.part.engine import Engine
from offramp.common.part.providers import CPU, Providers
from offramp.server.batch import Tail

log = logging.getLogger("offramp.cloud-server")

BATCH_MAX = 64
"""The largest batch that is tried."""
SATURATED = 0.98
"""The smallest batch with this share of the best throughput is taken. A larger one adds latency only where
frames wait for the tail anyway."""
LAYOUT_GAIN = 1.05
"""One worker a thread has to gain this much: a single frame is answered later than by all threads."""
POINT_SECONDS = 0.01
POINT_ROUNDS = 3
"""A batch size is measured this often for this long, at least; what the fastest round says is kept, since
whatever else runs on the machine only ever takes away."""
BUDGET_SECONDS = 1.5
"""When to stop trying larger batches of one layout."""
BATCH_SECONDS = 2.5e-4
"""What a batch costs beside the tail: there and back between threads, a message of replies to each stream.
Larger batches pay even where the tail gains nothing.

`offramp bench serve` measures it; research/notes/2026-11-24-server-load.md has its figures."""
TIMER_SECONDS = 1e-3
"""The event loop's timers are no finer: a shorter wait would end at once."""
INLINE_SECONDS = 2.5e-4
"""Activations that decode in less are decoded on the event loop: to pass them on to another thread and back
takes 50 µs and more, and the compiled coder would keep the loop from running all the same."""

Curve = dict[int, float]
"""Batch size → activations a second."""
Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Plan:
    """Workers, the threads of each, and how they batch."""

    workers: int
    threads: int
    max_batch: int
    max_wait: float
    """Seconds."""
    curve: Curve
    """What was measured of this layout; empty where flags fixed everything."""

    @property
    def best(self) -> float:
        """Activations a second at the best batch; 0 where that was not measured."""
        return max(self.curve.values(), default=0.0)

    def __str__(self) -> str:
        measured = ", ".join(f"{batch}: {rate:.0f}/s" for batch, rate in self.curve.items())
        return (
            f"{self.workers} x {self.threads} threads, batches of {self.max_batch}, "
            f"{self.max_wait * 1e3:.1f} ms wait" + (f" (batch {measured})" if measured else "")
        )


def make_plan(
    bundle: Bundle,
    threads: int,
    *,
    workers: int | None = None,
    max_batch: int | None = None,
    max_wait: float | None = None,
    providers: Providers = CPU,
    cancelled: Cancelled = lambda: False,
    parts: Sequence[int] = (2,),
    tail_of: Callable[[Engine], Tail] = lambda engine: engine,
) -> tuple[Plan, Engine]:
    """A plan for ``threads`` threads, and these parts of the bundle, loaded, as it wants them.

    None: choose by measurement. tail_of: what runs the parts, from the first on. Raises BundleError where
    one does not run, ConfigError where there are not as many threads, StoppedError if cancelled.
    """

    def engine_of(threads: int) -> Engine:
        return Engine(bundle, threads, providers=providers, cancelled=cancelled)

    first = engine_of(threads)
    names = tuple(map(first.name, parts))
    largest = largest_batch(first, names, max_batch)
    layouts = [workers] if workers is not None else sorted({1, threads})
    measure = len(layouts) > 1 or max_batch is None or max_wait is None
    best: tuple[Plan, Engine] | None = None
    for count in layouts:
        try:
            engine = engine_of(threads_each(threads, count))
            engine.load(*names)
            shape = bundle.manifest.crossings[parts[0] - 2].shape
            curve: Curve = {}
            if measure:
                curve = batch_curve(
                    tail_of(engine), shape, count, max_batch, largest=largest, cancelled=cancelled
                )
        except ConfigError as error:  # no threads left for it
            if best is None:
                raise
            log.warning("%d runs of the tail at once were not tried: %s", count, error)
            continue
        plan = _plan(curve, threads, count, max_batch, max_wait)
        if best is None or plan.best > LAYOUT_GAIN * best[0].best:
            best = plan, engine
    assert best is not None
    return best


def largest_batch(engine: Engine, graphs: tuple[str, ...], max_batch: int | None) -> int:
    """The largest batch that a plan may try of these graphs, by trying them in a child process.

    Raises BundleError where they do not run, or where ``max_batch`` is given and takes too much.
    """
    return engine.try_batches(*graphs, batches=_sizes(max_batch), needed=max_batch is not None)


def _sizes(max_batch: int | None) -> list[int]:
    return [1 << i for i in range(BATCH_MAX.bit_length())] if max_batch is None else sorted({1, max_batch})


def threads_each(threads: int, workers: int) -> int:
    """How many of the threads one of the workers has."""
    return max(1, threads // workers)


def plan_pictures(
    whole: Tail,
    sides: tuple[int, int],
    threads: int,
    workers: int,
    *,
    max_batch: int | None = None,
    max_wait: float | None = None,
    largest: int = BATCH_MAX,
    cancelled: Cancelled = lambda: False,
) -> Plan:
    """How a whole model batches pictures of this height and width, with the workers that share the threads.

    Raises BundleError where it does not run.
    """
    measure = max_batch is None or max_wait is None
    shape = (3, *sides)
    curve = (
        batch_curve(whole, shape, workers, max_batch, largest=largest, cancelled=cancelled) if measure else {}
    )
    return _plan(curve, threads, workers, max_batch, max_wait)


def _plan(curve: Curve, threads: int, workers: int, max_batch: int | None, max_wait: float | None) -> Plan:
    return Plan(
        workers=workers,
        threads=threads_each(threads, workers),
        max_batch=max_batch or saturation(curve, workers),
        max_wait=wait_for_company(curve, workers) if max_wait is None else max_wait,
        curve=curve,
    )


def batch_curve(
    tail: Tail,
    shape: tuple[int, ...],
    workers: int,
    max_batch: int | None = None,
    *,
    largest: int = BATCH_MAX,
    cancelled: Cancelled = lambda: False,
) -> Curve:
    """Throughput of ``workers`` threads that run the tail at once, for batches of 1, 2, 4, …

    shape: of one input, uint8. largest: no batch beyond; with ``max_batch`` only 1 and that. Raises
    BundleError where the tail does not run, ConfigError where there are not as many threads, StoppedError if
    cancelled.
    """
    sizes = _sizes(max_batch) if max_batch is not None else [s for s in _sizes(None) if s <= largest]
    curve: Curve = {}
    end = time.perf_counter() + BUDGET_SECONDS
    for size in sizes:
        rates: list[float] = []
        try:
            # Of a slow one, one round is enough.
            while len(rates) < POINT_ROUNDS and not (rates and time.perf_counter() > end):
                rates.append(_throughput(tail, shape, workers, size, cancelled))
            curve[size] = max(rates)
        except (ConfigError, StoppedError):
            raise
        except Exception as error:  # ONNX Runtime has no common base class; mostly it is out of memory
            if size == 1:
                raise BundleError(f"the tail does not run: {type(error).__name__}") from None
            break
        if max_batch is None and (time.perf_counter() > end or _flat(_in_service(curve, workers))):
            break
    return curve


def _flat(curve: Curve) -> bool:
    """Whether doubling twice has gained nothing."""
    *before, one, two = [0.0, *curve.values()]
    return len(before) > 1 and max(one, two) < max(before) / SATURATED


def _throughput(
    tail: Tail, shape: tuple[int, ...], workers: int, size: int, cancelled: Cancelled = lambda: False
) -> float:
    batch = np.zeros((size, *shape), np.uint8)
    runs, spans, failures = [0] * workers, list[tuple[float, float]](), list[Exception]()
    gate = threading.Barrier(workers)

    def work(index: int) -> None:
        try:
            tail.tail(batch)  # allocates
            gate.wait()
            start = now = time.perf_counter()
            while runs[index] < 2 or now < start + POINT_SECONDS:
                if cancelled():
                    raise StoppedError("stopped while a bundle was loaded")
                tail.tail(batch)
                runs[index] += 1
                now = time.perf_counter()
            spans.append((start, now))
        except Exception as error:
            failures.append(error)
            gate.abort()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(workers)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        # Those that run wait at the gate for the rest, and the process's end for them.
        gate.abort()
        raise ConfigError(
            f"{workers} runs of the tail at once need a thread each, and no more can be started: expected "
            "fewer --threads or --workers, or a higher limit on processes (pids_limit, ulimit -u)"
        ) from None
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if failures:
        raise failures[0]
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    return sum(runs) * size / (last - first)


def _in_service(curve: Curve, workers: int) -> Curve:
    """The curve with what a batch costs beside the tail."""
    return {batch: 1 / (1 / rate + BATCH_SECONDS / (batch * workers)) for batch, rate in curve.items()}


def saturation(curve: Curve, workers: int) -> int:
    """The smallest batch at which throughput is as good as it gets, all that a batch costs included."""
    rates = _in_service(curve, workers)
    best = max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= SATURATED * best)


def wait_for_company(curve: Curve, workers: int) -> float:
    """Seconds that a first frame waits for others: no longer than what running alone would waste.

    That is a lone activation's time less its share of the best batch's, so waiting never costs more than it
    can save; and nothing where the event loop could not keep it.
    """
    alone, best = workers / curve[1], workers / max(curve.values())
    wasted = alone - best
    return wasted if wasted >= TIMER_SECONDS else 0.0


def decodes_inline(codec: ActivationCodec) -> bool:
    """Whether activations are decoded on the event loop, by measuring one."""
    symbols = (np.arange(codec.raw_bytes) % 3).astype(np.uint8).reshape(codec.shape)
    coded = codec.encode(symbols)
    fastest = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        codec.decode(*coded)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest < INLINE_SECONDS
