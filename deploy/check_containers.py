"""Builds the images and runs both Compose files for real: make check-containers

As root on Debian, after deploy/install-checkers.sh containers. A Docker engine is started and ended; no
registry of images is asked: the base is debootstrap's, Prometheus is Debian's. What is asserted:

    health, Prometheus' targets, the demo's figures through Prometheus, image by image against those made here
    read-only file systems, no capabilities, no new privileges, limits of memory and processes, in force
    a killed container starts again and its devices are answered again; stop ends all by their own exit status
    three machines: who answers what, and that the device cannot reach the server
    the device image for arm64, under QEMU: what it answers and sends is the same to the byte
    firewall, bridges, mounts and forwarding of this machine are as before

    deploy/check_containers.py --work DIR      keep base, images and logs in DIR for the next run
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import arm64
import engine
import host
import numpy as np
import yaml
from engine import DEPLOY, ROOT, Engine, Failed, expect, say, until
from PIL import Image

PROMETHEUS = "http://127.0.0.1:9090"
MIRROR = "http://deb.debian.org/debian"
BEHIND = 6
"""Images that may be on their way when a page is read, or that a busy machine answered too late."""
IMAGES_TOTAL = "offramp_device_images_total"
IMAGES = ROOT / "examples" / "digits"
BUNDLE = ROOT / "models" / "digits-mobilenetv2-exit12"
DEVICES = ("edge-device-frugal", "edge-device-careful")
COMPOSE = ("compose.yaml", "compose-chain.yaml")


# --- what this machine answers ---


def digits_parts(threshold: float) -> list[int]:
    """1 for each example that exits early at this threshold, else 2; in the order of their names."""
    from offramp.common.bundle.load import load_bundle
    from offramp.common.part.session import session
    from offramp.device import preprocess

    bundle = load_bundle(BUNDLE)
    images = np.stack([preprocess(path.read_bytes(), bundle) for path in sorted(IMAGES.glob("*.png"))])
    (logits,) = session(bundle.head, threads=1).run(["logits"], {"image": images})
    scaled = np.exp((logits - logits.max(axis=1, keepdims=True)) / bundle.manifest.temperature)
    confidence = scaled.max(axis=1) / scaled.sum(axis=1)
    return [1 if each > threshold else 2 for each in confidence]


def toy_chain(bundle: Path, images: Path) -> list[int]:
    """Write a bundle of three parts and pictures for it; the part that answers each."""
    from offramp.common.part.chain import run_chain
    from offramp.common.part.engine import Engine as Parts
    from tests import toy, toy_chain

    found = toy_chain.write(bundle, 3)
    pictures = toy.images(200)
    # Whoever reads it is not who wrote it.
    bundle.chmod(0o755)
    for path in bundle.iterdir():
        path.chmod(0o644)
    images.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.transpose(1, 2, 0)).save(images / f"{number:03}.png")
    return [int(part) for part in run_chain(Parts(found), pictures).part]


# --- a running Compose file ---


def ask(path: str, **query: str) -> dict[str, Any]:
    """Prometheus' answer."""
    url = f"{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=30) as page:
        return dict(json.load(page)["data"])


class Demo:
    """One Compose file; Grafana is left out, which Debian does not have."""

    def __init__(self, docker: Engine, file: str, variables: dict[str, str]) -> None:
        self.docker, self.file, self.variables = docker, file, variables
        self.project = f"offramp-check-{Path(file).stem}"
        services = yaml.safe_load((DEPLOY / file).read_text())["services"]
        self.services = {name: each for name, each in services.items() if name != "grafana"}
        self.ours = [name for name in self.services if name != "prometheus"]

    def compose(self, *words: object) -> str:
        return self.docker.compose(self.file, self.project, *words, **self.variables)

    def container(self, service: str) -> str:
        (found,) = self.compose("ps", "--all", "--quiet", service).split()
        return found

    def state(self, service: str) -> dict[str, Any]:
        return dict(self.docker.inspect(self.container(service))["State"])

    def healthy(self, service: str) -> bool:
        """Whether it is, or, without a health check, whether it runs."""
        state = self.state(service)
        return bool(state["Running"]) and state.get("Health", {"Status": "healthy"})["Status"] == "healthy"

    def address(self, service: str) -> str:
        """As Prometheus calls it."""
        return f"{service}:{9102 if 'device' in service else 9101}"

    def query(self, expression: str) -> dict[str, float]:
        """An instant query's values, by service."""
        found = ask("query", query=expression)["result"]
        return {each["metric"].get("instance", "").split(":")[0]: float(each["value"][1]) for each in found}

    def count(self, service: str, metric: str, label: str) -> dict[str, int]:
        """A counter of one service by a label, all of the same scrape."""
        query = f'sum by ({label}) ({metric}{{instance="{self.address(service)}"}})'
        found = ask("query", query=query)["result"]
        return {each["metric"].get(label, ""): int(float(each["value"][1])) for each in found}


@contextmanager
def up(docker: Engine, file: str, **variables: str) -> Iterator[Demo]:
    """Start it and wait until all is healthy and scraped; remove it at the end."""
    demo = Demo(docker, file, variables)
    addresses = {demo.address(service) for service in demo.ours}

    def scraped() -> bool:
        try:
            targets = ask("targets")["activeTargets"]
        except OSError:
            return False
        return {each["labels"]["instance"] for each in targets if each["health"] == "up"} == addresses

    # What a run before left behind where it was cut off.
    demo.compose("down", "--volumes")
    try:
        demo.compose("up", "--detach", "--no-build", *demo.services)
        for service in demo.services:
            until(lambda: demo.healthy(service), f"{service} to be healthy")  # noqa: B023
        until(scraped, f"{', '.join(sorted(addresses))} to be scraped")
        say(f"{file}: {len(demo.services)} services healthy, {len(addresses)} targets up")
        yield demo
    except BaseException:
        (docker.work / f"{Path(file).stem}.log").write_text(demo.compose("logs", "--no-color"))
        raise
    finally:
        demo.compose("down", "--volumes", "--timeout", 20)


# --- checks ---


def check_confined(demo: Demo) -> None:
    """What Compose asks for holds inside: tried, not read from a configuration."""
    for service in demo.ours:
        container = demo.container(service)
        status = demo.docker.python(container, "print(open('/proc/1/status').read())").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        caps = {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        expect(caps == {0}, f"{service}: has capabilities: {status}")
        expect(fields["NoNewPrivs"] == "1", f"{service}: may get new privileges: {status}")
        expect(fields["Uid"].split() == ["65532"] * 4, f"{service}: runs as {fields['Uid']}")
        for path in ("/x", "/tmp/x", "/usr/x", "/bundle/x"):
            written = demo.docker.python(container, f"open({path!r}, 'w')").stderr
            expect("Read-only file system" in written, f"{service}: {path} was written: {written}")
        paths = ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max")
        program = f"import os\nprint(*[open(p).read() for p in {paths} if os.path.exists(p)])"
        processes = demo.docker.python(container, program).stdout.split()
        expect(processes == ["128"], f"{service}: may have {processes} processes, expected 128")
        limit = size_of(demo.services[service]["mem_limit"])
        eaten = demo.docker.python(container, f"print(len(b'x' * {4 * limit}))")
        expect(eaten.returncode == 137, f"{service}: got {4 * limit} bytes of memory, limit {limit}: {eaten}")
        until(lambda: demo.healthy(service), f"{service} to be healthy after that")  # noqa: B023
    say(f"{', '.join(demo.ours)}: read-only, no capabilities, no new privileges, limits hold")


def size_of(text: str) -> int:
    """Of 256m."""
    return int(text[:-1]) * {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[text[-1]]


def check_device(demo: Demo, device: str, parts: Sequence[int]) -> None:
    """Of so many images, as many exited early as here, and the server answered the others.

    parts: the part that answers each of the images that are replayed, in their order.
    """

    def images() -> dict[str, int]:
        return demo.count(device, IMAGES_TOTAL, "source")

    until(lambda: sum(images().values()) > len(parts) + 40, f"{device} to see all its images")
    found = images()
    seen = sum(found.values())
    early = sum(part == 1 for part in islice(cycle(parts), seen))
    expect(found.get("fallback", 0) <= BEHIND, f"{device}: {found}, expected no fallback")
    expect(abs(found["early_exit"] - early) <= BEHIND, f"{device}: {found}, expected {early} early exits")
    say(f"{device}: {found}, expected {early} early exits of {seen}")


def check_digits(demo: Demo) -> None:
    """Two devices at two thresholds."""
    for device in DEVICES:
        words = demo.services[device]["command"]
        check_device(demo, device, digits_parts(float(words[words.index("--threshold") + 1])))
    rate = "instance:offramp_device_exits:ratio_rate5m"
    until(lambda: set(demo.query(rate)) == set(DEVICES), f"{rate} to be recorded")
    frugal, careful = (demo.query(rate)[device] for device in DEVICES)
    expect(frugal > careful > 0, f"{rate}: {frugal} and {careful}, expected the first to be higher")
    answered = demo.count("cloud-server", "offramp_server_frames_total", "result")
    expect(answered["answered"] >= sum(answered.values()) - BEHIND, f"the server's frames: {answered}")
    firing = [each for each in ask("alerts")["alerts"] if each["state"] == "firing"]
    expect(not firing, f"alerts fire: {firing}")
    say(f"recorded exit rates {frugal:.3f} and {careful:.3f}; server {answered}; no alert fires")


def check_chain(demo: Demo, parts: Sequence[int]) -> None:
    """Each part answered as many as in one process, and the device cannot reach the server."""
    check_device(demo, "edge-device", parts)
    by = demo.count("edge-server", "offramp_server_answers_total", "by")
    # Those that the device sent, in their order, and which of them the gateway's exit answers.
    sent = islice((part for part in cycle(parts) if part > 1), sum(by.values()))
    own = sum(part == 2 for part in sent)
    expect(by.get("fallback", 0) <= BEHIND, f"edge-server: {by}, expected no fallback")
    expect(abs(by["exit"] - own) <= BEHIND, f"edge-server: {by}, expected {own} by its exit")
    cloud = demo.count("cloud-server", "offramp_server_frames_total", "result")
    expect(cloud["answered"] >= max(1, sum(cloud.values()) - BEHIND), f"cloud-server's frames: {cloud}")
    say(f"edge-server: {by}, expected {own} by its exit; cloud-server {cloud}")
    # Names are those of its own networks: the gateway's is known, the server's is not.
    program = "import socket\nfor name in 'edge-server', 'cloud-server':\n"
    program += " socket.getaddrinfo(name, 50051); print(name)"
    reached = demo.docker.python(demo.container("edge-device"), program).stdout.split()
    expect(reached == ["edge-server"], f"edge-device knows {reached}, expected edge-server alone")


def check_killed(demo: Demo, service: str, device: str) -> None:
    """A container whose program is killed starts again, and the device has the server's answers again."""
    container = demo.container(service)
    before = demo.docker.inspect(container)
    restarts = before["RestartCount"]
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    until(lambda: demo.docker.inspect(container)["RestartCount"] > restarts, f"{service} to restart")
    until(lambda: demo.healthy(service), f"{service} to be healthy again")
    start = time.time()
    series = f'{IMAGES_TOTAL}{{instance="{demo.address(device)}", source="server"}}'

    def answered() -> bool:
        # All scrapes in the window are of after the restart.
        fresh = time.time() > start + 45
        return fresh and demo.query(f"increase({series}[40s])").get(device, 0) > 0

    until(answered, f"answers of the server after {service} was killed")
    say(f"{service}: killed, restarted, healthy; the server answers {device} again")


def check_stop(demo: Demo) -> None:
    """Stop ends with 0, and no container had to be killed."""
    demo.compose("stop")
    ends = {service: int(demo.state(service)["ExitCode"]) for service in demo.services}
    # A device that replays its images has no end of its own: it is interrupted.
    good = {service: 130 if "device" in service else 0 for service in ends}
    expect(ends == good, f"exit statuses {ends}, expected {good}")
    say(f"stopped, exit statuses {ends}")


def check_two(docker: Engine) -> None:
    """compose.yaml."""
    with up(docker, COMPOSE[0]) as demo:
        check_digits(demo)
        check_confined(demo)
        check_killed(demo, "cloud-server", DEVICES[1])
        check_killed(demo, DEVICES[1], DEVICES[1])
        check_stop(demo)


def check_three(docker: Engine) -> None:
    """compose-chain.yaml, with a toy bundle."""
    with tempfile.TemporaryDirectory() as name:
        # So that the containers' user may look into it.
        Path(name).chmod(0o755)
        bundle, images = Path(name) / "bundle", Path(name) / "images"
        parts = toy_chain(bundle, images)
        with up(docker, COMPOSE[1], BUNDLE=str(bundle), IMAGES=str(images)) as demo:
            check_chain(demo, parts)
            check_confined(demo)
            check_killed(demo, "edge-server", "edge-device")
            check_stop(demo)


def check(docker: Engine, mirror: str, only: str | None) -> None:
    """All parts, or one."""
    engine.import_base(docker, mirror)
    engine.build(docker, (("device", "offramp/edge-device"), ("server", "offramp/cloud-server")))
    if only in (None, *COMPOSE):
        services = yaml.safe_load((DEPLOY / COMPOSE[0]).read_text())["services"]
        engine.build_prometheus(docker, services["prometheus"]["image"])
    if only in (None, COMPOSE[0]):
        check_two(docker)
    if only in (None, COMPOSE[1]):
        check_three(docker)
    if only in (None, "arm64"):
        arm64.check_arm64(docker, mirror)


def main() -> int:
    """All of it; exit status 1 with what was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder that base, images and logs stay in")
    parser.add_argument("--mirror", default=MIRROR, help="of Debian's packages (default: %(default)s)")
    parser.add_argument("--only", choices=("images", *COMPOSE, "arm64"), help="one of its parts")
    arguments = parser.parse_args()
    # So that an end by a signal ends the engine too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        work = (arguments.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        try:
            engine.require_tools()
            with host.unchanged(work), engine.engine(work) as docker:
                say("dockerd answers")
                check(docker, arguments.mirror, arguments.only)
        except Failed as failure:
            print(f"check-containers: {failure}", file=sys.stderr)
            return 1
    say("all passed; this machine is as it was")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
