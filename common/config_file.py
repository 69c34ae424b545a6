"""Settings of a TOML file: one table for each program, whose values have TOML's own types."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from offramp.common.environment import closest
from offramp.common.errors import ConfigError, printable
from offramp.common.files import read_bounded

CONFIG_BYTES = 1 << 20
PROGRAMS = ("cloud-server", "edge-device")


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
        raise ConfigError(f"{path}: is no TOML file: {error}") from None
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
