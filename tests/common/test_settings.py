"""Where a setting comes from, and which place wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.common.settings import NAMES, flag_of, make_parser, read_settings, variable_of
from offramp.device.settings import DeviceSettings
from offramp.gateway.settings import GatewaySettings
from offramp.server.settings import ServerSettings


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


def test_every_flag_of_several_values_may_be_given_again() -> None:
    found = settings("--bundle", "b", "--pictures", "x", "--pictures", "y", "--trusted-key", "k")
    assert (found.pictures, found.trusted_key) == (("x", "y"), ("k",))
    for kind in (ServerSettings, DeviceSettings):
        parser = make_parser("cloud-server", kind, "", "")
        for name, field in kind.model_fields.items():
            if "tuple" in str(field.annotation):
                given = vars(parser.parse_args([flag_of(name), "a", flag_of(name), "b"]))[name]
                assert given == ["a", "b"], name
            else:
                assert "given again" not in (field.description or ""), name


def test_every_setting_can_come_from_each_place() -> None:
    for name, field in ServerSettings.model_fields.items():
        others = {
            "log_level": "debug",
            "log_format": "json",
            "message_bytes": "20000",
            "providers": "cpu",
        }
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
        ("[cloud-server]\nmax-batch = 1\n", "max-batch: there is no such setting, expected max_batch"),
        (
            "[cloud-serve]\nqueue = 1\n",
            r"\[cloud-serve\]: there is no such program, expected \[cloud-server\] or",
        ),
        ("[cloud-server]\n[edge-devise]\n", r"\[edge-devise\]: there is no such program"),
        ("[edge-device]\n", r"has no table \[cloud-server\]"),
        ("", r"has no table \[cloud-server\]"),
        ("[[cloud-server]]\n", r"cloud-server: expected it in a table"),
        ("x = " + "[" * 20_000, "is "),
        ("queue = 1\n", r"queue: expected it in a table, as in \[cloud-server\]"),
        ("[cloud-server]\nqueue = 0\n", "queue = 0: Input should be greater"),
        ("[cloud-server\n", "is not a TOML file"),
        ("\0", "is not a TOML file"),
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


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("OFFRAMP_TRESHOLD", "OFFRAMP_THRESHOLD"),
        ("OFFRAMP_QEUE", "OFFRAMP_QUEUE"),
        ("OFFRAMP_MAXBATCH", "OFFRAMP_MAX_BATCH"),
        ("OFFRAMP_MAX_BATCHES", "OFFRAMP_MAX_BATCH"),
        ("OFFRAMP_CONFG", "OFFRAMP_CONFIG"),
        ("OFFRAMP_SOMETHING_ELSE_ENTIRELY", "a variable of the documents"),
        ("OFFRAMP_", "a variable of the documents"),
        ("OFFRAMP_PORT", "OFFRAMP_PART"),
    ],
)
def test_a_variable_that_is_no_setting_is_an_error_without_its_value(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: there is no such setting, expected {near}$") as wrong:
        settings("--bundle", "b", **{name: "hush-hush"})
    assert "hush" not in str(wrong.value)


def test_variables_of_our_other_programs_and_of_others_are_fine() -> None:
    found = settings(
        "--bundle", "b", OFFRAMP_THRESHOLD="0.9", OFFRAMP_CODER="python", OFFRAMPS="1", XOFFRAMP_Q="1"
    )
    assert found.queue == 1024


SERVICE = {
    "OFFRAMP_SERVER_SERVICE_HOST": "10.96.0.5",
    "OFFRAMP_SERVER_SERVICE_PORT": "50051",
    "OFFRAMP_SERVER_SERVICE_PORT_GRPC": "50051",
    "OFFRAMP_SERVER_PORT": "tcp://10.96.0.5:50051",
    "OFFRAMP_SERVER_PORT_50051_TCP": "tcp://10.96.0.5:50051",
    "OFFRAMP_SERVER_PORT_50051_TCP_PROTO": "tcp",
    "OFFRAMP_SERVER_PORT_50051_TCP_PORT": "50051",
    "OFFRAMP_SERVER_PORT_50051_TCP_ADDR": "10.96.0.5",
    "OFFRAMP_SERVICE_HOST": "10.96.0.6",
    "OFFRAMP_PORT": "udp://[fd00::1]:53",
    "OFFRAMP_PORT_53_UDP": "udp://[fd00::1]:53",
}


def test_what_kubernetes_sets_for_a_service_is_left_alone() -> None:
    assert settings("--bundle", "b", **SERVICE).queue == 1024


@pytest.mark.parametrize("value", ["tcp://10.96.0.5:9101", "tcp://[fd00::5]:9101", "udp://10.0.0.1:1"])
def test_a_setting_that_kubernetes_has_set_names_the_way_out(value: str) -> None:
    with pytest.raises(ConfigError, match=r"Kubernetes for a Service called offramp-metrics") as wrong:
        settings("--bundle", "b", OFFRAMP_METRICS_PORT=value)
    assert "enableServiceLinks: false" in str(wrong.value)
    assert settings("--bundle", "b", "--metrics-port", "1", OFFRAMP_METRICS_PORT=value).metrics_port == 1


@pytest.mark.parametrize(
    "line",
    [
        "queue = true",
        "queue = 3.0",
        'queue = "3"',
        "grace = true",
        'grace = "7"',
        "grace = nan",
        'insecure = "yes"',
        "insecure = 1",
        "listen = 50051",
        "token_file = true",
        "bundle = [1]",
        "bundle = true",
        "metrics_port = 2026-01-01",
        "max_wait_ms = false",
        "log_level = 1",
        "trusted_key = {a = 1}",
    ],
)
def test_a_file_has_types(tmp_path: Path, line: str) -> None:
    path = tmp_path / "file.toml"
    path.write_text(f"[cloud-server]\n{line}\n")
    name = line.split(" ")[0]
    with pytest.raises(ConfigError, match=f"^{path}: {name} = [^:]+: ") as wrong:
        settings("--bundle", "b", "--config", str(path))
    assert "True" not in str(wrong.value)


def test_a_file_takes_what_is_of_its_type(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text('[cloud-server]\nbundle = "a:b"\ngrace = 7\nmax_wait_ms = 0.5\ntrusted_key = ["k"]\n')
    found = settings("--config", str(path))
    assert (found.bundle, found.grace, found.max_wait_ms, found.trusted_key) == (("a", "b"), 7, 0.5, ("k",))


def test_the_settings_of_all_programs_are_known() -> None:
    """One environment may be that of several programs, which do not import each other."""
    programs = (DeviceSettings, ServerSettings, GatewaySettings)
    assert set[str]().union(*(program.model_fields for program in programs)) == NAMES
