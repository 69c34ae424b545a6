"""Settings: one typed definition gives each flag, its default, its help and its check.

Each field of a ``Settings`` class is a flag (``--max-batch 8``), an environment variable
(``OFFRAMP_MAX_BATCH=8``) and a key of a TOML file (``max_batch = 8`` in the table named like the program).
A flag wins over the environment, that over the file, and the file over the default. ``--config`` or
``OFFRAMP_CONFIG`` names the file; a table of another program of ours is left alone. An unknown table, key or
``OFFRAMP_*`` variable is an error. Flags and variables are text; a file's values have types of their own.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from offramp.common.config_file import read_table, shown
from offramp.common.environment import PREFIX, check_link, check_variables
from offramp.common.errors import ConfigError
from offramp.common.telemetry import version_line

S = TypeVar("S", bound="Settings")
Number = TypeVar("Number", int, float)
Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _split(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    return tuple(value.split(os.pathsep)) if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]
"""A flag that may be given again; one environment variable has them all, with colons between them."""


def _addresses(value: object) -> object:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        return given
    parts = (part for each in given for part in (each.split(",") if isinstance(each, str) else [each]))
    return tuple(part.strip() if isinstance(part, str) else part for part in parts)


Addresses = Annotated[tuple[str, ...], BeforeValidator(_addresses), Field(min_length=1, max_length=16)]
"""HOST:PORT, several of them with commas between them or by a flag that is given again."""


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

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="what is logged: debug, info, warning or error", examples=["LEVEL"]
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="a line of text for each event, or a JSON object: text or json",
        examples=["FORMAT"],
    )
    otel: bool = Field(
        False,
        description="trace images with OpenTelemetry, exported as the OTEL_* variables say; needs the extra "
        "[otel]",
    )
    trusted_key: Several | None = Field(
        None,
        description="Ed25519 public key, PEM; only bundles that it has signed are loaded; may be given again",
        examples=["FILE"],
    )


class DeviceSettings(Settings):
    """``edge-device``."""

    bundle: str = Field(description="the bundle's directory", examples=["DIR"])
    server: Addresses = Field(
        ("127.0.0.1:50051",),
        description="the cloud-server; with several, the next one is tried where one fails or is overloaded",
        examples=["HOST:PORT"],
    )
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
    proxy: str | None = Field(
        None,
        description="HTTP proxy to reach servers through, by CONNECT; never for one on this machine; none "
        "is taken from the environment",
        examples=["URL"],
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
    picture_threshold: Fraction | None = Field(
        None,
        description="an image whose answer from the server is no more confident than this is sent once more, "
        "as a picture, to a server that takes such; 1 sends all of those (default: no picture leaves the "
        "device)",
        examples=["T"],
    )
    picture_quality: Annotated[int, Field(ge=0, le=100)] = Field(
        20, description="WebP quality of these pictures", examples=["QUALITY"]
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
    compare_jpeg: Annotated[int, Field(ge=1, le=95)] | None = Field(
        None,
        description="also write each image as a JPEG of this quality, only to count in the metrics what "
        "sending that would have cost",
        examples=["QUALITY"],
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

    bundle: Several = Field(
        description="a bundle's directory, or one with several bundles in it; may be given again",
        examples=["DIR"],
    )
    pictures: Several | None = Field(
        None,
        description="a bundle, or a directory of bundles, whose whole model answers pictures that devices "
        "with --picture-threshold send; for bundles of the same classes and image size; may be given again",
        examples=["DIR"],
    )
    listen: str = Field(
        "127.0.0.1:50051",
        description="address to serve on; port 0 takes a free one",
        examples=["HOST:PORT"],
    )
    insecure: bool = Field(False, description="allow plaintext to clients that are not on this machine")
    tls_cert: str | None = Field(
        None, description="the server's certificate and its chain, PEM: serve TLS", examples=["FILE"]
    )
    tls_key: str | None = Field(None, description="the certificate's private key, PEM", examples=["FILE"])
    tls_client_ca: str | None = Field(
        None,
        description="PEM certificates of the authorities that clients' certificates must be from",
        examples=["FILE"],
    )
    token_file: str | None = Field(
        None,
        description="bearer tokens, one a line, that calls must show; read again when it changes",
        examples=["FILE"],
    )
    threads: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="threads that the tails may use (default: one for each CPU that the affinity and the "
        "container's quota allow)",
        examples=["N"],
    )
    workers: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="runs of the tail at once, which share the threads (default: 1 or as many as threads, "
        "whichever is measured to be faster)",
        examples=["N"],
    )
    max_batch: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="activations in one run of the tail, at most (default: the smallest batch that is "
        "measured to be as fast as any, up to 64)",
        examples=["N"],
    )
    max_wait_ms: Annotated[float, Field(ge=0, le=60_000)] | None = Field(
        None,
        description="how long the first frame of a batch waits for others (default: what running alone is "
        "measured to waste)",
        examples=["MS"],
    )
    queue: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1024, description="frames that may wait for the tail; more are refused", examples=["N"]
    )
    frames_in_flight: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="unanswered frames of one stream; more are refused", examples=["N"]
    )
    max_streams: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1024,
        description="open streams; more are refused; lowered at start to fit the limit on open files",
        examples=["N"],
    )
    message_bytes: Annotated[int, Field(ge=16_384, le=1 << 26)] | None = Field(
        None,
        description="largest message that a bundle loaded later may need (default: what the first ones need)",
        examples=["N"],
    )
    strikes: Annotated[int, Field(ge=1, le=1 << 30)] = Field(
        128, description="bad frames after which a stream is ended", examples=["N"]
    )
    hello_timeout: Seconds = Field(
        5.0, description="how long a new stream may take to say hello", examples=["SECONDS"]
    )
    idle_timeout: Seconds = Field(
        3600.0,
        description="how long a stream may send nothing before it is asked to end",
        examples=["SECONDS"],
    )
    max_stream_age: Seconds | None = Field(
        None,
        description="age, give or take 10 %, at which a stream is asked to end, so that its device connects "
        "anew and a load balancer may choose another server (default: none)",
        examples=["SECONDS"],
    )
    write_timeout: Seconds = Field(
        30.0, description="how long a device may take no reply before its stream is cut", examples=["SECONDS"]
    )
    grace: Seconds = Field(
        10.0,
        description="how long open streams may take to finish at SIGTERM, or when their bundle is retired",
        examples=["SECONDS"],
    )
    reload_interval: Seconds = Field(
        2.0, description="how often bundles and tokens are looked at for changes", examples=["SECONDS"]
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
    """A parser with a flag for each field of ``settings``, plus --version and --config.

    What it parses goes to ``read_settings``: no flag is required here, since it may be set elsewhere.
    """
    parser = Parser(
        prog=program,
        description=description,
        epilog=f"{epilog}\nevery flag is also an environment variable, --max-batch as OFFRAMP_MAX_BATCH,"
        f"\nand a key of [{program}] in the --config file; flag wins over environment over file\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(program=program)
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help=f"TOML file with settings in [{program}]"
    )
    for name, field in settings.model_fields.items():
        # argparse takes a % for the start of a format.
        text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(
                flag_of(name),
                action=argparse.BooleanOptionalAction,
                help=text,
                default=argparse.SUPPRESS,
            )
            continue
        if default := default_of(field):
            text += f" (default: {default})"
        parser.add_argument(
            flag_of(name), metavar=(field.examples or [None])[0], help=text, default=argparse.SUPPRESS,
            action="append" if _is_several(field) else "store",
        )  # fmt: skip
    return parser


def number(kind: Callable[[str], Number], low: float, high: float, expected: str) -> Callable[[str], Number]:
    """An argparse type: a flag's value, ``low`` to ``high``; anything else is told what is ``expected``."""

    def read(text: str) -> Number:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")

    return read


share = number(float, 0, 1, "0 … 1")
"""An argparse type: a flag's value, 0 … 1."""


def flag_of(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()


def default_of(field: FieldInfo) -> str:
    """A field's default as it is given; empty where there is none to show."""
    if field.is_required() or field.default is None:
        return ""
    return ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)


def _variables() -> set[str]:
    """Of all settings of all programs: one environment may be that of several."""
    names = {name for kind in (DeviceSettings, ServerSettings) for name in kind.model_fields}
    return {variable_of(name) for name in names | {"config"}}


def _is_several(field: FieldInfo) -> bool:
    kinds = get_args(field.annotation) if get_origin(field.annotation) is UnionType else (field.annotation,)
    return any(get_origin(kind) is tuple for kind in kinds)


def read_settings(
    kind: type[S], arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> S:
    """The settings of flags, environment and file, checked. Raises ConfigError naming where a value is from.

    ``arguments.log_level`` is set too: to what it is after all of them.
    """
    flags = vars(arguments)
    path = flags.get("config", environment.get(variable_of("config")))
    given: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        for name, value in read_table(path, flags["program"], kind.model_fields).items():
            given[name], origins[name] = value, f"{path}: {name} = {shown(value)}"
    check_variables(environment, _variables())
    for name in kind.model_fields:
        if (variable := variable_of(name)) in environment and name not in flags:
            value = environment[variable]
            check_link(variable, value)
            given[name], origins[name] = value, f"{variable}={value}"
        if name in flags:
            value = flags[name]
            given[name] = value
            text = value if isinstance(value, str) else " ".join(value) if isinstance(value, list) else ""
            origins[name] = f"{flag_of(name)} {text}".rstrip()
    missing = [
        flag_of(name)
        for name, field in kind.model_fields.items()
        if field.is_required() and name not in given
    ]
    if missing:
        raise ConfigError(
            f"the following arguments are required: {', '.join(missing)} (see {flags.get('program')} --help)"
        )
    try:
        settings = kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise ConfigError(f"{origins.get(name, flag_of(name))}: {first['msg']}") from None
    arguments.log_level = settings.log_level
    return settings


def split_address(flag: str, address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``. Raises ConfigError naming the flag."""
    if "/" in address:
        raise ConfigError(f"{flag} {address}: expected HOST:PORT alone, without a scheme or a path")
    host, colon, port = address.rpartition(":")
    inside = host[1:-1] if host.startswith("[") and host.endswith("]") else None
    if inside is None and (_is_ipv6(host.strip("[]")) or _is_ipv6(address)):
        raise ConfigError(f"{flag} {address}: expected an IPv6 address in brackets, as in [::1]:50051")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"{flag} {address}: expected HOST:PORT with a port of 0 … 65535")
    if not _is_ipv6(inside) if inside is not None else ":" in host or "[" in host or "]" in host:
        raise ConfigError(f"{flag} {address}: expected HOST:PORT, a name, an IPv4 address or [IPV6]")
    return (host if inside is None else inside), int(port)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether this host name or address stays on this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def require_secure(flag: str, host: str, insecure: bool) -> None:
    """Refuse plaintext beyond this machine unless it was asked for. Raises ConfigError."""
    if not insecure and not is_loopback(host):
        raise ConfigError(f"{flag} {host}: the connection would be plaintext; say --insecure to allow that")
