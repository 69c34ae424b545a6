"""Settings: one typed definition gives each flag, its default, its help and its check."""

from __future__ import annotations

import argparse
import ipaddress
import re
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from offramp.common.errors import ConfigError
from offramp.common.telemetry import version_line

S = TypeVar("S", bound="Settings")
Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _byte_rate(value: object) -> object:
    """``2kB/s`` → 2000.0; numbers are bytes a second already."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*(?:([kM]?)(B|bit)(?:/s|ps)?)?", value.strip())
    if found is None:
        raise ValueError("expected bytes a second, as 500, 2kB/s or 16kbit/s")
    scale = {"k": 1e3, "M": 1e6}.get(found[2] or "", 1.0) / (8 if found[3] == "bit" else 1)
    return float(found[1]) * scale


ByteRate = Annotated[float, BeforeValidator(_byte_rate), Field(gt=0, le=1e12)]


class Settings(BaseModel):
    """Base of a program's settings. A field is a flag; its description is the flag's help."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DeviceSettings(Settings):
    """``edge-device``."""

    bundle: str = Field(description="the bundle's directory", examples=["DIR"])
    server: str = Field("127.0.0.1:50051", description="the cloud-server", examples=["HOST:PORT"])
    threshold: Fraction | None = Field(
        None,
        description="confidence threshold T_c: an image whose early exit is more confident is answered "
        "here; 0 sends nothing, 1 sends everything (default: the bundle's)",
        examples=["T"],
    )
    insecure: bool = Field(False, description="allow plaintext to a server that is not on this machine")
    tls: bool = Field(False, description="encrypt, and trust the authorities that gRPC brings along")
    tls_ca: str | None = Field(
        None, description="encrypt, and trust the authorities in this PEM file only", examples=["FILE"]
    )
    tls_cert: str | None = Field(
        None, description="the device's own certificate, PEM, for mutual TLS", examples=["FILE"]
    )
    tls_key: str | None = Field(None, description="its private key, PEM", examples=["FILE"])
    tls_server_name: str | None = Field(
        None,
        description="name that the server's certificate must have (default: the host)",
        examples=["NAME"],
    )
    token_file: str | None = Field(
        None, description="file with a bearer token, read again for each connection", examples=["FILE"]
    )
    timeout: Seconds = Field(
        2.0,
        description="how long an image waits for the server before its early exit answers",
        examples=["SECONDS"],
    )
    window: Annotated[int, Field(ge=1, le=4096)] = Field(
        16, description="frames sent and not yet answered, at most; 1 turns pipelining off", examples=["N"]
    )
    coalesce: Annotated[float, Field(ge=0, le=60_000)] = Field(
        0.0,
        description="milliseconds that a frame may wait for others to share its message and its envelope",
        examples=["MS"],
    )
    coalesce_frames: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="frames that are enough for a message, with --coalesce", examples=["N"]
    )
    breaker: Annotated[int, Field(ge=1, le=4096)] = Field(
        5,
        description="timeouts and refusals in a row after which frames are turned away until a probe is "
        "answered",
        examples=["N"],
    )
    byte_budget: ByteRate | None = Field(
        None,
        description="bytes a second that the link may cost, both directions, as 500, 2kB/s or 16kbit/s: "
        "steers T_c",
        examples=["RATE"],
    )
    target_latency: Annotated[float, Field(gt=0, le=3_600_000)] | None = Field(
        None, description="mean latency over all images, milliseconds: steers T_c", examples=["MS"]
    )
    accuracy_floor: Fraction | None = Field(
        None,
        description="T_c is not steered below the lowest measured threshold with this accuracy (default: "
        "that of the bundle's own threshold)",
        examples=["A"],
    )
    threshold_floor: Fraction | None = Field(
        None, description="T_c is not steered below this (default: from --accuracy-floor)", examples=["T"]
    )
    threshold_ceiling: Fraction | None = Field(
        None,
        description="T_c is not steered above this (default: where the bundle measured its best accuracy)",
        examples=["T"],
    )
    corrections: bool = Field(
        False, description="print answers of the server that came too late, as records of their own"
    )
    spool: str | None = Field(
        None,
        description="keep activations that the server did not answer in this file, and send them when it is "
        "back; prints corrections",
        examples=["FILE"],
    )
    spool_bytes: Annotated[int, Field(ge=65_536, le=1 << 40)] = Field(
        64 << 20, description="what the spool may hold; the oldest activations go first", examples=["N"]
    )
    rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="images a second, at most (default: as fast as they go)", examples=["R"]
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="threads that the head may use", examples=["N"]
    )
    metrics_host: str = Field(
        "127.0.0.1", description="address that /metrics is served on", examples=["HOST"]
    )
    metrics_port: Port | None = Field(
        None, description="serve Prometheus metrics on this port; 0 takes a free one", examples=["PORT"]
    )


class ServerSettings(Settings):
    """``cloud-server``."""

    bundle: str = Field(description="the bundle's directory", examples=["DIR"])
    listen: str = Field(
        "127.0.0.1:50051",
        description="address to serve on; port 0 takes a free one",
        examples=["HOST:PORT"],
    )
    insecure: bool = Field(False, description="allow plaintext to clients that are not on this machine")
    threads: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None, description="threads that the tail may use (default: one for each core)", examples=["N"]
    )
    max_batch: Annotated[int, Field(ge=1, le=4096)] = Field(
        32, description="activations in one run of the tail, at most", examples=["N"]
    )
    queue: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1024, description="frames that may wait for the tail; more are refused", examples=["N"]
    )
    frames_in_flight: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="unanswered frames of one stream; more are refused", examples=["N"]
    )
    max_streams: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1024, description="open streams; more are refused", examples=["N"]
    )
    hello_timeout: Seconds = Field(
        5.0, description="how long a new stream may take to say hello", examples=["SECONDS"]
    )
    grace: Seconds = Field(
        10.0, description="how long SIGTERM waits for open streams to finish", examples=["SECONDS"]
    )
    metrics_host: str = Field(
        "127.0.0.1", description="address that /metrics is served on", examples=["HOST"]
    )
    metrics_port: Port | None = Field(
        None, description="serve Prometheus metrics on this port; 0 takes a free one", examples=["PORT"]
    )


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


class ShowVersion(argparse.Action):
    """``--version``; it looks for the compiled coder, which takes longer than ``--help`` may."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print release and coder, and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(version_line(parser.prog))
        raise SystemExit(0)


def make_parser(program: str, settings: type[Settings], description: str, epilog: str) -> Parser:
    """A parser with a flag for each field of ``settings``, plus --version and --log-level."""
    parser = Parser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], default="info", help="default: info"
    )
    for name, field in settings.model_fields.items():
        flag, text = "--" + name.replace("_", "-"), field.description or ""
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        if not field.is_required() and field.default is not None:
            text += f" (default: {field.default})"
        parser.add_argument(
            flag, required=field.is_required(), metavar=(field.examples or [None])[0], help=text,
            default=argparse.SUPPRESS,
        )  # fmt: skip
    return parser


def read_settings(kind: type[S], arguments: argparse.Namespace) -> S:
    """The settings that were given as flags, checked. Raises ConfigError naming the flag."""
    given: dict[str, Any] = {
        name: value for name, value in vars(arguments).items() if name in kind.model_fields
    }
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{flag} {first['input']}: {first['msg']}") from None


def split_address(flag: str, address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``. Raises ConfigError naming the flag."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"{flag} {address}: expected HOST:PORT with a port of 0 … 65535")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ConfigError(f"{flag} {address}: expected an IPv6 address in brackets, as in [::1]:50051")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether this host name or address stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_secure(flag: str, host: str, insecure: bool) -> None:
    """Refuse plaintext beyond this machine unless it was asked for. Raises ConfigError."""
    if not insecure and not is_loopback(host):
        raise ConfigError(f"{flag} {host}: the connection would be plaintext; say --insecure to allow that")
