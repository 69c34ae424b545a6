"""Settings of ``edge-device``; where they come from: ``tests/common/test_settings.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.common.settings import flag_of, make_parser, read_settings
from offramp.device.settings import DeviceSettings


def test_a_file_has_values_of_their_types(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text(
        '[edge-device]\nbundle = "a"\nthreshold = 1\nserver = ["h:1", "i:2, j:3"]\nbyte_budget = "2kB/s"\n'
    )
    parser = make_parser("edge-device", DeviceSettings, "", "")
    device = read_settings(DeviceSettings, parser.parse_args(["--config", str(path)]), {})
    assert (device.threshold, device.server, device.byte_budget) == (1, ("h:1", "i:2", "j:3"), 2000)
    path.write_text('[edge-device]\nbundle = "a"\nthreshold = true\n')
    with pytest.raises(ConfigError, match="threshold = true: "):
        read_settings(DeviceSettings, parser.parse_args(["--config", str(path)]), {})


def test_a_size_has_a_unit() -> None:
    parser = make_parser("edge-device", DeviceSettings, "", "")

    def size(text: str) -> int:
        given = parser.parse_args(["--bundle", "b", "--keep-bytes", text])
        return read_settings(DeviceSettings, given, {}).keep_bytes

    assert [size(text) for text in ("1GB", "200 MB", "70000", "70kB")] == [10**9, 2 * 10**8, 70_000, 70_000]
    for text in ("1gb", "1GiB", "-1", "1.5GB", "", "10kB", "9" * 5000):
        with pytest.raises(ConfigError, match="--keep-bytes"):
            size(text)


def test_the_program_names_its_flags() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "offramp.device.app", "--help"], capture_output=True, text=True, check=True
    )
    assert all(flag_of(name) in done.stdout for name in DeviceSettings.model_fields)
