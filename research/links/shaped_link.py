"""A link as slow as wanted, for real: two network namespaces, a token bucket in each direction.

    device's namespace ── veth, tbf ══════ tbf, veth ── server's namespace: delay_proxy ─▶ server on loopback

``tbf`` limits the rate of each direction; the delaying proxy in front of a server makes the round-trip time,
since netem is not in every kernel. TCP therefore ends at the proxy: a connection is made, and segments are
acknowledged, without the delay. What is sent over a connection that is up takes as long as on a real link.
The bucket lets one frame pass an idle link at once; where the rate stays as it is, the proxy makes frames
take their time. It takes root and iproute2.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from offramp.bench.processes import Program, running
from offramp.common.errors import ConfigError

SERVER_HOST, DEVICE_HOST = "10.77.0.1", "10.77.0.2"
BURST_BYTES = 1_600
"""One Ethernet frame: what may go out at once on a slow link …"""
BURST_SECONDS = 0.004
"""… and on a fast one: the kernel's clock may be no finer."""
QUEUE_BYTES, QUEUE_SECONDS = 16_384, 0.5
"""What waits for the link before frames are dropped: the larger of these."""
_SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_numbers = count()


@dataclass(frozen=True)
class Shape:
    """A link: bits a second in each direction, and seconds there and back."""

    rate: float
    round_trip: float

    def __str__(self) -> str:
        unit, scale = ("Mbit/s", 1e6) if self.rate >= 1e6 else ("kbit/s", 1e3)
        return f"{self.rate / scale:g} {unit}, {self.round_trip * 1e3:g} ms"


class ShapedLink:
    """Both namespaces of a link that is up."""

    def __init__(self, device: str, server: str, shape: Shape, *, steady: bool) -> None:
        self.shape, self._steady = shape, steady
        self._device, self._server = device, server

    @property
    def device_prefix(self) -> list[str]:
        """Runs a command on the device's side."""
        return [_tool("ip"), "netns", "exec", self._device]

    @property
    def server_prefix(self) -> list[str]:
        """Runs a command on the server's side."""
        return [_tool("ip"), "netns", "exec", self._server]

    def set_rate(self, rate: float) -> None:
        """Bits a second from now on, in each direction."""
        for namespace, interface in ((self._device, "device"), (self._server, "server")):
            burst = max(BURST_BYTES, round(rate / 8 * BURST_SECONDS))
            queue = max(QUEUE_BYTES, round(rate / 8 * QUEUE_SECONDS))
            _run(
                "tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf",
                "rate", f"{round(rate)}bit", "burst", str(burst), "limit", str(queue),
            )  # fmt: skip

    def interface_bytes(self) -> tuple[int, int]:
        """What the device's interface has sent and received: Ethernet frames without their checksum."""
        text = _run("ip", "-n", self._device, "-j", "-s", "link", "show", "dev", "device")
        counted = json.loads(text)[0]["stats64"]
        return int(counted["tx"]["bytes"]), int(counted["rx"]["bytes"])

    @contextmanager
    def server(self, module: str, *arguments: object) -> Iterator[str]:
        """A server on the far side; yields the address at which the device reaches it."""
        half = self.shape.round_trip / 2
        with (
            running(module, *arguments, "--listen", "127.0.0.1:0", prefix=self.server_prefix) as behind,
            self._proxy(behind, half) as proxy,
        ):
            yield proxy.address

    @contextmanager
    def _proxy(self, behind: Program, delay: float) -> Iterator[Program]:
        arguments = ["--listen", f"{SERVER_HOST}:0", "--target", behind.address, "--delay", delay]
        if self._steady:
            arguments += ["--rate", self.shape.rate]
        with running("research.links.delay_proxy", *arguments, prefix=self.server_prefix) as proxy:
            yield proxy


def require_namespaces(program: str) -> None:
    """Raises ConfigError where namespaces cannot be made."""
    if os.geteuid() != 0:
        raise ConfigError(f"{program}: makes network namespaces, expected to be run as root")
    for name in ("ip", "tc"):
        _tool(name)


@contextmanager
def shaped_link(shape: Shape, *, steady: bool = True) -> Iterator[ShapedLink]:
    """A link of this shape; its namespaces go with the block. Raises ConfigError where it cannot be made.

    steady: its rate will stay as it is.
    """
    number = next(_numbers)
    device, server = (f"offramp-{os.getpid()}-{number}-{side}" for side in ("device", "server"))
    try:
        for namespace in (device, server):
            _run("ip", "netns", "add", namespace)
        _run(
            "ip", "-n", device, "link", "add", "device", "type", "veth",
            "peer", "name", "server", "netns", server,
        )  # fmt: skip
        for namespace, interface, host in ((device, "device", DEVICE_HOST), (server, "server", SERVER_HOST)):
            _run("ip", "-n", namespace, "address", "add", f"{host}/24", "dev", interface)
            # One segment, one frame: what is counted has every header that a real interface sends.
            _run("ip", "-n", namespace, "link", "set", "dev", interface, "gso_max_segs", "1", "up")
            _run("ip", "-n", namespace, "link", "set", "dev", "lo", "up")
        link = ShapedLink(device, server, shape, steady=steady)
        link.set_rate(shape.rate)
        yield link
    finally:
        for namespace in (device, server):
            subprocess.run([_tool("ip"), "netns", "delete", namespace], capture_output=True, check=False)


def _tool(name: str) -> str:
    path = shutil.which(name, path=_SEARCH)
    if path is None:
        raise ConfigError(f"the program '{name}' is missing, expected iproute2 to be installed")
    return path


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
