"""Settings: one typed definition gives each flag, its default, its help and its check.

Each field of a ``Settings`` class (``device/settings.py``, ``server/settings.py``) is a flag
(``--max-batch 8``), an environment variable (``OFFRAMP_MAX_BATCH=8``) and a key of a TOML file
(``max_batch = 8`` in the table named like the program). A flag wins over the environment, that over the file,
and the file over the default. ``--config`` or ``OFFRAMP_CONFIG`` names the file; a table of another program
of ours is left alone. An unknown table, key or ``OFFRAMP_*`` variable is an error. Flags and variables are
text; a file's values have types of their own, and so have the arguments of the Python API.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

from offramp.common.arguments import Parser, ShowVersion
from offramp.common.errors import ConfigError, printable
from offramp.common.files import read_bounded
from offramp.common.part.providers import parse

log = logging.getLogger("offramp")

CONFIG_BYTES = 1 << 20
PROGRAMS = ("cloud-server", "edge-device", "edge-server", "gateway")
PREFIX = "OFFRAMP_"
OTHERS = frozenset({"OFFRAMP_CODER"})
"""What else of ours is read from the environment."""
_LINK = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")
_SERVICE = re.compile(
    r"OFFRAMP_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
NAMES = frozenset(
    """\
    accuracy_floor audit audit_seed breaker bundle byte_budget coalesce coalesce_frames compare_jpeg
    corrections device_number devices exit_threshold frames_in_flight grace hello_timeout hold
    hold_requests idle_timeout insecure keep keep_bytes keep_share key_file listen log_format log_level
    max_batch max_stream_age max_streams max_wait_ms message_bytes metrics_host metrics_port mqtt
    mqtt_group mqtt_name mqtt_tls_ca mqtt_tls_cert mqtt_tls_key mqtt_token_file mqtt_user_file otel
    packet_bytes page page_token_file part picture_quality picture_threshold pictures prefer_first
    providers proxy publish publish_discovery publish_insecure publish_seconds publish_tls_ca
    publish_token_file publish_user_file queue rate reload_interval sequence_file serial server spool
    spool_bytes state stdio strikes target_latency threads threshold threshold_ceiling threshold_floor
    timeout tls tls_ca tls_cert tls_client_ca tls_key tls_server_name token_file trusted_key udp
    upstream upstream_breaker upstream_insecure upstream_prefer_first upstream_proxy upstream_timeout
    upstream_tls upstream_tls_ca upstream_tls_cert upstream_tls_key upstream_tls_server_name
    upstream_token_file upstream_window user_file window workers write_timeout
    """.split()  # noqa: SIM905 - a list would be a page long
)
"""The settings of all programs: one environment may be that of several, and none imports another's."""
S = TypeVar("S", bound="Settings")
Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _split(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    return tuple(value.split(os.pathsep)) if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]
"""A flag that may be given again; one environment variable has them all, with colons between them."""


def _comma_separated(value: object) -> object:
    """Text, or a list of texts, each with commas between its parts: all of these parts."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        return given
    parts = (part for each in given for part in (each.split(",") if isinstance(each, str) else [each]))
    return tuple(part.strip() if isinstance(part, str) else part for part in parts)


Listed = Annotated[tuple[str, ...], BeforeValidator(_comma_separated), Field(min_length=1)]
"""Several with commas between them, or by a flag that is given again."""
Addresses = Annotated[Listed, Field(max_length=16)]
"""HOST:PORT, several of them with commas between them or by a flag that is given again."""
MetricsHost = Annotated[str, Field(description="address that /metrics is served on", examples=["HOST"])]
MetricsPort = Annotated[
    Port | None,
    Field(description="serve Prometheus metrics on this port; 0 takes a free one", examples=["PORT"]),
]


def _providers(value: tuple[str, ...]) -> tuple[str, ...]:
    parse(value)
    return value


ProviderNames = Annotated[Listed, AfterValidator(_providers)]
"""What runs the graphs: ``part/providers.py``."""


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


def flag_of(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()


def default_of(field: FieldInfo) -> str:
    """A field's default as it is given; empty if it has no default to show."""
    if field.is_required() or field.default is None:
        return ""
    return ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)


def _is_several(field: FieldInfo) -> bool:
    """Whether an annotation is of a tuple: itself, annotated, or as one of several."""

    def holds(kind: Any) -> bool:
        return get_origin(kind) is tuple or any(holds(each) for each in get_args(kind))

    return holds(field.annotation)


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
    check_variables(environment, {variable_of(each) for each in NAMES | {"config"}})
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


# --- the environment ---


def check_variables(environment: Mapping[str, str], settings: Collection[str]) -> None:
    """Raises ConfigError for a variable that begins like ours and is not one of these settings.

    Its value is not repeated: it may be a secret in the wrong place.
    """
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name in settings or name in OTHERS:
            continue
        if _SERVICE.fullmatch(name) or (name.endswith("PORT") and _LINK.fullmatch(value)):
            log.debug("%s is ignored: Kubernetes sets it for a Service", printable(name))
            continue
        near = closest(name.removeprefix(PREFIX), {each.removeprefix(PREFIX) for each in settings})
        expected = PREFIX + near if near else "a variable of the documents"
        raise ConfigError(f"{printable(name)}: there is no such setting, expected {expected}")


def check_link(name: str, value: str) -> None:
    """Raises ConfigError where a setting's value is what Kubernetes sets for a Service of a like name."""
    if _LINK.fullmatch(value):
        service = name.removesuffix("_PORT").lower().replace("_", "-")
        raise ConfigError(
            f"{name}={value}: looks set by Kubernetes for a Service called {service}, expected a setting; "
            "say enableServiceLinks: false in the pod's spec, or call the Service otherwise"
        )


def closest(name: str, known: Collection[str]) -> str:
    """The known name that was probably meant; empty where none is near."""
    return next(iter(get_close_matches(name, sorted(known), 1, 0.7)), "")


# --- the file ---


def read_table(path: str, program: str, fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The settings in the program's table of a file, each of its field's type; other tables are left alone.

    Raises ConfigError naming the file, and the table or the key that is wrong.
    """
    text = read_bounded(path, CONFIG_BYTES, expected="a TOML file")
    try:
        document = tomllib.loads(text.decode())
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply, expected tables of settings") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not a TOML file: {error}") from None
    known = {program, *PROGRAMS}
    for name, value in document.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {printable(name)}: expected it in a table, as in [{program}]")
        if name not in known:
            tables = " or ".join(f"[{each}]" for each in sorted(known))
            raise ConfigError(f"{path}: [{printable(name)}]: there is no such program, expected {tables}")
    if program not in document:
        raise ConfigError(f"{path}: has no table [{program}], expected one, which may be empty")
    table: dict[str, Any] = document[program]
    for name, value in table.items():
        if name not in fields:
            near = closest(name.replace("-", "_"), fields)
            hint = f", expected {near}" if near else ""
            raise ConfigError(f"{path}: [{program}] {printable(name)}: there is no such setting{hint}")
        _check_type(fields[name], f"{path}: {name} = {shown(value)}", value)
    return table


def _check_type(field: FieldInfo, origin: str, value: object) -> None:
    """Refuse what only a text would be converted from: ``threshold = true`` is not 1.0."""
    kind: Any = Annotated[(cast(Any, field).annotation, "of a setting", *field.metadata)]
    try:
        TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(value, strict=True)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {error.errors(include_url=False)[0]['msg']}") from None


def shown(value: object) -> str:
    """A value as it stands in a TOML file, more or less."""
    return json.dumps(value) if isinstance(value, bool) else printable(repr(value))


# --- arguments of the Python API ---


def check_argument(kind: type[Settings], name: str, value: object, *, per_unit: float = 1.0) -> None:
    """Raise ConfigError, naming the argument, for a value that the field of this name does not take.

    per_unit: how many of the field's units one of the argument's is: 1000 for seconds where the flag takes
    milliseconds. None is taken where the field takes it. Strings, paths, booleans and numbers only.
    """
    field = kind.model_fields[name]
    kinds = set(_plain(field.annotation))
    if value is None and type(None) in kinds:
        return
    shown = f"{name}={value!r:.80}"
    if bool in kinds:
        if not isinstance(value, bool):
            raise ConfigError(f"{shown}: expected True or False")
    elif str in kinds:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ConfigError(f"{shown}: expected a path")
    else:
        _check_number(shown, value, int in kinds, _limits(field), per_unit)


def _check_number(shown: str, value: object, whole: bool, limits: dict[str, float], per_unit: float) -> None:
    low = limits.get("ge", limits.get("gt", -math.inf)) / per_unit
    high = limits.get("le", math.inf) / per_unit
    over = "more than " if "gt" in limits else ""
    expected = f"expected {'a whole number' if whole else 'a number'}, {over}{low:.15g} … {high:.15g}"
    # A numpy.bool is neither; a bool is an int.
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise ConfigError(f"{shown}: {expected}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # NaN fails every comparison.
    if not low <= number <= high or (over and number == low) or not math.isfinite(number):
        raise ConfigError(f"{shown}: {expected}")


def _plain(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows."""
    inner = get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        yield from _plain(inner[0])
    elif inner:
        for each in inner:
            yield from _plain(each)
    else:
        yield annotation


def _limits(field: FieldInfo) -> dict[str, float]:
    """``ge``, ``gt`` and ``le`` of a field, also where only one of its alternatives has them."""
    notes = [*field.metadata]
    for alternative in get_args(field.annotation):
        for note in getattr(alternative, "__metadata__", ()):
            notes += note.metadata if isinstance(note, FieldInfo) else [note]
    return {
        name: float(getattr(note, name))
        for note in notes
        for name in ("ge", "gt", "le")
        if getattr(note, name, None) is not None
    }
