"""Checks every file in deploy/ by its own tool: make check-deploy

Each check names the files that it answers for; a file that no check answers for is an error, and so is a
missing tool. deploy/install-checkers.sh installs Debian's tools, the extra [dev] the others.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from engine import DEPLOY, ROOT, Failed, run

SCHEMAS = DEPLOY / "kubernetes" / "schemas"
CUSTOM = {"Gateway", "GRPCRoute", "PodMonitor"}
COMPOSE = {"compose.yaml": "targets", "compose-chain.yaml": "chain"}
"""Each file, and the folder of its Prometheus' targets."""
KUSTOMIZE = ("kubernetes", "kubernetes/edge-server", "kubernetes/edge-device", "kubernetes-follow")
UNITS = {
    "edge-device": "edge-device",
    "edge-server": "edge-server",
    "edge-device-follow": "edge-device",
    "cloud-server-follow": "cloud-server",
}
"""Units of systemd's, and the program that each runs, by itself or by offramp follow."""
BIN = "/opt/offramp/bin/"
NO_SCHEMA = {"BackendTrafficPolicy"}
"""Custom resources whose schema no package registry has: only read as YAML."""


def tool(name: str) -> str:
    """The path of a program: of this Python's environment, or of the system."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Failed(f"{name} is not installed: deploy/install-checkers.sh, or pip install '.[dev]'")
    return found


def dockerfile() -> str:
    run(tool("hadolint"), "--config", "deploy/containers/hadolint.yaml", "deploy/containers/Dockerfile")
    return "hadolint"


def shell_scripts() -> list[Path]:
    return [*sorted(DEPLOY.glob("*.sh")), *sorted(DEPLOY.glob("*/*.sh")), ROOT / "runs" / "image-size.sh"]


def scripts() -> str:
    run(tool("shellcheck"), *shell_scripts())
    return "shellcheck"


def python() -> str:
    run(tool("ruff"), "check", DEPLOY)
    return "ruff"


def compose() -> str:
    try:
        run("docker", "compose", "version")
        program = ["docker", "compose"]
    except (Failed, FileNotFoundError):
        program = [tool("docker-compose")]
    for file, targets in COMPOSE.items():
        run(*program, "--file", DEPLOY / file, "config", "--quiet", BUNDLE="/bundle", IMAGES="/images")
        services = read(DEPLOY / file)[0]["services"]
        for path in sorted((DEPLOY / "prometheus" / targets).glob("*.yml")):
            named = {each.split(":")[0] for group in read(path)[0] for each in group["targets"]}
            if not named or named - set(services):
                raise Failed(f"{path.relative_to(ROOT)}: {sorted(named)}, expected services of {file}")
    return f"{' '.join(Path(word).name for word in program)} config; Prometheus' targets compared"


def prometheus() -> str:
    folder = DEPLOY / "prometheus"
    promtool = tool("promtool")
    run(promtool, "check", "config", folder / "prometheus.yml")
    run(promtool, "check", "rules", *sorted((folder / "rules").glob("*.yml")))
    run(promtool, "test", "rules", *sorted((folder / "tests").glob("*.yml")))
    return "promtool check config, check rules, test rules"


def grafana() -> str:
    run(sys.executable, DEPLOY / "grafana" / "dashboard.py", "--check")
    (source,) = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")[0]["datasources"]
    (provider,) = read(DEPLOY / "grafana/provisioning/dashboards/offramp.yml")[0]["providers"]
    board = json.loads((DEPLOY / "grafana/dashboards/offramp.json").read_text())
    used = {panel["datasource"]["uid"] for panel in board["panels"] if panel["type"] != "row"}
    if used != {source["uid"]}:
        raise Failed(
            f"the dashboard asks {used}, expected the data source that is provisioned, {source['uid']}"
        )
    services = read(DEPLOY / "compose.yaml")[0]["services"]
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    if provider["options"]["path"] not in mounts:
        raise Failed(f"compose.yaml mounts {mounts}, expected {provider['options']['path']} among them")
    return "grafana-foundation-sdk; data source and mounts compared"


def image_variables() -> dict[str, str]:
    """What the Dockerfile sets for both programs."""
    text = (DEPLOY / "containers" / "Dockerfile").read_text()
    return {"OFFRAMP_BUNDLE": re.findall(r"OFFRAMP_BUNDLE=(\S+)", text)[0]}


def kubernetes() -> str:
    objects: list[dict[str, Any]] = []
    for folder in KUSTOMIZE:
        built = run(tool("kubectl"), "kustomize", f"deploy/{folder}")
        objects += yaml.safe_load_all(built)
    for each in objects:
        for container in (
            each["spec"]["template"]["spec"]["containers"] if "template" in each.get("spec", {}) else []
        ):
            variables = image_variables() | {one["name"]: one["value"] for one in container["env"]}
            words = [*container.get("command", [container["name"]]), *container.get("args", [])]
            check_words(f"{each['kind']} {each['metadata']['name']}", words, variables)
    custom = [each for each in objects if each["kind"] in CUSTOM]
    core = [each for each in objects if each["kind"] not in CUSTOM | NO_SCHEMA]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(core, file)
        file.flush()
        said = run(tool("kubernetes-validate"), "--strict", file.name)
    if said.count(" passed ") != len(core):
        raise Failed(f"kubernetes-validate passed not all of {len(core)}:\n{said}")
    run(tool("npm"), "ci", "--prefix", SCHEMAS, "--no-audit", "--no-fund", "--loglevel", "error")
    run(tool("node"), SCHEMAS / "validate.mjs", given=json.dumps(custom))
    unchecked = ", ".join(sorted(each["kind"] for each in objects if each["kind"] in NO_SCHEMA))
    return (
        f"kubectl kustomize; {len(core)} objects by kubernetes-validate, {len(custom)} by their models; "
        f"no schema of {unchecked}"
    )


def systemd() -> str:
    exposures = []
    for name in UNITS:
        text = (DEPLOY / "systemd" / f"{name}.service").read_text()
        programs = set(re.findall(rf"{BIN}([\w-]+) (?!install)", text))
        wanted = {UNITS[name]} | ({"offramp"} if name.endswith("-follow") else set())
        if programs != wanted:
            raise Failed(f"{name}.service: runs {sorted(programs)}, expected {sorted(wanted)} of {BIN}")
        with tempfile.TemporaryDirectory() as folder:
            # systemd wants the programs to be there.
            unit = Path(folder) / f"{name}.service"
            unit.write_text(re.sub(rf"{BIN}[\w-]+", shutil.which("true") or "true", text))
            run(tool("systemd-analyze"), "verify", unit)
            table = run(tool("systemd-analyze"), "security", "--offline=true", unit)
        exposure = re.search(r"Overall exposure level[^:]*: ([0-9.]+)", table)
        exposures.append(f"{name} {exposure[1] if exposure else table}")
    return f"systemd-analyze verify; security: exposure {', '.join(exposures)}"


def check_words(where: str, words: list[str], variables: dict[str, str]) -> argparse.Namespace | None:
    """Flags and variables by the programs' own rules; the flags of ``offramp follow`` are returned."""
    sys.path.insert(0, str(ROOT))
    from offramp.cli.follow.app import parse
    from offramp.common.errors import ConfigError
    from offramp.common.settings import make_parser, read_settings
    from offramp.device.settings import DeviceSettings
    from offramp.server.settings import ServerSettings

    try:
        follow = None
        if Path(words[0]).name == "offramp":
            follow, words = parse(words[2:])
        program = Path(words[0]).name
        kind = DeviceSettings if program == "edge-device" else ServerSettings
        arguments, _ = make_parser(program, kind, "", "").parse_known_args(words[1:])
        if "config" in arguments:
            if arguments.config != f"/etc/offramp/{program}.toml":
                raise Failed(f"{where}: --config {arguments.config}, expected /etc/offramp/{program}.toml")
            arguments.config = str(DEPLOY / "systemd" / f"{program}.toml")
        read_settings(kind, arguments, variables)
    except ConfigError as error:
        raise Failed(f"{where}: {error}") from None
    return follow


def settings() -> str:
    """Those of the units, with the files beside them."""
    for name in UNITS:
        unit = (DEPLOY / "systemd" / f"{name}.service").read_text().replace("\\\n", " ")
        words = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0].split()
        follow = check_words(f"{name}.service", words, {})
        if follow is not None and f"StateDirectory={follow.dir.parent.name} " not in unit:
            raise Failed(f"{name}.service: --dir {follow.dir}, expected it in its StateDirectory")
    return f"the settings of {', '.join(UNITS)}"


def read(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def ray_serve() -> str:
    """The application that serve.yaml names, with arguments that are cloud-server's settings."""
    import ast

    from offramp.server.settings import ServerSettings

    (config,) = read(DEPLOY / "ray" / "serve.yaml")
    (application,) = config["applications"]
    defined = {
        node.name
        for node in ast.parse((DEPLOY / "ray" / "app.py").read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = [application["import_path"].replace(":", "."), *config["grpc_options"]["grpc_servicer_functions"]]
    for name in named:
        if name.removeprefix("offramp.ray.app.") not in defined:
            raise Failed(f"serve.yaml: {name} is not in deploy/ray/app.py")
    unknown = set(application["args"]) - set(ServerSettings.model_fields)
    if unknown:
        raise Failed(f"serve.yaml: args: {', '.join(sorted(unknown))}: no settings of cloud-server")
    return "its names, and cloud-server's settings; make test-ray runs it"


def nginx() -> str:
    """By nginx itself, with a certificate made for it and on a port that anybody may have."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate, key = folder / "offramp.pem", folder / "offramp.key"
        names = ("-subj", "/CN=gateway.example", "-keyout", key, "-out", certificate)
        run(tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names)
        text = (DEPLOY / "nginx" / "offramp.conf").read_text()
        for old, new in (
            ("/etc/nginx/offramp.pem", certificate),
            ("/etc/nginx/offramp.key", key),
            ("listen 443", "listen 127.0.0.1:44343"),
            ("listen [::]:443 ssl http2;", ""),
        ):
            if old not in text:
                raise Failed(f"deploy/nginx/offramp.conf: has no '{old}', expected it to be tried")
            text = text.replace(old, str(new))
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{text}\n}}\n"
        )
        run(tool("nginx"), "-t", "-q", "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf")
    return "nginx -t"


CHECKS: list[tuple[Callable[[], str], tuple[str, ...]]] = [
    (dockerfile, ("containers/Dockerfile", "containers/hadolint.yaml")),
    (scripts, ("**/*.sh",)),
    (python, ("**/*.py",)),
    (compose, ("compose*.yaml", "prometheus/chain/*.yml")),
    (prometheus, ("prometheus/**/*.yml",)),
    (grafana, ("grafana/provisioning/**/*.yml", "grafana/dashboards/*.json")),
    (
        kubernetes,
        (
            "kubernetes/**/*.yaml",
            "kubernetes-follow/*.yaml",
            "kubernetes/schemas/*.json",
            "kubernetes/schemas/*.mjs",
        ),
    ),
    (systemd, ("systemd/*.service",)),
    (settings, ("systemd/*.toml",)),
    (nginx, ("nginx/*.conf",)),
    (ray_serve, ("ray/serve.yaml", "ray/py.typed")),
]


def main() -> int:
    """Run all checks; exit status 1 if one complains."""
    tracked = {
        ROOT / name
        for name in run(
            "git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy"
        ).splitlines()
    }
    status = 0
    answered: set[Path] = set()
    for check, patterns in CHECKS:
        files = {file for pattern in patterns for file in DEPLOY.glob(pattern)} & tracked
        answered |= files
        try:
            if not files:
                raise Failed(f"no file matches {patterns}")
            print(f"{check.__name__:<12} {len(files):>2} files   {check()}", flush=True)
        except (Failed, OSError) as failure:
            print(f"{check.__name__}: {failure}", file=sys.stderr, flush=True)
            status = 1
    for file in sorted(tracked - answered):
        print(f"{file.relative_to(ROOT)}: no check answers for it", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
