"""How bundles come from disk into the catalog, at the start and while the server serves.

Rules:
- A change on disk is loaded beside what serves. What cannot be loaded changes nothing; it is logged once, and
  tried again when it changes once more, or at SIGHUP.
- Where nothing loadable is left on disk, what serves goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import HEAD, MANIFEST, TAIL
from offramp.common.bundle.signature import TrustedKeys
from offramp.common.errors import BundleError, OfframpError, StoppedError
from offramp.common.inputs.spec import Preprocessing
from offramp.common.part.engine import Engine
from offramp.common.part.providers import CPU, Providers
from offramp.server.batch import Tail
from offramp.server.catalog import Catalog, EndStreams, Loaded, Whole, message_bytes
from offramp.server.forward import Middle
from offramp.server.metrics import ServerMetrics
from offramp.server.parts import part_of, parts_of
from offramp.server.plan import largest_batch, make_plan, plan_pictures, threads_each
from offramp.server.rest import Rest
from offramp.server.whole import WholeModel

log = logging.getLogger("offramp.cloud-server")

State = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of change of each file in a bundle's directory."""


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
        providers: Providers = CPU,
        part: str | None = None,
        upstream: bool = False,
        exit_threshold: float | None = None,
    ) -> None:
        self.workers = workers
        self._providers = providers
        self.message_bytes = message_bytes
        self._threads = threads
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._part = part
        self._upstream = upstream
        self._exit_threshold = exit_threshold
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End what is being loaded, and load nothing more: StoppedError from another thread's call."""
        self._cancelled.set()

    def __call__(self, bundle: Bundle, pictures: bool = False) -> Loaded:
        """pictures: to answer pictures as well. Raises BundleError where it cannot be served here."""
        part = self._check(bundle, pictures)

        last = len(bundle.manifest.parts)
        parts = parts_of(bundle, part, upstream=self._upstream)

        def tail_of(engine: Engine, number: int = part) -> Tail:
            if number == last:
                return engine
            threshold = self._exit_threshold if number == part else None
            if self._upstream:
                return Middle(engine, number, threshold)
            return Rest(engine, number, threshold)

        plan, engine = make_plan(
            bundle,
            self._threads,
            workers=self.workers,
            max_batch=self._max_batch,
            max_wait=self._max_wait,
            providers=self._providers,
            cancelled=self._cancelled.is_set,
            parts=parts,
            tail_of=tail_of,
        )
        self.workers = plan.workers
        engine.log_placements(log, *map(engine.name, parts))
        whole = self._whole(bundle, engine) if pictures else None
        later = [Loaded(bundle, tail_of(engine, each), plan, part=each) for each in parts[1:]]
        return Loaded(bundle, tail_of(engine), plan, whole, engine.placements, part, later)

    def load_whole(self, bundle: Bundle) -> Whole:
        """For a bundle in service. Raises BundleError where it cannot answer pictures here."""
        self._check(bundle, True)
        assert self.workers is not None
        threads = threads_each(self._threads, self.workers)
        engine = Engine(bundle, threads, providers=self._providers, cancelled=self._cancelled.is_set)
        return self._whole(bundle, engine)

    def load_all(self, bundles: Iterable[tuple[Bundle, bool]]) -> list[Loaded]:
        """Those that the server starts with, and whether each is to answer pictures."""
        loaded = [self(*each) for each in bundles]
        if self.message_bytes is None:
            self.message_bytes = max(
                message_bytes(one.bundle, one.whole is not None, each.part)
                for one in loaded
                for each in (one, *one.later)
            )
        return loaded

    def _whole(self, bundle: Bundle, engine: Engine) -> Whole:
        assert self.workers is not None
        largest = largest_batch(engine, (HEAD, TAIL), self._max_batch)
        engine.load(HEAD, TAIL)
        engine.log_placements(log, HEAD)
        model, image = WholeModel(engine), bundle.manifest.preprocessing
        plan = plan_pictures(
            model,
            (image.height, image.width),
            self._threads,
            self.workers,
            max_batch=self._max_batch,
            max_wait=self._max_wait,
            largest=largest,
            cancelled=self._cancelled.is_set,
        )
        return Whole(model, plan, engine.placements)

    def _check(self, bundle: Bundle, pictures: bool) -> int:
        """The part to run. Raises BundleError."""
        part = part_of(bundle, self._part, upstream=self._upstream)
        taken = bundle.manifest.input
        if pictures:
            bundle.require_pair("--pictures")
        if pictures and not isinstance(taken, Preprocessing):
            raise BundleError(f"{bundle.path}: takes {taken.what}, so it cannot answer pictures (--pictures)")
        parts = parts_of(bundle, part, upstream=self._upstream)
        if self._exit_threshold is not None and not self._upstream and len(parts) == 1:
            raise BundleError(
                f"{bundle.path}: --exit-threshold: part {part} is the last one, which has no exit"
            )
        needed = max(message_bytes(bundle, pictures, each) for each in parts)
        if self.message_bytes is not None and needed > self.message_bytes:
            raise BundleError(
                f"{bundle.path}: needs messages of {needed} bytes, this server was started for "
                f"{self.message_bytes} (--message-bytes)"
            )
        return part


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
    """Differs once a file of the directory has changed, without reading its files."""
    try:
        with os.scandir(directory) as entries:
            stats = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return ()
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats))


class Reloader:
    """Follows what lies on disk.

    paths: bundles, and directories of such; pictures: the same, for those that answer pictures as well.
    trusted: keys of which one must have signed each bundle; None: none has to be signed.
    """

    def __init__(
        self,
        paths: Sequence[str],
        loader: Loader,
        metrics: ServerMetrics,
        trusted: TrustedKeys | None = None,
        *,
        pictures: Sequence[str] = (),
    ) -> None:
        self._paths = paths
        self._pictures = pictures
        self._trusted = trusted
        self._loader = loader
        self._metrics = metrics
        self._states: dict[Path, State] = {}
        self._digests: dict[Path, bytes] = {}

    def load_all(self) -> list[Loaded]:
        """Everything on disk, before the first stream. Raises BundleError for the first that is unusable."""
        bundles: dict[bytes, tuple[Bundle, bool]] = {}
        for paths in filter(None, (self._paths, self._pictures)):
            if not find_bundles(paths):
                raise BundleError(f"{', '.join(paths)}: has no bundle, expected a directory with {MANIFEST}")
        for path, pictures in self._find().items():
            self._states[path] = state_of(path)
            bundle = load_bundle(path, self._trusted)
            self._digests[path] = bundle.digest
            _, before = bundles.get(bundle.digest, (bundle, False))
            bundles[bundle.digest] = bundle, pictures or before
        return self._loader.load_all(bundles.values())

    async def start(self, stop: asyncio.Event) -> list[Loaded]:
        """``load_all``, on another thread. Raises StoppedError where ``stop`` is set meanwhile."""
        loading = asyncio.ensure_future(asyncio.to_thread(self.load_all))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            self._loader.cancel()
        stopping.cancel()
        return await loading

    def _find(self) -> dict[Path, bool]:
        """Every bundle's directory, and whether it is to answer pictures."""
        pictures = dict.fromkeys(find_bundles(self._pictures), True)
        return dict.fromkeys(find_bundles(self._paths), False) | pictures

    async def scan(self, catalog: Catalog, end_streams: EndStreams, *, again: bool = False) -> None:
        """Load what has changed; retire what has gone. ``again``: also try what is unchanged and failed."""
        found = await asyncio.to_thread(self._find)
        present: set[Path] = set()
        for path, pictures in found.items():
            state = await asyncio.to_thread(state_of, path)
            if state:
                present.add(path)
                if again or self._states.get(path) != state:
                    self._states[path] = state
                    await self._read(path, catalog, pictures)
        kept = {digest for path, digest in self._digests.items() if path in present}
        # All gone at once is a mishap, not an order.
        if not kept:
            return
        for path in set(self._states) - present:
            del self._states[path]
            self._digests.pop(path, None)
        for digest in catalog.digests():
            if digest not in kept:
                catalog.retire(digest, end_streams)

    async def _read(self, path: Path, catalog: Catalog, pictures: bool) -> None:
        try:
            bundle = await asyncio.to_thread(load_bundle, path, self._trusted)
            if bundle.digest not in catalog.digests():
                catalog.add(await asyncio.to_thread(self._loader, bundle, pictures))
                self._metrics.reloads.labels("bundle", "loaded").inc()
            elif pictures and catalog.get(bundle.digest).whole is None:
                whole = await asyncio.to_thread(self._loader.load_whole, bundle)
                catalog.take_pictures(catalog.get(bundle.digest), whole)
                self._metrics.reloads.labels("bundle", "loaded").inc()
            self._digests[path] = bundle.digest
        except StoppedError:
            return
        except Exception as error:
            self._metrics.reloads.labels("bundle", "failed").inc()
            reason = str(error) if isinstance(error, OfframpError) else f"{path}: {type(error).__name__}"
            log.error("not loaded, what serves goes on: %s", reason)
