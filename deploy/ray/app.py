"""``cloud-server`` as an application of Ray Serve: ``serve run deploy/ray/serve.yaml``.

    edge-device ─▶ Serve's gRPC ingress ─▶ Ingress: stream, decode, queue, batch ─▶ Tail: batch again, run

``Ingress`` is ``InferenceService`` with all that belongs to it; only two things differ: the call's
context is Serve's request stream, and the tail is a handle to replicas of ``Tail``, which is one bundle's
``Engine``. Both deployments scale on their own. docs/how-to/scale-out.md has the settings, and what
differs from ``cloud-server``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any, cast

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream
from ray.serve.handle import DeploymentHandle

from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import TAIL
from offramp.common.errors import AccessError, BundleError, ConfigError, OverloadError
from offramp.common.logs import start_log
from offramp.common.metrics import serve_metrics
from offramp.common.part.engine import Engine
from offramp.common.part.providers import providers_of
from offramp.common.wire import transport
from offramp.common.wire.address import join_address
from offramp.server.batch import Batcher
from offramp.server.calls import Context, end
from offramp.server.catalog import Catalog, Loaded
from offramp.server.limits import StreamLimits
from offramp.server.live import page_of
from offramp.server.loader import find_bundles
from offramp.server.metrics import ServerMetrics
from offramp.server.plan import Plan
from offramp.server.security import Tokens
from offramp.server.service import InferenceService, handlers
from offramp.server.settings import ServerSettings

log = logging.getLogger("offramp.ray")

MAX_BATCH = 32
"""Activations in one run of the tail, where the setting does not say. Nothing is measured here: replicas
differ, and come and go."""
CALLS = 16
"""Batches that one ingress has on their way to replicas, where ``workers`` does not say. Meanwhile frames
gather, and Serve scales by what it sees waiting."""
CALL_SECONDS = 60.0
"""A batch that is not back by then is given up. Serve replaces a stuck replica earlier."""
CALL_TRIES = 3
"""A batch whose replica died is run by another one: the tail is a function, twice is the same as once."""
BUSY_MS = 200
"""How long a device is asked to wait where Serve's own queue is full, milliseconds."""
ONGOING = 64
"""Batches of a replica, running and waiting. ``serve.batch`` may have to put this many together."""
QUIET = {"enable_access_log": False}
"""Serve writes a line for each call otherwise, and that is each batch."""
NOT_HERE = {
    "listen": "the port is Serve's, grpc_options.port",
    "insecure": "Serve's gRPC proxy is plaintext; let a TLS proxy stand before it",
    "tls_cert": "Serve's gRPC proxy is plaintext; let a TLS proxy stand before it",
    "tls_key": "Serve's gRPC proxy is plaintext; let a TLS proxy stand before it",
    "tls_client_ca": "Serve's gRPC proxy is plaintext; let a TLS proxy stand before it",
    "pictures": "pictures are answered by cloud-server",
    "message_bytes": "bundles come with a deployment",
    "reload_interval": "bundles come with a deployment; tokens are looked at for each stream",
}
"""Settings of ``cloud-server`` that mean nothing here, and why."""


def add_service(_: object, server: grpc.aio.Server) -> None:
    """What ``grpc_options.grpc_servicer_functions`` names. Serve puts its router in place of the methods."""
    server.add_generic_rpc_handlers((handlers(None, None),))


def activations(batches: list[NDArray[np.uint8]]) -> int:
    """How many activations are in these batches."""
    return sum(map(len, batches))


class Tail:
    """A replica that runs one bundle's tail. Batches that wait, of any ingress, share its next run."""

    def __init__(self, path: str, digest: bytes, settings: ServerSettings) -> None:
        bundle = load_bundle(path)
        if bundle.digest != digest:
            raise BundleError(f"{path}: is another bundle on this node, expected {digest.hex()}")
        providers = providers_of(settings.providers)
        self._engine = Engine(bundle, settings.threads or 1, providers=providers)
        self._engine.load_tail()
        self._engine.log_placements(log, TAIL)
        self.run.set_max_batch_size(settings.max_batch or MAX_BATCH)
        self.run.set_batch_wait_timeout_s((settings.max_wait_ms or 0.0) / 1e3)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0, batch_size_fn=activations)  # type: ignore[untyped-decorator]
    async def run(self, batches: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Each: symbols, uint8 [N, C, h, w] → class probabilities, float32 [N, K]."""
        ends = np.cumsum([len(batch) for batch in batches])
        probabilities = await asyncio.to_thread(self._engine.tail, np.concatenate(batches))
        return np.split(probabilities, ends[:-1])


class RemoteTail:
    """``batch.Tail`` by replicas of ``Tail``; called on the batcher's threads."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def tail(self, symbols: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """See ``batch.Tail``. Raises OverloadError where no replica can take it."""
        for _ in range(CALL_TRIES):
            try:
                return np.asarray(self._handle.run.remote(symbols).result(timeout_s=CALL_SECONDS), np.float32)
            except BackPressureError as error:
                raise OverloadError(f"the tail's replicas are busy: {error.message}", BUSY_MS) from None
            except DeploymentUnavailableError:
                break
            except TimeoutError:
                raise OverloadError(f"no replica answered within {CALL_SECONDS:g} s", BUSY_MS) from None
            except RayActorError as error:
                log.warning("a replica of the tail has died, another one is tried: %s", type(error).__name__)
        raise OverloadError("the tail has no replica", BUSY_MS)


class Message(bytes):
    """A serialized message. Serve asks what a method returns for its bytes."""

    def SerializeToString(self) -> bytes:
        """The bytes."""
        return bytes(self)


class Call:
    """What ``InferenceService`` uses of a gRPC context, over what Serve gives a method."""

    def __init__(self, context: RayServegRPCContext, stream: gRPCInputStream[bytes] | None = None) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue(1)
        """What the method is to yield; None: no more."""
        self._context = context
        self._stream = stream

    def peer(self) -> str:
        """The device's address, as the proxy saw it."""
        return str(self._context.peer())

    async def read(self) -> object:
        """The next message, or EOF where the device has half-closed its stream."""
        assert self._stream is not None
        async for message in self._stream:
            return message
        if self._stream.is_cancelled():
            raise asyncio.CancelledError
        return grpc.aio.EOF

    async def write(self, data: bytes) -> None:
        """Hand one message to the proxy."""
        await self.messages.put(Message(data))

    async def abort(self, code: grpc.StatusCode, details: str, _: object = ()) -> None:
        """End the call with this status. Trailing metadata do not reach the device: Serve sends none then."""
        self._context.set_code(code)
        self._context.set_details(details)
        raise grpc.aio.AbortError(details)


class Ingress:
    """A replica that serves streams."""

    def __init__(self, settings: ServerSettings, paths: list[str], *tails: DeploymentHandle) -> None:
        start_log("cloud-server", settings.log_level, settings.log_format)
        self._metrics = metrics = ServerMetrics()
        self._tokens = Tokens(settings.token_file, metrics) if settings.token_file is not None else None
        workers = settings.workers or CALLS
        batcher = Batcher(metrics, workers, settings.queue)
        catalog = Catalog(batcher, metrics)
        plan = Plan(workers, 1, settings.max_batch or MAX_BATCH, max_wait=0.0, curve={})
        for path, handle in zip(paths, tails, strict=True):
            catalog.add(Loaded(load_bundle(path), RemoteTail(handle), plan))
        metrics.set_limits(
            workers=workers,
            queue=settings.queue,
            streams=settings.max_streams,
            frames_in_flight=settings.frames_in_flight,
        )
        self._service = InferenceService(catalog, batcher, metrics, StreamLimits.of(settings))
        self._watch: asyncio.Task[None] | None = None
        self._open = ExitStack()
        page = page_of(self._service, settings) if settings.page else None
        port = self._open.enter_context(
            serve_metrics(metrics.registry, settings.metrics_host, settings.metrics_port, page)
        )
        if port is not None:
            log.info("metrics on %s", join_address(settings.metrics_host, port))

    async def Offload(
        self, stream: gRPCInputStream[bytes], grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Message]:
        """One device's stream."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._service.watch())
        call = Call(grpc_context, stream)
        await self._check(call, grpc_context)
        serving = asyncio.create_task(self._service.offload(None, cast(Context, call)))
        ending = asyncio.create_task(self._end(serving, call))
        try:
            while (message := await call.messages.get()) is not None:
                yield message
            await serving
        finally:
            serving.cancel()
            ending.cancel()

    async def _end(self, serving: asyncio.Task[None], call: Call) -> None:
        await asyncio.wait([serving])
        await call.messages.put(None)

    async def Describe(self, request: bytes, grpc_context: RayServegRPCContext) -> Message:
        """The bundles."""
        call = Call(grpc_context)
        await self._check(call, grpc_context)
        return Message(await self._service.describe(request, cast(Context, call)))

    async def _check(self, call: Call, context: RayServegRPCContext) -> None:
        if self._tokens is None:
            return
        self._tokens.refresh()
        shown = [value for key, value in context.invocation_metadata() if key == transport.AUTHORIZATION]
        try:
            self._tokens.check(shown[0] if len(shown) == 1 else None)
        except AccessError as error:
            await end(cast(Context, call), error, self._service.metrics, self._service.quiet)


def build(args: dict[str, Any]) -> serve.Application:
    """The application; ``args`` are settings of ``cloud-server``. Raises ConfigError, BundleError."""
    for name in args:
        if name in NOT_HERE:
            raise ConfigError(f"{name}: not a setting of this application: {NOT_HERE[name]}")
    try:
        settings = ServerSettings.model_validate(args)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    tails: dict[str, Any] = {}
    paths: list[str] = []
    for directory in find_bundles(settings.bundle):
        bundle = load_bundle(directory)
        bundle.require_pair("Ray Serve")
        name = bundle.manifest.name
        if name in tails:
            raise ConfigError(f"{directory}: a second bundle named {name}, expected names of their own")
        paths.append(str(directory.resolve()))
        tail = serve.deployment(
            Tail,
            name=name,
            max_ongoing_requests=ONGOING,
            logging_config=QUIET,
            ray_actor_options={"num_cpus": settings.threads or 1},
            autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 2},
        )
        tails[name] = tail.bind(paths[-1], bundle.digest, settings)
    if not paths:
        raise BundleError(f"{', '.join(settings.bundle)}: has no bundle")
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        # One more than streams: the service itself refuses it, and says why.
        max_ongoing_requests=settings.max_streams + 1,
        max_queued_requests=256,
        graceful_shutdown_timeout_s=settings.grace,
        logging_config=QUIET,
        ray_actor_options={"num_cpus": 1},
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 128},
    )
    application: serve.Application = ingress.bind(settings, paths, *tails.values())
    return application
