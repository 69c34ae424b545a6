"""``cloud-server``: serve one bundle's tail."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offramp.common.config import (
    ServerSettings,
    make_parser,
    read_settings,
    require_secure,
    split_address,
)
from offramp.common.errors import AddressError, ExitCode, OfframpError
from offramp.common.telemetry import package_version, serve_metrics, start_log

if TYPE_CHECKING:
    from offramp.common.bundle import Bundle
    from offramp.common.engine import Engine

EPILOG = """\
examples:
  cloud-server --bundle models/digits-mobilenetv2-exit12
  cloud-server --bundle DIR --listen 0.0.0.0:50051 --insecure --metrics-port 9101

SIGTERM and SIGINT drain: frames already read are answered, then it exits.

exit status: 0 drained, 1 a bug, 2 wrong flags, 4 unusable bundle, 7 an address cannot be bound
"""

UNWIND_SECONDS = 1.0
"""How long streams that were cut off may take to end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        parser = make_parser(
            "cloud-server", ServerSettings, "Decode frames and finish what devices were unsure of.", EPILOG
        )
        arguments = parser.parse_args(argv)
        settings = read_settings(ServerSettings, arguments)
        log = start_log("cloud-server", arguments.log_level)
        return run(settings, log)
    except OfframpError as error:
        print(f"cloud-server: {error}", file=sys.stderr)
        return error.exit_code


def run(settings: ServerSettings, log: logging.Logger) -> int:
    """Load the bundle, serve until a signal, drain. Raises OfframpError."""
    host, _ = split_address("--listen", settings.listen)
    require_secure("--listen", host, settings.insecure)

    from offramp.common.bundle import load_bundle
    from offramp.common.engine import Engine

    bundle = load_bundle(settings.bundle)
    engine = Engine(bundle, settings.threads or len(os.sched_getaffinity(0)))
    engine.load_tail()
    return asyncio.run(_serve(settings, bundle, engine, log))


async def _serve(settings: ServerSettings, bundle: Bundle, engine: Engine, log: logging.Logger) -> int:
    import grpc.aio
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    from offramp.common import transport
    from offramp.server.metrics import ServerMetrics
    from offramp.server.service import InferenceService

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    metrics = ServerMetrics(bundle)
    service = InferenceService(
        bundle,
        engine,
        metrics,
        max_batch=settings.max_batch,
        queue=settings.queue,
        frames_in_flight=settings.frames_in_flight,
        max_streams=settings.max_streams,
        hello_timeout=settings.hello_timeout,
    )
    server = grpc.aio.server(options=transport.server_options(service.codec.raw_bytes))
    server.add_generic_rpc_handlers((service.handlers(),))
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection(
        (transport.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    host, _ = split_address("--listen", settings.listen)
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError:
        port = 0
    if not port:
        raise AddressError(f"--listen {settings.listen}: cannot be bound, expected a free address")
    with serve_metrics(metrics.registry, settings.metrics_host, settings.metrics_port) as metrics_port:
        await server.start()
        for name in ("", transport.SERVICE):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        where = f", metrics on {settings.metrics_host}:{metrics_port}" if metrics_port is not None else ""
        log.info("offramp %s serves %s (%s)", package_version(), bundle.manifest.name, bundle.digest.hex())
        log.info("listening on %s:%d%s", host, port, where)
        await stop.wait()
        log.info("draining, %g s at most", settings.grace)
        await healthy.enter_graceful_shutdown()
        service.draining.set()
        await server.stop(settings.grace)
        # What gRPC cancelled at the end of the grace still unwinds. asyncio.run would cancel it once more,
        # and gRPC would log that as an error.
        unwinding = asyncio.all_tasks() - {asyncio.current_task()}
        if unwinding:
            await asyncio.wait(unwinding, timeout=UNWIND_SECONDS)
    service.close()
    log.info("stopped")
    return ExitCode.OK


if __name__ == "__main__":
    raise SystemExit(main())
