"""Bytes on the wire per offloaded image, counted on the loopback interface: a stream, a broker, datagrams.

python runs/wire_bytes.py [--count 40] [--fit BUNDLE=FILE.parquet …] [BUNDLE=FOLDER_OR_PARQUET …]

A packet socket reads each IP packet between the device and its server, gateway or broker, in both directions,
from the second image on; connecting is left out. Real programs run: cloud-server, offramp gateway, mosquitto.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.inputs.prepare import prepare
from offramp.common.part.engine import Engine
from offramp.device.device import Device
from offramp.device.options import DatagramOptions, LinkOptions

LORAWAN = {"SF12 … SF10 in Europe": 51, "SF9": 115, "SF8 and SF7": 222}
"""Largest application payload of a packet, bytes (LoRaWAN Regional Parameters, EU863-870)."""
DEFAULTS = (
    "models/digits-mobilenetv2-exit12=examples/digits",
    "models/trashnet-efficientnet-lite0=examples/trashnet",
)
EVERY_PACKET = 3
SECONDS = 60.0


@dataclass
class Counted:
    """IP packets between two ports' ends, both directions."""

    packets: int = 0
    bytes: int = 0


class Tap:
    """Counts IPv4 packets on loopback between two ports."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY_PACKET))
        self._socket.bind(("lo", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.settimeout(0.1)
        self._found: list[tuple[int, int, int]] = []
        self._end = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def clear(self) -> None:
        """From here on."""
        time.sleep(0.3)
        self._found.clear()

    def count(self, port: int, other: int | None = None) -> Counted:
        """What went between them since ``clear``."""
        time.sleep(0.3)
        wanted = [
            size
            for size, *ends in self._found
            if port in ends and (other is None or sorted(ends) == sorted((port, other)))
        ]
        return Counted(len(wanted), sum(wanted))

    def close(self) -> None:
        """Stop."""
        self._end = True
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._end:
            try:
                data, address = self._socket.recvfrom(65_536)
            except TimeoutError:
                continue
            # Loopback shows each packet twice: as it goes out, and as it comes in.
            if address[2] == socket.PACKET_OUTGOING or len(data) < 24 or data[0] >> 4 != 4:
                continue
            header = (data[0] & 15) * 4
            (size,) = struct.unpack_from("!H", data, 2)
            if data[9] in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                self._found.append((size, *struct.unpack_from("!HH", data, header)))


@contextmanager
def program(pattern: str, *command: str) -> Iterator[str]:
    """A program that runs no longer than the block; what the pattern found in its log."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + SECONDS
            while True:
                log.seek(0)
                text = log.read()
                if found := re.search(pattern, text):
                    yield found[1]
                    return
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{' '.join(command)}: {text}")
                time.sleep(0.05)
        finally:
            process.terminate()
            process.wait()


def pictures(where: str, count: int) -> list[Any]:
    """Files of a folder, or the pictures of a Parquet file."""
    path = Path(where)
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in (".png", ".jpg", ".jpeg"))
        return [each.read_bytes() for each in found[:count]]
    import pyarrow.parquet as parquet

    (name,) = {"image", "img"}.intersection(parquet.read_schema(path).names)
    column = parquet.read_table(path, columns=[name]).slice(0, count).column(name)
    return [row["bytes"] for row in column.to_pylist()]


def payloads(bundle: Bundle, images: list[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bytes of each image's code."""
    engine = Engine(bundle)
    engine.load_head()
    sizes = []
    for image in images:
        symbols, _ = engine.head(prepare(image, bundle.manifest.input, "")[None])
        sizes.append(len(bundle.codec.encode(symbols[0])[1]))
    return np.array(sizes)


def fit(name: str, where: str) -> str:
    """A row: what share of all images' codes fits one LoRaWAN packet with everything in it."""
    bundle = load_bundle(Path(name))
    sizes = payloads(bundle, pictures(where, 1 << 30))
    cells = [Path(name).name, f"{len(sizes):,}", f"{sizes.mean():.1f}", f"{int(np.percentile(sizes, 99))}"]
    for packet in LORAWAN.values():
        cells += [f"{(sizes + overhead <= packet).mean():.1%}" for overhead in (8, 17)]
    return "| " + " | ".join(cells) + " |"


class Bench:
    """Measures ways for one bundle."""

    def __init__(self, bundle: Bundle, images: list[Any], server: str, tap: Tap) -> None:
        self.bundle, self.images, self.server, self.tap = bundle, images, server, tap
        self.rows: list[str] = []

    def row(
        self,
        what: str,
        target: str,
        port: int,
        *,
        together: bool = False,
        other: Callable[[Device], int] | None = None,
        link: LinkOptions | None = None,
        datagrams: DatagramOptions | None = None,
    ) -> None:
        """Send all images this way, and count."""
        link = link or LinkOptions(timeout=10)
        with Device(self.bundle, server=target, threshold=1.0, link=link, datagrams=datagrams) as device:
            first = device.infer(self.images[0])
            assert first.source == "server", first.reason
            self.tap.clear()
            rest = self.images[1:]
            results = list(device.map(rest)) if together else [device.infer(image) for image in rest]
            assert all(result.source == "server" for result in results)
            found = self.tap.count(port, None if other is None else other(device))
        payload = float(np.mean([result.payload_bytes for result in results]))
        message = float(np.mean([result.message_bytes for result in results]))
        count = len(results)
        self.rows.append(
            f"| {what} | {payload:.1f} | {message - payload:.1f} | {found.bytes / count - message:.1f} | "
            f"{found.bytes / count:.1f} | {found.packets / count:.1f} |"
        )


def table(name: str, where: str, count: int, folder: Path) -> list[str]:
    """The rows of one bundle."""
    bundle = load_bundle(Path(name))
    images = pictures(where, count + 1)
    python = sys.executable
    (folder / "key").write_text("07" * 16)
    (folder / "devices.toml").write_text('[a]\nnumber = 1\nkey = "' + "07" * 16 + '"\n')
    tap = Tap()
    with ExitStack() as stack:
        stack.callback(tap.close)
        port = stack.enter_context(
            program(
                r"listening on \S+:(\d+)",
                *(
                    python,
                    "-m",
                    "offramp.server.app",
                    "--bundle",
                    name,
                    "--listen",
                    "127.0.0.1:0",
                    "--threads",
                    "1",
                ),
            )
        )
        bench = Bench(bundle, images, f"127.0.0.1:{port}", tap)
        bench.row("gRPC, one image a message", bench.server, int(port))
        together = LinkOptions(timeout=10, window=64, coalesce=0.2, coalesce_frames=20)
        bench.row("gRPC, 20 images a message", bench.server, int(port), together=True, link=together)
        gateway = (python, "-m", "offramp.cli.app", "gateway", "--bundle", name, "--server", bench.server)
        if broker := shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin"):
            with socket.socket() as holder:
                holder.bind(("127.0.0.1", 0))
                at = holder.getsockname()[1]
            config = folder / "mosquitto.conf"
            config.write_text(f"listener {at} 127.0.0.1\nallow_anonymous true\nuser root\nlog_dest stderr\n")
            with (
                program("(running)", broker, "-c", str(config)),
                program("(taking) datagrams", *gateway, "--mqtt", f"mqtt://127.0.0.1:{at}"),
            ):
                time.sleep(1)
                bench.row(
                    "MQTT 5, QoS 1",
                    f"mqtt://127.0.0.1:{at}",
                    at,
                    other=_own_port,
                    datagrams=DatagramOptions(mqtt_name="hive-3"),
                )
        with program(r"UDP port (\d+)", *gateway, "--udp", "127.0.0.1:0") as udp:
            bench.row("UDP", f"udp://127.0.0.1:{udp}", int(udp))
            small = DatagramOptions(packet_bytes=51)
            bench.row("UDP, packets of 51 B", f"udp://127.0.0.1:{udp}", int(udp), datagrams=small)
        more = ("--devices", str(folder / "devices.toml"), "--state", str(folder / "state.db"))
        with program(r"UDP port (\d+)", *gateway, "--udp", "127.0.0.1:0", *more) as udp:
            sealed = DatagramOptions(
                key_file=folder / "key", device_number=1, sequence_file=folder / "numbers", packet_bytes=1200
            )
            bench.row("UDP, with a key", f"udp://127.0.0.1:{udp}", int(udp), datagrams=sealed)
    return bench.rows


def _own_port(device: Device) -> int:
    connection: Any = device._link._carrier._connection  # type: ignore[attr-defined]
    return int(connection._client.socket().getsockname()[1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="images of each way")
    parser.add_argument(
        "--fit", action="append", default=[], metavar="BUNDLE=FILE", help="all images of a set"
    )
    parser.add_argument("bundles", nargs="*", default=list(DEFAULTS), metavar="BUNDLE=IMAGES")
    arguments = parser.parse_args()
    for each in arguments.bundles:
        name, _, where = each.partition("=")
        print(f"\n{name}\n\n| way | payload, B | our overhead, B | transport, B | on the wire, B | packets |")
        print("|---|---:|---:|---:|---:|---:|")
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join(table(name, where, arguments.count, Path(folder))), flush=True)
    if arguments.fit:
        names = " | ".join(f"{packet} B | with a key" for packet in LORAWAN.values())
        print(f"\n| bundle | images | mean, B | 99 %, B | {names} |\n|---|" + "---:|" * 9)
    for each in arguments.fit:
        name, _, where = each.partition("=")
        print(fit(name, where), flush=True)


if __name__ == "__main__":
    main()
