"""The list of devices: what is read, and that no error repeats a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.gateway.devices import read_devices

KEY, OTHER = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"


def test_a_list(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    path.write_text(f'[hive-3]\nnumber = 513\nkey = "{KEY}"\n["gate.1"]\nnumber = 0\nkey = "{OTHER * 2}"\n')
    devices = read_devices(str(path))
    assert {number: each.name for number, each in devices.items()} == {513: "hive-3", 0: "gate.1"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no device"),
        (f'[a]\nnumber = 1\nkey = "{KEY}', "is not a TOML file: at "),
        ("[" * 5000, "is not a TOML file|nested too deeply"),
        (f'["a b"]\nnumber = 1\nkey = "{KEY}"', "expected a name of letters"),
        (f'[a]\nkey = "{KEY}"', "expected a table of number and key"),
        (f'[a]\nnumber = 65536\nkey = "{KEY}"', "expected 0 … 65535"),
        (f'[a]\nnumber = true\nkey = "{KEY}"', "expected 0 … 65535"),
        ("[a]\nnumber = 1\nkey = 5", "expected a text of 32 or 64"),
        (f'[a]\nnumber = 1\nkey = "{KEY[:-1]}"', "expected a key of 32 or 64 hexadecimal digits"),
        (f'[a]\nnumber = 1\nkey = "{KEY}"\n[b]\nnumber = 1\nkey = "{OTHER}"', "number 1, as a has"),
        (f'[a]\nnumber = 1\nkey = "{KEY}"\n[b]\nnumber = 2\nkey = "{KEY.upper()}"', "the key of a"),
    ],
)
def test_lists_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_devices(str(path))
    assert KEY[:16] not in str(caught.value).lower() and "devices.toml" in str(caught.value)
