"""A link as slow as wanted, for real: two network namespaces, a token bucket in each direction.

    device's namespace ── veth, tbf ══════ tbf, veth ── server's namespace: delay_proxy ─▶ server on loopback

``tbf`` limits the rate of each direction; the delaying proxy in front of a server makes the round-trip time,
since netem is not in every kernel. TCP therefore ends at the proxy: a connection is made, and segments are
acknowledged, without the delay. What is sent over a connection that is up takes as long as on a real link.
The bucket lets one frame pass an idle link at once; where the rate stays as it is, the proxy makes frames
take their time. A second link may begin where the first one ends. It takes root and iproute2.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Self

from offramp.bench.processes import running
from offramp.common.errors import ConfigError

SERVER_HOST, DEVICE_HOST = "10.77.{}.1", "10.77.{}.2"
"""Of the first link, the second, …"""
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

    @classmethod
    def of(cls, text: str) -> Self:
        """An argparse type: KBIT/MS."""
        rate, slash, delay = text.partition("/")
        try:
            shape = cls(float(rate) * 1e3, float(delay) / 1e3)
        except ValueError:
            shape = cls(0, 0)
        if not slash or not 1e3 <= shape.rate <= 1e10 or not 0 <= shape.round_trip <= 10:
            raise ArgumentTypeError(
                f"{text!r}, expected KBIT/MS, as 50/300, with 1 kbit/s … 10 Gbit/s and 0 … 10 s"
            )
        return shape

    def __str__(self) -> str:
        unit, scale = ("Mbit/s", 1e6) if self.rate >= 1e6 else ("kbit/s", 1e3)
        return f"{self.rate / scale:g} {unit}, {self.round_trip * 1e3:g} ms"


class ShapedLink:
    """Both namespaces of a link that is up. hop: how many links there are before it."""

    def __init__(self, device: str, server: str, shape: Shape, *, steady: bool, hop: int = 0) -> None:
        self.shape, self._steady = shape, steady
        self._device, self._server = device, server
        self.hop = hop

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
        with (
            running(module, *arguments, "--listen", "127.0.0.1:0", prefix=self.server_prefix) as behind,
            self.way_to(behind.address) as address,
        ):
            yield address

    @contextmanager
    def way_to(self, target: str) -> Iterator[str]:
        """What listens at an address of the far side; yields the one at which the device reaches it."""
        listen = f"{SERVER_HOST.format(self.hop)}:0"
        arguments = ["--listen", listen, "--target", target, "--delay", self.shape.round_trip / 2]
        if self._steady:
            arguments += ["--rate", self.shape.rate]
        with running("research.links.delay_proxy", *arguments, prefix=self.server_prefix) as proxy:
            yield proxy.address


def require_namespaces(program: str) -> None:
    """Raises ConfigError where namespaces cannot be made."""
    if os.geteuid() != 0:
        raise ConfigError(f"{program}: makes network namespaces, expected to be run as root")
    for name in ("ip", "tc"):
        _tool(name)


@contextmanager
def shaped_link(
    shape: Shape, *, steady: bool = True, after: ShapedLink | None = None
) -> Iterator[ShapedLink]:
    """A link of this shape; its namespaces go with the block. Raises ConfigError where it cannot be made.

    steady: its rate will stay as it is. after: the link whose far side is this one's near side.
    """
    number = next(_numbers)
    device, server = (f"offramp-{os.getpid()}-{number}-{side}" for side in ("device", "server"))
    made, hop = [device, server], 0
    if after is not None:
        device, made, hop = after._server, [server], after.hop + 1
    hosts = DEVICE_HOST.format(hop), SERVER_HOST.format(hop)
    try:
        for namespace in made:
            _run("ip", "netns", "add", namespace)
        _run(
            "ip", "-n", device, "link", "add", "device", "type", "veth",
            "peer", "name", "server", "netns", server,
        )  # fmt: skip
        for namespace, interface, host in zip((device, server), ("device", "server"), hosts, strict=True):
            _run("ip", "-n", namespace, "address", "add", f"{host}/24", "dev", interface)
            # One segment, one frame: what is counted has every header that a real interface sends.
            _run("ip", "-n", namespace, "link", "set", "dev", interface, "gso_max_segs", "1", "up")
            _run("ip", "-n", namespace, "link", "set", "dev", "lo", "up")
        link = ShapedLink(device, server, shape, steady=steady, hop=hop)
        link.set_rate(shape.rate)
        yield link
    finally:
        for namespace in made:
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
