"""The bundles that a server serves, by digest, and those that it retires.

A stream keeps the bundle that it was opened with, and the one that answers its pictures. A bundle that is
retired answers what its streams still send, until they have gone; no new stream gets it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import ActivationCodec
from offramp.common.part.providers import Placement
from offramp.common.wire import picture, transport
from offramp.common.wire.frame import segment_of
from offramp.server.batch import Batcher, Lane, Shape, Tail
from offramp.server.forward import Forward, Middle
from offramp.server.metrics import ServerMetrics
from offramp.server.plan import Plan, decodes_inline
from offramp.server.rest import Finish, Rest
from offramp.server.upstream import Upstream

log = logging.getLogger("offramp.cloud-server")

EndStreams = Callable[["Served"], Awaitable[None]]
"""Asks a bundle's streams to end, and returns when none is left."""


@dataclass(eq=False)
class Served:
    """One loaded bundle."""

    bundle: Bundle
    codec: ActivationCodec
    lane: Lane
    decode_inline: bool
    message_bytes: int
    """Largest message with its activations."""
    part: int = 2
    """The number of the part that runs here."""
    forward: Forward | None = None
    """Where what that part is unsure of goes; None for the last one."""
    whole: Lane | None = None
    """Of its head and tail together, which answer pictures; None where it is not asked to."""
    later: list[Served] = field(default_factory=list)
    """The same from each later part on, where all of them run here."""

    @property
    def segment(self) -> str:
        """The part that runs here, as a hello asks for it."""
        return segment_of(self.part, len(self.bundle.manifest.parts))

    @property
    def entries(self) -> dict[str, Served]:
        """Where a stream may come in, by the part that its hello asks for; this one is the first."""
        return {each.segment: each for each in (self, *self.later)}

    def answers_pictures_of(self, other: Served) -> bool:
        """Whether its whole model can answer pictures of devices that run the other bundle."""
        return self.whole is not None and not self.bundle.manifest.reads_otherwise(other.bundle.manifest)


@dataclass(frozen=True)
class Whole:
    """A bundle's head and tail together, ready to answer pictures, and how."""

    model: Tail
    plan: Plan
    placements: Mapping[str, Placement] = field(default_factory=dict)
    """What runs its graphs, by file."""


@dataclass(frozen=True)
class Loaded:
    """A bundle that is ready to serve, and how."""

    bundle: Bundle
    tail: Tail
    plan: Plan
    whole: Whole | None = None
    placements: Mapping[str, Placement] = field(default_factory=dict)
    """What runs its graphs, by file."""
    part: int = 2
    """The number of the part that runs here."""
    later: Sequence[Loaded] = ()
    """The same from each later part on, where all of them run here."""
    decode_inline: bool = field(init=False)
    """See ``plan.decodes_inline``. Measured where the bundle is loaded, which is not the event loop."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "decode_inline", decodes_inline(self.bundle.codec_of(self.part - 2)))


class Catalog:
    """Loaded bundles by digest, and those that are retired until their last stream has gone."""

    def __init__(self, batcher: Batcher, metrics: ServerMetrics, upstream: Upstream | None = None) -> None:
        self._upstream = upstream
        self._batcher = batcher
        self._metrics = metrics
        self._served: dict[bytes, Served] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def all(self) -> list[Served]:
        """Every bundle that new streams may ask for."""
        return list(self._served.values())

    def digests(self) -> list[bytes]:
        """Their digests."""
        return list(self._served)

    def segments(self) -> dict[bytes, list[str]]:
        """What runs here of each, as a hello asks for it."""
        return {digest: list(each.entries) for digest, each in self._served.items()}

    def get(self, digest: bytes, segment: str | None = None) -> Served:
        """The bundle with this digest, from the part on that a hello asks for. Raises KeyError."""
        served = self._served[digest]
        return served if segment is None else served.entries[segment]

    def pictures_of(self, served: Served) -> Served | None:
        """Whose whole model answers the pictures of devices that run this bundle; None: no bundle's."""
        return next((each for each in (served, *self.all()) if each.answers_pictures_of(served)), None)

    def add(self, loaded: Loaded) -> Served:
        """Take a bundle into service."""
        bundle, plan = loaded.bundle, loaded.plan
        served = self._entry(loaded)
        served.later = [self._entry(each) for each in loaded.later]
        self._served[bundle.digest] = served
        self._metrics.add_bundle(bundle)
        name = bundle.manifest.name
        self._metrics.batch_limit.labels(name).set(plan.max_batch)
        self._metrics.batch_wait_seconds.labels(name).set(plan.max_wait)
        self._metrics.tail_rate.labels(name).set(plan.best)
        self._show(name, loaded.placements)
        parts, last = len(bundle.manifest.parts), loaded.part + len(loaded.later)
        which = f"part {loaded.part}" if last == loaded.part else f"parts {loaded.part} … {last}"
        of = "" if parts == 2 else f", {which} of {parts}"
        if self._upstream is not None and served.forward is None:
            log.warning("%s: its last part runs here, so --upstream is not used for it", name)
        log.info("serves %s (%s)%s: %s", name, bundle.digest.hex(), of, plan)
        if loaded.whole is not None:
            self.take_pictures(served, loaded.whole)
        return served

    def _entry(self, loaded: Loaded) -> Served:
        """The lane of one part, or of one and all behind it."""
        bundle, tail = loaded.bundle, loaded.tail
        forward: Forward | None = None
        finish: Finish | None = None
        if isinstance(tail, Middle):
            assert self._upstream is not None
            forward = self._upstream.forward(bundle, tail)
        elif isinstance(tail, Rest):
            finish = Finish(tail, self._metrics)
        return Served(
            bundle,
            bundle.codec_of(loaded.part - 2),
            self._batcher.add(tail, _shape(loaded.plan), forward or finish),
            loaded.decode_inline,
            message_bytes(bundle, False, loaded.part),
            loaded.part,
            forward,
        )

    def take_pictures(self, served: Served, whole: Whole) -> None:
        """Have a bundle in service answer pictures too, on streams that are opened from now on."""
        served.whole = self._batcher.add(whole.model, _shape(whole.plan))
        self._show(served.bundle.manifest.name, whole.placements)
        log.info("answers pictures by %s: %s", served.bundle.manifest.name, whole.plan)

    def _show(self, name: str, placements: Mapping[str, Placement]) -> None:
        for graph, placement in placements.items():
            self._metrics.providers.show(graph, placement, name)

    def retire(self, digest: bytes, end_streams: EndStreams) -> None:
        """Take a bundle out of service; what its streams still send is answered until they have ended."""
        served = self._served.pop(digest)
        self._metrics.remove_bundle(served.bundle)
        self._metrics.retired.inc()
        log.info("retires %s (%s)", served.bundle.manifest.name, digest.hex())

        async def forget() -> None:
            await end_streams(served)
            for entry in served.entries.values():
                self._batcher.remove(entry.lane)
            if served.forward is not None:
                await served.forward.close()
            if served.whole is not None:
                self._batcher.remove(served.whole)

        task = asyncio.create_task(forget())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Stop waiting for the streams of retired bundles."""
        tasks = list(self._retiring)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ending = [each.forward.close() for each in self.all() if each.forward is not None]
        await asyncio.gather(*ending)


def _shape(plan: Plan) -> Shape:
    rate = plan.best / plan.workers
    return Shape(plan.max_batch, plan.max_wait, 1 / rate if rate else 0.0)


def message_bytes(bundle: Bundle, pictures: bool, part: int = 2) -> int:
    """Largest message with activations for this part of the bundle, or with pictures."""
    largest = picture_bytes(bundle) if pictures else 0
    return transport.message_bytes(max(bundle.codec_of(part - 2).raw_bytes, largest))


def picture_bytes(bundle: Bundle) -> int:
    """Largest picture of one input. Raises BundleError for a bundle that takes tensors."""
    image = bundle.manifest.preprocessing
    return picture.most_bytes(image.height, image.width)
