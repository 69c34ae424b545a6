"""The bundles that a server has loaded, and how they come and go while it serves.

Rules:
- A stream keeps the bundle that it was opened with. A bundle that is retired answers what its streams still
  send, until they have gone; nobody new is let in.
- A change on disk is loaded beside what serves. What cannot be loaded changes nothing; it is told once, and
  tried again when it changes once more, or at SIGHUP.
- Where nothing loadable is left on disk, what serves goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.common import transport
from offramp.common.bundle import MANIFEST, Bundle, load_bundle
from offramp.common.codec import ActivationCodec
from offramp.common.errors import BundleError, OfframpError
from offramp.common.signature import TrustedKeys
from offramp.server.batch import Batcher, Lane, Shape, Tail
from offramp.server.metrics import ServerMetrics
from offramp.server.plan import Plan, decodes_inline, make_plan

log = logging.getLogger("offramp.cloud-server")

State = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of change of each file in a bundle's directory."""
Retire = Callable[["Served"], Awaitable[None]]


@dataclass(eq=False)
class Served:
    """One loaded bundle."""

    bundle: Bundle
    codec: ActivationCodec
    lane: Lane
    decode_inline: bool
    message_bytes: int


@dataclass(frozen=True)
class Loaded:
    """A bundle that is ready to serve, and how."""

    bundle: Bundle
    tail: Tail
    plan: Plan


class Catalog:
    """Loaded bundles by digest."""

    def __init__(self, batcher: Batcher, metrics: ServerMetrics) -> None:
        self._batcher = batcher
        self._metrics = metrics
        self._served: dict[bytes, Served] = {}

    def all(self) -> list[Served]:
        """Every bundle that new streams may ask for."""
        return list(self._served.values())

    def digests(self) -> list[bytes]:
        """Their digests."""
        return list(self._served)

    def get(self, digest: bytes) -> Served:
        """The bundle with this digest. Raises KeyError."""
        return self._served[digest]

    def add(self, loaded: Loaded) -> Served:
        """Take a bundle into service."""
        bundle, plan = loaded.bundle, loaded.plan
        rate = plan.best / plan.workers
        shape = Shape(plan.max_batch, plan.max_wait, 1 / rate if rate else 0.0)
        served = Served(
            bundle,
            bundle.codec,
            self._batcher.add(loaded.tail, shape),
            decodes_inline(bundle.codec),
            transport.message_bytes(bundle.codec.raw_bytes),
        )
        self._served[bundle.digest] = served
        self._metrics.add_bundle(bundle)
        name = bundle.manifest.name
        self._metrics.batch_limit.labels(name).set(plan.max_batch)
        self._metrics.batch_wait_seconds.labels(name).set(plan.max_wait)
        self._metrics.tail_rate.labels(name).set(plan.best)
        log.info("serves %s (%s): %s", name, bundle.digest.hex(), plan)
        return served

    def remove(self, digest: bytes) -> Served:
        """Take a bundle out of service; its lane stays until ``forget``."""
        served = self._served.pop(digest)
        self._metrics.remove_bundle(served.bundle)
        self._metrics.retired.inc()
        log.info("retires %s (%s)", served.bundle.manifest.name, digest.hex())
        return served

    def forget(self, served: Served) -> None:
        """Drop a removed bundle that no stream uses any more."""
        self._batcher.remove(served.lane)


def find_bundles(paths: Sequence[str]) -> list[Path]:
    """The bundles' directories: of these paths those that are bundles, and those directly in the others."""
    found = []
    for path in map(Path, paths):
        if (path / MANIFEST).exists() or not path.is_dir():
            found.append(path)
        else:
            found += sorted(child.parent for child in path.glob(f"*/{MANIFEST}"))
    return found


def state_of(directory: Path) -> State:
    """What tells a changed directory from an unchanged one, without reading its files."""
    try:
        with os.scandir(directory) as entries:
            stats = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return ()
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats))


class Loader:
    """Makes a bundle ready to serve.

    The first one decides between the layouts of ``plan``, since all bundles share the workers; and, unless
    ``message_bytes`` is given, what the largest message is that later ones may need.
    """

    def __init__(
        self,
        threads: int,
        *,
        workers: int | None,
        max_batch: int | None,
        max_wait: float | None,
        message_bytes: int | None,
    ) -> None:
        self.workers = workers
        self.message_bytes = message_bytes
        self._threads = threads
        self._max_batch = max_batch
        self._max_wait = max_wait

    def __call__(self, bundle: Bundle) -> Loaded:
        """Raises BundleError where it cannot be served here."""
        needed = transport.message_bytes(bundle.codec.raw_bytes)
        if self.message_bytes is not None and needed > self.message_bytes:
            raise BundleError(
                f"{bundle.path}: needs messages of {needed} bytes, this server was started for "
                f"{self.message_bytes} (--message-bytes)"
            )
        plan, engine = make_plan(
            bundle, self._threads, workers=self.workers, max_batch=self._max_batch, max_wait=self._max_wait
        )
        self.workers = plan.workers
        return Loaded(bundle, engine, plan)

    def load_all(self, bundles: Iterable[Bundle]) -> list[Loaded]:
        """Those that the server starts with."""
        loaded = [self(bundle) for bundle in bundles]
        if self.message_bytes is None:
            self.message_bytes = max(transport.message_bytes(each.bundle.codec.raw_bytes) for each in loaded)
        return loaded


class Reloader:
    """Follows what lies on disk. trusted: who must have signed a bundle, if anybody."""

    def __init__(
        self,
        paths: Sequence[str],
        loader: Loader,
        metrics: ServerMetrics,
        trusted: TrustedKeys | None = None,
    ) -> None:
        self._paths = paths
        self._trusted = trusted
        self._loader = loader
        self._metrics = metrics
        self._states: dict[Path, State] = {}
        self._digests: dict[Path, bytes] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def load_all(self) -> list[Loaded]:
        """Everything on disk, before the first stream. Raises BundleError for the first that is unusable."""
        bundles: dict[bytes, Bundle] = {}
        for path in find_bundles(self._paths):
            self._states[path] = state_of(path)
            bundle = load_bundle(path, self._trusted)
            self._digests[path] = bundle.digest
            bundles.setdefault(bundle.digest, bundle)
        if not bundles:
            raise BundleError(
                f"{', '.join(self._paths)}: has no bundle, expected a directory with {MANIFEST}"
            )
        return self._loader.load_all(bundles.values())

    async def scan(self, catalog: Catalog, retire: Retire, *, again: bool = False) -> None:
        """Load what has changed; retire what has gone. ``again``: also try what is unchanged and failed.

        retire: asks a bundle's streams to end, and returns when none is left.
        """
        found = await asyncio.to_thread(find_bundles, self._paths)
        present: set[Path] = set()
        for path in found:
            state = await asyncio.to_thread(state_of, path)
            if state:
                present.add(path)
                if again or self._states.get(path) != state:
                    self._states[path] = state
                    await self._read(path, catalog)
        kept = {digest for path, digest in self._digests.items() if path in present}
        # All gone at once is a mishap, not an order.
        if not kept:
            return
        for path in set(self._states) - present:
            del self._states[path]
            self._digests.pop(path, None)
        for digest in catalog.digests():
            if digest not in kept:
                self._start_retiring(catalog, digest, retire)

    async def _read(self, path: Path, catalog: Catalog) -> None:
        try:
            bundle = await asyncio.to_thread(load_bundle, path, self._trusted)
            if bundle.digest not in catalog.digests():
                catalog.add(await asyncio.to_thread(self._loader, bundle))
                self._metrics.reloads.labels("bundle", "loaded").inc()
            self._digests[path] = bundle.digest
        except Exception as error:
            self._metrics.reloads.labels("bundle", "failed").inc()
            told = str(error) if isinstance(error, OfframpError) else f"{path}: {type(error).__name__}"
            log.error("not loaded, what serves goes on: %s", told)

    def _start_retiring(self, catalog: Catalog, digest: bytes, retire: Retire) -> None:
        served = catalog.remove(digest)

        async def wait() -> None:
            await retire(served)
            catalog.forget(served)

        task = asyncio.create_task(wait())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Stop waiting for the streams of retired bundles."""
        tasks = list(self._retiring)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
