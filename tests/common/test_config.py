"""Where a setting comes from, and which place wins."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.common.config import ServerSettings, flag_of, make_parser, read_settings, variable_of
from offramp.common.errors import ConfigError
from offramp.common.telemetry import JsonFormatter


def settings(*flags: str, **environment: str) -> ServerSettings:
    arguments = make_parser("cloud-server", ServerSettings, "", "").parse_args(flags)
    return read_settings(ServerSettings, arguments, environment)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "offramp.toml"
    path.write_text(
        '[cloud-server]\nbundle = ["a", "b"]\nqueue = 3\nstrikes = 4\ninsecure = true\n[edge-device]\nx = 1\n'
    )
    return path


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(file: Path) -> None:
    found = settings("--config", str(file), "--queue", "1", OFFRAMP_QUEUE="2", OFFRAMP_GRACE="7")
    assert (found.queue, found.grace, found.strikes, found.insecure) == (1, 7, 4, True)
    assert (found.bundle, found.max_streams) == (("a", "b"), 1024)
    found = settings("--no-insecure", OFFRAMP_CONFIG=str(file), OFFRAMP_QUEUE="2", OFFRAMP_BUNDLE="c:d")
    assert (found.queue, found.insecure, found.bundle) == (2, False, ("c", "d"))
    assert settings("--bundle", "x", "--bundle", "y", OFFRAMP_CONFIG=str(file)).bundle == ("x", "y")
    assert settings("--bundle", "x", OFFRAMP_INSECURE="1", OFFRAMP_LOG_FORMAT="json").log_format == "json"


def test_every_setting_can_come_from_each_place() -> None:
    for name, field in ServerSettings.model_fields.items():
        others = {"log_level": "debug", "log_format": "json", "message_bytes": "20000"}
        value = others.get(name, "1")
        assert getattr(settings("--bundle", "b", **{variable_of(name): value}), name) is not None
        if field.annotation is not bool:
            assert settings("--bundle", "b", flag_of(name), value).bundle
    with pytest.raises(ConfigError, match="the following arguments are required: --bundle"):
        settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cloud-server]\nqeue = 1\n", r"\[cloud-server\] qeue: there is no such setting"),
        ("queue = 1\n", r"queue: expected it in a table, as in \[cloud-server\]"),
        ("[cloud-server]\nqueue = 0\n", "queue = 0: Input should be greater"),
        ("[cloud-server\n", "is no TOML file"),
        ("\0", "is no TOML file"),
        (None, "No such file or directory"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as wrong:
        settings("--bundle", "b", "--config", str(path))
    assert str(path) in str(wrong.value)


def test_a_wrong_variable_is_told_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"^OFFRAMP_QUEUE=many: "):
        settings("--bundle", "b", OFFRAMP_QUEUE="many")


def test_a_json_log_line_is_one_object() -> None:
    record = logging.LogRecord("offramp.x", logging.WARNING, "", 0, "%s\nwith a line", ("ü",), None)
    event = json.loads(JsonFormatter("cloud-server").format(record))
    assert (event["level"], event["program"], event["message"]) == (
        "warning",
        "cloud-server",
        "ü\nwith a line",
    )
    assert event["time"].endswith("+00:00")


def test_the_programs_name_their_flags() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "offramp.server.app", "--help"], capture_output=True, text=True, check=True
    )
    assert all(flag_of(name) in done.stdout for name in ServerSettings.model_fields)
