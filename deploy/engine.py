"""A Docker engine for ``check_containers.py`` alone: another one on the machine stays as it is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parent
ROOT = DEPLOY.parent
DOCKERFILE = DEPLOY / "containers" / "Dockerfile"
WAIT = 300.0
"""Seconds for anything that is waited for: a guard against hanging, far beyond what is usual."""
PASSED_ON = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")
"""Settings of this machine's pip that hold inside too; paths of this machine do not."""


class Failed(Exception):
    """What was wrong, for a person."""


_BEGAN = time.monotonic()


def say(text: str) -> None:
    """A line, with the seconds since the start."""
    print(f"{time.monotonic() - _BEGAN:6.0f} s  {text}", flush=True)


def expect(condition: object, what: str) -> None:
    """Raise Failed unless it holds."""
    if not condition:
        raise Failed(what)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it. Raises Failed after ``WAIT``."""
    end = time.monotonic() + WAIT
    while not condition():
        expect(time.monotonic() < end, f"waited {WAIT:g} s for {what}")
        time.sleep(0.5)


def run(*command: object, given: str | None = None, log: Path | None = None, **variables: str) -> str:
    """Run a program in the repository; its output, also written to ``log``. Raises Failed where it fails.

    given: its standard input. log: has all of the output, of which an error then says the end alone.
    """
    done = subprocess.run(
        [str(word) for word in command],
        input=given,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode:
        shown = slice(None) if log is None else slice(-40, None)
        end = "\n".join([*done.stdout.splitlines()[shown], *done.stderr.splitlines()[shown]])
        raise Failed(f"{shlex.join(map(str, command))}: exit status {done.returncode}\n{end}")
    return done.stdout


class Engine:
    """The client's side of a running daemon."""

    def __init__(self, work: Path, address: str) -> None:
        self.work = work
        # The builder that is part of the daemon: the other one gets its front end from a registry.
        self.variables = {"DOCKER_HOST": address, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
        self._compose = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]

    def docker(self, *words: object, log: Path | None = None) -> str:
        """``docker …``."""
        return run("docker", *words, log=log, **self.variables)

    def compose(self, file: str, project: str, *words: object, **variables: str) -> str:
        """``docker-compose …`` of a file in deploy/."""
        names = ("--project-name", project, "--file", DEPLOY / file)
        return run(*self._compose, *names, *words, **self.variables, **variables)

    def inspect(self, container: str) -> dict[str, Any]:
        """What the daemon says of a container."""
        (found,) = json.loads(self.docker("inspect", container))
        return dict(found)

    def has(self, image: str) -> bool:
        """Whether the daemon has an image of this name."""
        return bool(self.docker("images", "--quiet", image).strip())

    def python(self, container: str, program: str) -> subprocess.CompletedProcess[str]:
        """Run a program of Python's inside a container."""
        command = ["docker", "exec", container, "python3", "-I", "-c", program]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=WAIT, env={**os.environ, **self.variables}
        )


def mounts(folder: Path) -> list[str]:
    """What is mounted in there now, in the order in which it was."""
    paths = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [path for path in paths if Path(path).is_relative_to(folder)]


@contextmanager
def engine(work: Path) -> Iterator[Engine]:
    """A daemon with all its files in ``work``, which may be those of a run before. As root."""
    address = f"unix://{work}/docker.sock"
    command = ["dockerd", "--host", address, "--data-root", work / "data", "--exec-root", work / "run"]
    # Compose makes networks of its own; what is built has this machine's.
    command += ["--pidfile", work / "docker.pid", "--bridge", "none"]
    # It would leave chains behind, and a policy to drop what is forwarded. Without, a proxy publishes ports,
    # and containers reach nothing outside.
    command += ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    (work / "docker.pid").unlink(missing_ok=True)
    with (work / "dockerd.log").open("w") as log:
        daemon = subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT)
    found = Engine(work, address)
    try:

        def answers() -> bool:
            expect(daemon.poll() is None, f"dockerd ended:\n{(work / 'dockerd.log').read_text()[-3000:]}")
            try:
                found.docker("version")
            except Failed:
                return False
            return True

        until(answers, "dockerd to answer")
        yield found
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(60)
        # It leaves at least the mount of its network namespace.
        for path in reversed(mounts(work)):
            subprocess.run(["umount", "--lazy", path])


def require_tools() -> None:
    """Raise Failed where something is missing."""
    expect(os.geteuid() == 0, "expected to be run as root: a Docker engine is started")
    missing = [
        name for name in ("dockerd", "docker", "debootstrap", "prometheus") if shutil.which(name) is None
    ]
    expect(not missing, f"{', '.join(missing)}: not installed: deploy/install-checkers.sh containers")


def base_name() -> str:
    """The image that the Dockerfile begins from."""
    found = re.search(r"^ARG DEBIAN=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    expect(found, f"{DOCKERFILE}: has no ARG DEBIAN=…")
    assert found is not None
    return found[1]


def import_base(docker: Engine, mirror: str, architecture: str = "amd64", name: str = "") -> None:
    """Debian as debootstrap makes it, under the name that the Dockerfile asks for, if the daemon has none."""
    name = name or base_name()
    if docker.has(name):
        return
    tree = docker.work / f"debian-{architecture}"
    shutil.rmtree(tree, ignore_errors=True)
    log = docker.work / f"debootstrap-{architecture}.log"
    run("debootstrap", f"--arch={architecture}", "--variant=minbase", "bookworm", tree, mirror, log=log)
    teach_pip(tree)
    archive = docker.work / "debian.tar"
    run("tar", "--numeric-owner", "-C", tree, "-cf", archive, ".")
    load_layer(docker, archive, architecture, name)
    archive.unlink()
    shutil.rmtree(tree)
    say(f"{name}: loaded, {architecture}")


def load_layer(docker: Engine, layer: Path, architecture: str, name: str) -> None:
    """An image of one layer, of this architecture: ``docker import`` always writes this machine's own."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": [layer.name]}]
    image = docker.work / "image.tar"
    with tarfile.open(image, "w") as archive:
        archive.add(layer, layer.name)
        for file_name, content in (("config.json", config), ("manifest.json", manifest)):
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(file_name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    docker.docker("load", "--input", image)
    image.unlink()


def teach_pip(tree: Path) -> None:
    """Where this machine's pip is given an index or an authority of its own, the base's is given the same."""
    found: dict[str, str] = {}
    lines = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    # Variables last: they win over files.
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        where, _, name = key.rpartition(".")
        if where in ("global", "install", ":env:"):
            found[name] = shlex.split(value)[0] if value else ""
    authority = found.get("cert") or os.environ.get("SSL_CERT_FILE")
    written = ["[global]"]
    for name in PASSED_ON:
        remote = [each for each in found.get(name, "").split() if not each.startswith("file:")]
        if remote:
            written.append(f"{name} = {' '.join(remote)}")
    if authority:
        shutil.copyfile(authority, tree / "etc" / "pip-authority.pem")
        written.append("cert = /etc/pip-authority.pem")
    (tree / "etc" / "pip.conf").write_text("\n".join(written) + "\n")


def build(docker: Engine, targets: Sequence[tuple[str, str]], *options: str) -> None:
    """Build the Dockerfile's targets, each with its tag."""
    for target, tag in targets:
        docker.docker(
            *("build", "--network", "host", "--target", target, "--tag", tag, *options),
            *("--file", DOCKERFILE, ROOT),
            log=docker.work / f"{tag.replace('/', '-').replace(':', '-')}.log",
        )
        size = int(docker.docker("image", "inspect", "--format", "{{.Size}}", tag))
        say(f"{tag}: built, {size / 1e6:.0f} MB")


def build_prometheus(docker: Engine, tag: str) -> None:
    """Debian's Prometheus, in place of the published image of this name."""
    if docker.has(tag):
        return
    context = docker.work / "prometheus"
    context.mkdir(exist_ok=True)
    shutil.copy(str(shutil.which("prometheus")), context / "prometheus")
    (context / "Dockerfile").write_text(
        f"FROM {base_name()}\nCOPY prometheus /usr/bin/prometheus\n"
        "RUN install -d -o 65534 -g 65534 /prometheus\nUSER 65534:65534\n"
        'ENTRYPOINT ["/usr/bin/prometheus"]\n'
    )
    docker.docker("build", "--network", "host", "--tag", tag, context, log=docker.work / "prometheus.log")
