"""What the files of containers say, without running any: deploy/check_containers.py does that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from offramp.common.settings import make_parser, read_settings
from offramp.device.settings import DeviceSettings
from offramp.server.settings import ServerSettings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CONTAINERS = DEPLOY / "containers"
IN_THE_IMAGE = {"OFFRAMP_BUNDLE": "/bundle"}


def test_the_health_check_gives_up_before_docker_ends_it() -> None:
    """With 4 s to spare at least, for Python to start; else Docker's log has no word of what is wrong."""
    own = re.search(r"^SECONDS = (\d+)$", (CONTAINERS / "health.py").read_text(), re.MULTILINE)
    dockerfile = (CONTAINERS / "Dockerfile").read_text()
    dockers = re.findall(r"^HEALTHCHECK .*--timeout=(\d+)s", dockerfile, re.MULTILINE)
    assert own is not None and len(dockers) == 2
    assert all(int(own[1]) + 4 <= int(each) for each in dockers)


@pytest.mark.parametrize("file", ["compose.yaml", "compose-chain.yaml"])
def test_commands_of_compose_are_flags_of_the_programs(file: str) -> None:
    services = yaml.safe_load((DEPLOY / file).read_text())["services"]
    ours = {name: each for name, each in services.items() if each["image"].startswith("offramp/")}
    assert len(ours) == 3
    for name, service in ours.items():
        device = service["image"] == "offramp/edge-device"
        kind = DeviceSettings if device else ServerSettings
        parser = make_parser("edge-device" if device else "cloud-server", kind, "", "")
        flags, others = parser.parse_known_args(service["command"])
        read_settings(kind, flags, IN_THE_IMAGE)
        # Arguments of a device that are no settings.
        assert set(others) <= ({"--repeat", "--quiet", "/images"} if device else set()), name


def test_in_a_chain_device_and_server_share_no_network() -> None:
    services = yaml.safe_load((DEPLOY / "compose-chain.yaml").read_text())["services"]
    device, gateway, server = (
        set(services[name]["networks"]) for name in ("edge-device", "edge-server", "cloud-server")
    )
    assert not device & server and device & gateway and gateway & server


@pytest.mark.parametrize("folder", ["kubernetes", "kubernetes/edge-server"])
def test_variables_of_kubernetes_are_settings(folder: str) -> None:
    deployment = yaml.safe_load((DEPLOY / folder / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]} | IN_THE_IMAGE
    arguments = make_parser("cloud-server", ServerSettings, "", "").parse_args([])
    found = read_settings(ServerSettings, arguments, variables)
    assert bool(found.upstream) == ("edge" in folder) and found.token_file is not None
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    files = [value for value in variables.values() if value.startswith("/")]
    assert {str(Path(file).parent) if file != "/bundle" else file for file in files} == mounted
