"""Many devices, one gateway, a link that loses, doubles and reorders: one answer each, or a counted loss.

python runs/gateway_load.py [--devices 1000] [--seconds 60] [--rate 200] [--bundle DIR --images DIR]

Real programs (cloud-server, offramp gateway) and real UDP, a socket and a key for each device. Each packet,
there and back, is lost, doubled or late with the shares below; a device sends a request three times at most.
Printed: answers, wrong ones, losses, what the gateway counted, and its memory. Exit status 1 for a
wrong answer, or a request that was forwarded twice.
"""

from __future__ import annotations

import argparse
import heapq
import random
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.inputs.prepare import prepare
from offramp.common.part.engine import Engine
from offramp.common.wire.datagram import Datagrams, reply_sequence
from offramp.common.wire.seal import DeviceKey

TRIES, AGAIN_SECONDS = 3, 1.0
LOST, DOUBLED, LATE = 0.1, 0.1, 0.1
LATE_SECONDS = 0.5


@dataclass
class Device:
    """One of many: its socket, its key, and what it waits for."""

    number: int
    socket: socket.socket
    key: DeviceKey
    next: int = 0
    waiting: dict[int, Request] = field(default_factory=dict)


@dataclass
class Request:
    """One image under way."""

    datagram: bytes
    expected: int
    tries: int = 0


@dataclass
class Counts:
    """What the devices saw."""

    requests: int = 0
    answered: int = 0
    wrong: int = 0
    again: int = 0
    lost: int = 0
    errors: int = 0
    """Replies that say that there is no answer."""


@contextmanager
def program(pattern: str, *command: str) -> Iterator[tuple[re.Match[str], int]]:
    """A program that runs no longer than the block: what the pattern found in its log, and its id."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        try:
            for _ in range(1200):
                log.seek(0)
                if found := re.search(pattern, log.read()):
                    yield found, process.pid
                    return
                time.sleep(0.05)
            raise SystemExit(f"{' '.join(command)}: did not start")
        finally:
            process.terminate()
            process.wait()


def images(bundle: Bundle, folder: Path) -> list[tuple[int, bytes, int]]:
    """Codec, payload and the server's class of each picture."""
    engine = Engine(bundle)
    engine.load_head()
    engine.load_tail()
    found = []
    for path in sorted(folder.rglob("*.png")) + sorted(folder.rglob("*.jpg")):
        symbols, _ = engine.head(prepare(path.read_bytes(), bundle.manifest.input, "")[None])
        codec, payload = bundle.codec.encode(symbols[0])
        found.append((int(codec), payload, int(engine.tail(symbols)[0].argmax())))
    return found


class Way:
    """The link: loses, doubles and delays what it carries."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._due: list[tuple[float, int, Device, bytes, bool]] = []
        self._serial = 0

    def put(self, device: Device, data: bytes, up: bool, now: float) -> None:
        """One packet, up to the gateway or down to its device."""
        draw = self._rng.random()
        for _ in range(0 if draw < LOST else 2 if draw < LOST + DOUBLED else 1):
            late = LATE_SECONDS * self._rng.random() if self._rng.random() < LATE else 0.0
            self._serial += 1
            heapq.heappush(self._due, (now + late, self._serial, device, data, up))

    def due(self, now: float) -> Iterator[tuple[Device, bytes, bool]]:
        """What arrives by now."""
        while self._due and self._due[0][0] <= now:
            yield heapq.heappop(self._due)[2:]


def run(
    devices: list[Device],
    pictures: list[tuple[int, bytes, int]],
    datagrams: Datagrams,
    gateway: tuple[str, int],
    seconds: float,
    rate: float,
    memory: list[int],
    pid: int,
) -> Counts:
    """Send for so long, then wait for what is under way."""
    rng, counts = random.Random(1), Counts()
    way, again = Way(rng), list[tuple[float, int, int]]()
    selector = selectors.DefaultSelector()
    for device in devices:
        selector.register(device.socket, selectors.EVENT_READ, device)
    start = time.monotonic()
    sent = 0
    look = start
    while (now := time.monotonic()) < start + seconds or any(device.waiting for device in devices):
        if now >= look:
            memory.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096)
            look += max(1.0, seconds / 20)
        while now < start + seconds and sent < (now - start) * rate:
            device = devices[sent % len(devices)]
            codec, payload, expected = pictures[sent % len(pictures)]
            sequence, device.next = device.next, device.next + 1
            data = datagrams.request(sequence, codec, payload, device.number, device.key)
            device.waiting[sequence] = Request(data, expected)
            heapq.heappush(again, (now, device.number, sequence))
            counts.requests += 1
            sent += 1
        while again and again[0][0] <= now:
            _, number, sequence = heapq.heappop(again)
            request = devices[number].waiting.get(sequence)
            if request is None:
                continue
            if request.tries == TRIES:
                del devices[number].waiting[sequence]
                counts.lost += 1
                continue
            request.tries += 1
            way.put(devices[number], request.datagram, True, now)
            heapq.heappush(again, (now + AGAIN_SECONDS, number, sequence))
        for device, data, up in way.due(now):
            if up:
                device.socket.sendto(data, gateway)
            else:
                receive(device, data, datagrams, counts)
        for key, _ in selector.select(0.002):
            way.put(key.data, key.data.socket.recv(2048), False, now)
    return counts


def receive(device: Device, data: bytes, datagrams: Datagrams, counts: Counts) -> None:
    """One reply at its device."""
    sequence = reply_sequence(data)
    request = device.waiting.get(sequence)
    reply = datagrams.read_reply(data, sequence, device.number, device.key)
    if request is None:
        counts.again += 1
        return
    if reply.error:
        counts.errors += 1
        return
    del device.waiting[sequence]
    counts.answered += 1
    counts.wrong += reply.class_index != request.expected


def counted(page: str, name: str) -> float:
    """A counter of the gateway, over all devices."""
    with urllib.request.urlopen(f"http://{page}/metrics") as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^offramp_gateway_{name}_total\S* (\S+)$", text, re.M))


def main() -> int:
    """Run, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=200, help="images a second, of all devices together")
    parser.add_argument("--bundle", default="models/digits-mobilenetv2-exit12")
    parser.add_argument("--images", default="examples/digits")
    arguments = parser.parse_args()
    bundle = load_bundle(Path(arguments.bundle))
    pictures = images(bundle, Path(arguments.images))
    datagrams = Datagrams(bundle.digest, len(bundle.manifest.classes), len(bundle.manifest.parts))
    python, memory = sys.executable, list[int]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        devices, lines = [], []
        for number in range(arguments.devices):
            key = number.to_bytes(16, "big")
            bound = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            bound.bind(("127.0.0.1", 0))
            devices.append(Device(number, bound, DeviceKey(key)))
            lines.append(f'[device-{number}]\nnumber = {number}\nkey = "{key.hex()}"\n')
        (folder / "devices.toml").write_text("".join(lines))
        common = ("--bundle", arguments.bundle)
        server, _ = stack.enter_context(
            program(
                r"listening on (\S+)",
                *(python, "-m", "offramp.server.app", *common, "--listen", "127.0.0.1:0", "--threads", "1"),
            )
        )
        found, pid = stack.enter_context(
            program(
                r"UDP port (\d+), metrics on (\S+)",
                *(python, "-m", "offramp.cli.app", "gateway", *common, "--server", server[1]),
                *("--udp", "127.0.0.1:0", "--metrics-port", "0", "--coalesce", "5"),
                *("--devices", str(folder / "devices.toml"), "--state", str(folder / "state.db")),
            )
        )
        address = "127.0.0.1", int(found[1])
        counts = run(devices, pictures, datagrams, address, arguments.seconds, arguments.rate, memory, pid)
        forwarded, doubled = counted(found[2], "requests"), counted(found[2], "doubled")
    print(
        f"{arguments.devices} devices, {counts.requests} requests in {arguments.seconds:g} s: "
        f"{counts.answered} answered, {counts.wrong} of them wrong, {counts.lost} lost, "
        f"{counts.errors} errors, {counts.again} replies more dropped\n"
        f"gateway: {forwarded:.0f} forwarded once, {doubled:.0f} doubles kept back\n"
        f"its memory, MiB: {', '.join(f'{each / (1 << 20):.1f}' for each in memory)}"
    )
    whole = counts.answered + counts.lost == counts.requests and forwarded <= counts.requests
    return int(bool(counts.wrong) or not whole)


if __name__ == "__main__":
    raise SystemExit(main())
