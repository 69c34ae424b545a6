"""``offramp gateway``: datagrams of many devices to one stream, and the replies back."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from offramp.common.ending import exit_status
from offramp.common.errors import ConfigError, ExitCode, OfframpError
from offramp.common.logs import start_log
from offramp.common.settings import make_parser, read_settings
from offramp.common.wire.address import is_loopback, join_address, split_address
from offramp.gateway.settings import GatewaySettings
from offramp.link.security import Security

PROGRAM = "gateway"
LAST_SECONDS = 5.0
"""How long requests are waited for at the end."""

EPILOG = """\
examples:
  offramp gateway --bundle DIR --udp 0.0.0.0:5683 --devices devices.toml --state windows.db
  offramp gateway --bundle DIR --serial /dev/ttyUSB0:115200 --server cloud:50051 --tls
  offramp gateway --bundle DIR --mqtt mqtts://broker/offramp --mqtt-user-file user --mqtt-token-file token

SIGTERM and SIGINT end it, once what was taken has its reply, 5 s at most; so does the end of standard input
with --stdio. Devices need no connection to it: edge-device --server udp://HOST:PORT or mqtt://BROKER, or what
Device.encode writes.

exit status: 0 ended, 1 a bug, 2 wrong flags, 4 unusable bundle, 7 an address cannot be bound
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway; returns its exit status."""

    def body() -> int:
        parser = make_parser(
            PROGRAM, GatewaySettings, "Take datagrams of devices, and answer them by a server.", EPILOG
        )
        parser.prog = "offramp gateway"
        arguments = parser.parse_args(argv)
        settings = read_settings(GatewaySettings, arguments)
        return run(settings, start_log(PROGRAM, settings.log_level, settings.log_format))

    return exit_status("offramp gateway", body)


def check(settings: GatewaySettings) -> None:
    """Raises ConfigError for what cannot work together, or would be open to strangers unasked."""
    if not (settings.udp or settings.serial or settings.stdio or settings.mqtt):
        raise ConfigError("--udp, --serial, --stdio or --mqtt: expected at least one of them")
    if settings.devices is not None and settings.state is None:
        raise ConfigError("--devices: expected --state with it, or a replay passes after a restart")
    if settings.devices is None and settings.state is not None:
        raise ConfigError("--state: expected --devices with it")
    if settings.udp is not None and settings.devices is None and not settings.insecure:
        host, _ = split_address("--udp", settings.udp)
        if not is_loopback(host):
            raise ConfigError(
                f"--udp {host}: anybody could ask there; say --devices with keys, or --insecure to allow that"
            )


def run(settings: GatewaySettings, log: logging.Logger) -> int:
    """Serve until a signal or the end of standard input. Raises OfframpError.

    Long because it makes, starts and ends all parts, in an order that matters.
    """
    check(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    from offramp.common.bundle.load import load_bundle
    from offramp.common.bundle.signature import TrustedKeys
    from offramp.common.metrics import serve_metrics
    from offramp.common.release import package_version
    from offramp.common.wire.datagram import Datagrams
    from offramp.gateway.broker import BrokerDoor
    from offramp.gateway.devices import read_devices
    from offramp.gateway.doors import Door, PipeDoor, SerialDoor, UdpDoor
    from offramp.gateway.gateway import Gateway, Route
    from offramp.gateway.lane import Lane
    from offramp.gateway.metrics import GatewayMetrics
    from offramp.gateway.state import State
    from offramp.link.link import Link, Pace, Terms
    from offramp.link.mqtt import Broker, require_mqtt

    trusted = None if settings.trusted_key is None else TrustedKeys(settings.trusted_key)
    bundles = [load_bundle(Path(each), trusted) for each in settings.bundle]
    devices = None if settings.devices is None else read_devices(settings.devices)
    security = Security.of(settings)
    for address in settings.server:
        security.check(split_address("--server", address)[0], settings.insecure)
    metrics = GatewayMetrics()
    doors: list[Door] = []
    udp = None if settings.udp is None else UdpDoor(settings.udp)
    if udp is not None:
        doors.append(udp)
    doors += [SerialDoor(each) for each in settings.serial or ()]
    if settings.mqtt is not None:
        require_mqtt("--mqtt")
        broker_security = Security(
            ca=settings.mqtt_tls_ca,
            certificate=settings.mqtt_tls_cert,
            key=settings.mqtt_tls_key,
            token_file=settings.mqtt_token_file,
            prefix="mqtt-",
        )
        broker = Broker.parse(
            "--mqtt", settings.mqtt, broker_security, settings.mqtt_user_file, insecure=settings.insecure
        )
        doors.append(BrokerDoor(broker, settings.mqtt_name or "", settings.mqtt_group, metrics))
    if settings.stdio:
        doors.append(PipeDoor(sys.stdin.fileno(), sys.stdout.fileno(), stop.set))
    state = State(settings.state)
    pace = Pace(settings.timeout, settings.window, settings.coalesce / 1000)
    routes = []
    for bundle in bundles:
        link = Link(
            settings.server,
            Terms.of(bundle),
            pace,
            metrics.link,
            failures=settings.breaker,
            security=security,
            meanwhile="requests wait",
        )
        manifest = bundle.manifest
        datagrams = Datagrams(bundle.digest, len(manifest.classes), len(manifest.parts))
        routes.append(Route(manifest.name, datagrams, Lane(link, settings.hold_requests, manifest.name)))
    gateway = Gateway(routes, devices, state, metrics, hold=settings.hold)
    opened: list[Door] = []
    try:
        with serve_metrics(metrics.registry, settings.metrics_host, settings.metrics_port) as port:
            for door in doors:
                door.open(gateway.take)
                opened.append(door)
            log.info("offramp %s", package_version())
            where = "" if udp is None else f" on UDP port {udp.port}"
            shown = "" if port is None else f", metrics on {join_address(settings.metrics_host, port)}"
            log.info("taking datagrams%s%s", where, shown)
            stop.wait()
            for door in opened:
                door.close()
            for route in routes:
                route.lane.close(LAST_SECONDS)
    except OfframpError:
        for route in routes:
            route.lane.close(0)
        raise
    finally:
        for door in opened:
            door.end()
        state.close()
    log.info("stopped")
    return ExitCode.OK


if __name__ == "__main__":
    raise SystemExit(main())
