"""``cloud-server``: serve the tails of bundles. ``edge-server``: a part between devices and a server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from offramp.common import cpus
from offramp.common.ending import end_process, exit_status
from offramp.common.errors import AddressError, ConfigError, ExitCode, StoppedError
from offramp.common.logs import start_log
from offramp.common.metrics import serve_metrics
from offramp.common.pause import pause
from offramp.common.release import package_version
from offramp.common.settings import make_parser, read_settings
from offramp.common.wire.address import join_address, require_secure, split_address
from offramp.common.wire.transport import set_grpc_environment
from offramp.server.settings import ServerSettings

if TYPE_CHECKING:
    import grpc.aio

    from offramp.server.loader import Loader, Reloader
    from offramp.server.metrics import ServerMetrics
    from offramp.server.security import Certificates

EPILOG = """\
examples:
  cloud-server --bundle models/digits-mobilenetv2-exit12
  cloud-server --bundle DIR --listen 0.0.0.0:50051 --insecure --metrics-port 9101
  cloud-server --bundle models --listen 0.0.0.0:50051 --tls-cert server.pem --tls-key server.key \\
    --token-file tokens.txt
  cloud-server --bundle CODE --pictures PLAIN

Of a bundle of three parts or more, it runs --part (by default the second) and all behind it, so that devices
and gateways may ask for any of them.

--bundle is a bundle, or a directory of bundles; it may be given more than once. --pictures takes the same;
its bundles are served too, and answer pictures. What changes there is loaded while the server runs, within
--reload-interval or at SIGHUP. Tokens and certificates are read again as well.
SIGTERM and SIGINT drain: frames already read are answered, then it exits.

exit status: 0 drained, 1 a bug, 2 wrong flags, 4 unusable bundle, 7 an address cannot be bound
"""

EDGE = "edge-server"

UNWIND_SECONDS = 1.0
"""How long streams that were cut off may take to end."""
LAST_SECONDS = 4.0
"""How long all else may take at the end: threads that run a tail or load a bundle, spans, metrics."""
SWITCH_SECONDS = 1e-3
"""A tail that has ended waits no longer than this for the interpreter, to say so and take the next batch."""
SPARE_THREADS = 16
"""Threads beside the tail's: gRPC's, one that decodes, one that reads files, those of the metrics page."""
LINK_THREADS = 8
"""Of the link to an upstream server, and of gRPC for it."""


EDGE_EPILOG = """\
examples:
  edge-server --bundle DIR --upstream cloud:50051 --upstream-tls-ca ca.pem --listen 0.0.0.0:50051 --insecure
  edge-server --bundle DIR --part 3 --upstream a:50051,b:50051 --upstream-insecure

It is a cloud-server that runs a part of a bundle of three or more, and has every flag of one. SIGTERM and
SIGINT drain, as there.

exit status: as of cloud-server
"""


def edge_main(argv: Sequence[str] | None = None) -> int:
    """Run ``edge-server``; as ``main``."""
    return main(argv, EDGE)


def main(argv: Sequence[str] | None = None, program: str = "cloud-server") -> int:
    """Run the program; returns its exit status.

    argv: None: the process's own; it then ends soon after, whatever still runs.
    """
    set_grpc_environment()

    def body() -> int:
        what, epilog = "Decode frames and finish what devices were unsure of.", EPILOG
        if program == EDGE:
            what = "Run a part between devices and another server; send on what its exit is unsure of."
            epilog = EDGE_EPILOG
        parser = make_parser(program, ServerSettings, what, epilog)
        arguments = parser.parse_args(argv)
        settings = read_settings(ServerSettings, arguments)
        if program == EDGE and not settings.upstream:
            raise ConfigError(
                "--upstream: expected the HOST:PORT of the server that runs the part behind this one "
                f"(see {EDGE} --help)"
            )
        log = start_log(program, settings.log_level, settings.log_format)
        return run(settings, log)

    status = exit_status(program, body)
    if argv is None:
        end_process(status)
    return status


def run(settings: ServerSettings, log: logging.Logger) -> int:
    """Load the bundles, serve until a signal, drain. Raises OfframpError."""
    host, _ = split_address("--listen", settings.listen)
    if settings.tls_cert is None:
        require_secure("--listen", host, settings.insecure)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together, expected both or none")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
    if settings.page and settings.metrics_port is None:
        raise ConfigError("--page needs --metrics-port")
    sys.setswitchinterval(SWITCH_SECONDS)
    import uvloop

    return uvloop.run(_serve(settings, log))


def leave_by(seconds: float) -> None:
    """End the process after so many seconds, whatever it waits for: a thread in a tail, a lock, a peer."""

    def leave() -> None:
        pause(seconds)
        print("cloud-server: cut off what did not end by itself", file=sys.stderr, flush=True)
        os._exit(ExitCode.OK)

    threading.Thread(target=leave, name="offramp-leave", daemon=True).start()


async def _serve(settings: ServerSettings, log: logging.Logger) -> int:
    """Long because it makes, starts and ends all parts, in an order that matters."""
    import grpc.aio

    from offramp.common.tracing import Tracing
    from offramp.common.wire import transport
    from offramp.common.wire.picture import require_webp
    from offramp.server import health
    from offramp.server.batch import Batcher
    from offramp.server.calls import Calls
    from offramp.server.catalog import Catalog
    from offramp.server.descriptors import make_room
    from offramp.server.follower import Follower, Step
    from offramp.server.health import Health
    from offramp.server.limits import StreamLimits
    from offramp.server.live import page_of
    from offramp.server.metrics import ServerMetrics
    from offramp.server.reflection import Reflection
    from offramp.server.security import Certificates, Tokens
    from offramp.server.service import InferenceService
    from offramp.server.upstream import Upstream

    loop = asyncio.get_running_loop()
    stop, reload = _signals(loop)
    room = make_room(settings.max_streams)
    settings = settings.model_copy(update={"max_streams": room.streams})
    metrics = ServerMetrics()
    tokens = Tokens(settings.token_file, metrics) if settings.token_file is not None else None
    certificates = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        certificates = Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca, metrics)
    if settings.pictures is not None:
        require_webp("--pictures")
    threads = settings.threads or cpus.available()
    upstream = Upstream.of(settings, metrics)
    loader, reloader = _loaders(settings, threads, metrics)
    # Before anything wants a thread: neither ONNX Runtime nor an executor says what is missing. However the
    # tail's are laid out, in runs at once and threads of each, they are this many.
    cpus.require_threads(threads + SPARE_THREADS + (LINK_THREADS if settings.upstream else 0))
    try:
        first = await reloader.start(stop)
    except StoppedError:
        log.info("stopped before it served")
        return ExitCode.OK
    assert loader.workers is not None and loader.message_bytes is not None
    tracing = Tracing("cloud-server") if settings.otel else None
    batcher = Batcher(metrics, loader.workers, settings.queue)
    catalog = Catalog(batcher, metrics, upstream)
    service = InferenceService(catalog, batcher, metrics, StreamLimits.of(settings), tracing)
    metrics.set_limits(
        workers=loader.workers,
        queue=settings.queue,
        streams=settings.max_streams,
        frames_in_flight=settings.frames_in_flight,
        message_bytes=loader.message_bytes,
    )
    server = grpc.aio.server(options=transport.server_options(loader.message_bytes, room.connections))
    bounds = settings.hello_timeout, settings.write_timeout
    healthy = Health(*bounds)
    calls = Calls(metrics, tokens, service.quiet)
    calls.add(*service.methods(), *healthy.methods())
    calls.add(*Reflection((transport.SERVICE, health.SERVICE), *bounds).methods())
    server.add_generic_rpc_handlers((calls,))
    port = _bind(server, settings.listen, certificates)
    steps: dict[str, Step] = {"bundle": lambda again: reloader.scan(catalog, service.retire, again=again)}
    if tokens is not None:
        steps["tokens"] = lambda _: asyncio.to_thread(tokens.refresh)
    follower = Follower(settings.reload_interval, reload, steps, metrics)

    page = page_of(service, settings) if settings.page else None
    with serve_metrics(metrics.registry, settings.metrics_host, settings.metrics_port, page) as metrics_port:
        metrics.watch_connections(port)
        await server.start()
        log.info("offramp %s", package_version())
        for loaded in first:
            catalog.add(loaded)
        healthy.serve(("", transport.SERVICE))
        host, _ = split_address("--listen", settings.listen)
        where = ""
        if metrics_port is not None:
            where = f", metrics on {join_address(settings.metrics_host, metrics_port)}"
        if page is not None and metrics_port is not None:
            log.info("page on http://%s/", join_address(settings.metrics_host, metrics_port))
        log.info("listening on %s%s", join_address(host, port), where)
        following, watching = loop.create_task(follower.run()), loop.create_task(service.watch())
        await stop.wait()
        log.info("draining, %g s at most", settings.grace)
        leave_by(settings.grace + UNWIND_SECONDS + LAST_SECONDS)
        loader.cancel()
        service.drain()
        healthy.leave()
        following.cancel()
        # gRPC itself bounds only the calls by the grace, not the connections.
        with suppress(TimeoutError):
            await asyncio.wait_for(server.stop(settings.grace), settings.grace + UNWIND_SECONDS)
        watching.cancel()
        await _unwind(following, watching, loop.create_task(catalog.close()))
    batcher.close()
    service.close()
    if tracing is not None:
        tracing.close()
    log.info("stopped")
    return ExitCode.OK


def _signals(loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Event, asyncio.Event]:
    """What is set by a signal to stop, and by one to read everything again."""
    stop, reload = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    return stop, reload


def _loaders(settings: ServerSettings, threads: int, metrics: ServerMetrics) -> tuple[Loader, Reloader]:
    """What loads a bundle, and what follows the bundles on disk by it."""
    from offramp.common.bundle.signature import TrustedKeys
    from offramp.common.part.providers import providers_of
    from offramp.server.loader import Loader, Reloader

    loader = Loader(
        threads,
        workers=settings.workers,
        max_batch=settings.max_batch,
        max_wait=None if settings.max_wait_ms is None else settings.max_wait_ms / 1e3,
        message_bytes=settings.message_bytes,
        providers=providers_of(settings.providers),
        part=settings.part,
        upstream=bool(settings.upstream),
        exit_threshold=settings.exit_threshold,
    )
    trusted = None if settings.trusted_key is None else TrustedKeys(settings.trusted_key)
    return loader, Reloader(settings.bundle, loader, metrics, trusted, pictures=settings.pictures or ())


def _bind(server: grpc.aio.Server, listen: str, certificates: Certificates | None) -> int:
    """The port that gRPC listens on. Raises AddressError."""
    try:
        if certificates is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, certificates.credentials())
    except RuntimeError:
        port = 0
    if not port:
        raise AddressError(f"--listen {listen}: cannot be bound, expected a free address")
    return port


async def _unwind(*ending: asyncio.Task[None]) -> None:
    """Wait for these tasks, and for those of calls, as long as each may take.

    What gRPC cancelled at the end of the grace still unwinds, and a bundle may be loading. asyncio.run would
    cancel the former once more, and gRPC would log that as an error.
    """
    await asyncio.wait(ending, timeout=UNWIND_SECONDS)
    if unwinding := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(unwinding, timeout=UNWIND_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
