"""The devices that a gateway knows: number, name and key of each, from one TOML file.

    [hive-3]
    number = 513
    key = "000102030405060708090a0b0c0d0e0f"

Rules: a name is of letters, digits, dots and dashes; no number and no key comes twice; errors never repeat a
key.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from offramp.common.errors import ConfigError, printable
from offramp.common.files import read_bounded
from offramp.common.wire.datagram import DEVICES, Seal
from offramp.common.wire.seal import parse_key
from offramp.link.mqtt import NAME

FILE_BYTES = 16 << 20
FLAG = "--devices"


@dataclass(frozen=True, slots=True)
class Known:
    """One device."""

    number: int
    name: str
    key: Seal


def read_devices(path: str) -> dict[int, Known]:
    """By number. Raises ConfigError naming the file, and the device that is wrong."""
    data = read_bounded(path, FILE_BYTES, name=f"{FLAG} {path}", expected="a TOML file")
    try:
        document = tomllib.loads(data.decode())
    except RecursionError:
        raise ConfigError(f"{FLAG} {path}: is nested too deeply, expected a table for each device") from None
    except ValueError as error:
        # Of tomllib's messages only some quote the text, which may be a key.
        where = str(error).rpartition("(")[2].rstrip(")") if "(" in str(error) else "it"
        raise ConfigError(f"{FLAG} {path}: is not a TOML file: {where}") from None
    found: dict[int, Known] = {}
    keys: dict[str, str] = {}
    for name, value in document.items():
        where = f"{FLAG} {path}: [{printable(name)}]"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{where}: expected a name of letters, digits, dots and dashes, 1 … 64")
        if not isinstance(value, dict) or value.keys() != {"number", "key"}:
            raise ConfigError(f"{where}: expected a table of number and key")
        number, key = value["number"], value["key"]
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < DEVICES:
            raise ConfigError(f"{where}: number: expected 0 … {DEVICES - 1}")
        if not isinstance(key, str):
            raise ConfigError(f"{where}: key: expected a text of 32 or 64 hexadecimal digits")
        if number in found:
            raise ConfigError(f"{where}: has number {number}, as {found[number].name} has, expected another")
        if key.lower() in keys:
            raise ConfigError(f"{where}: has the key of {keys[key.lower()]}, expected one of its own")
        keys[key.lower()] = name
        found[number] = Known(number, name, parse_key(f"{where}: key", key))
    if not found:
        raise ConfigError(f"{FLAG} {path}: has no device, expected a table for each")
    return found
