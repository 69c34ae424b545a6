"""``offramp bench soak``: whether anything grows while devices come, go and are served.

Real programs: one ``cloud-server`` that lives all along; an ``edge-device`` that is fed without pause; and
strangers and devices that connect and leave in all the ways there are. The work comes in equal rounds, and
after each of them memory, descriptors and threads of both processes are read. What leaks grows with the
work, by as much in the last rounds as in the first; what warms up stops.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from offramp.bench.metrics import fetch_metrics
from offramp.bench.plots import Plot, Series, draw
from offramp.bench.processes import Program, running
from offramp.bench.timing import environment
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import OfframpError, UnavailableError
from offramp.common.wire.address import split_address
from offramp.common.wire.transport import set_grpc_environment

EPILOG = """\
examples:
  offramp bench soak                                # 15 minutes, 10,000 connects
  offramp bench soak --seconds 60 --connects 1000 --plot soak

exit status: 0 nothing grew and every image has its one answer, 1 something did not hold
"""
WAIT = 60.0
_SERVER, _DEVICE = "offramp.server.app", "offramp.device.app"
FRAMES_OF_A_VISIT = 3
WINDOW, ENDS = 12, 4
"""Rounds that are judged together, and of these the first and the last that are compared."""
GROWTH_BYTES = 512 << 10
"""Between the medians of a window's two ends, which are eight rounds apart; less is noise. With 200 connects
and 1,000 images a round, a leak of 330 bytes a connection or of 70 bytes a frame shows."""
JUNK = (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02")


def main(argv: Sequence[str]) -> int:
    """Run it; returns its exit status. Raises OfframpError where something grew or went missing."""
    parser = Parser(
        "offramp bench soak",
        description="Serve for a long time while devices come and go, and see whether anything grows.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=Path("models/digits-mobilenetv2-exit12"))
    parser.add_argument("--images", type=Path, default=Path("examples/digits"))
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--connects", type=int, default=10_000, help="connects and disconnects in all")
    parser.add_argument("--rate", type=float, default=200.0, metavar="R", help="images a second, about")
    parser.add_argument("--rounds", type=int, default=60, metavar="N", help="into which the work is cut")
    parser.add_argument("--plot", type=Path, metavar="STEM", help="also write STEM.png and STEM.svg")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    arguments = parser.parse_args(argv)
    set_grpc_environment()
    rounds = max(arguments.rounds, WINDOW)
    pause = arguments.seconds / rounds
    with soaking(arguments.bundle, arguments.images) as soak:
        for number in tqdm(range(rounds), unit="round", disable=None, file=sys.stderr, leave=False):
            due = time.monotonic() + pause
            soak.round(
                connects=arguments.connects * (number + 1) // rounds - arguments.connects * number // rounds,
                images=round(arguments.rate * pause),
                seconds=pause,
            )
            time.sleep(max(0.0, due - time.monotonic()))
        result = {
            "environment": environment(["grpcio", "onnxruntime"], -1),
            "seconds": arguments.seconds,
            **soak.finish(),
        }
    if arguments.plot is not None:
        result["plots"] = [str(path) for path in draw(plot_of(soak.samples), arguments.plot)]
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(report(result)))
    failures = [name for name, process in result["processes"].items() if not process["flat"]]
    if failures or not result["accounted"]:
        raise OfframpError(f"grew: {', '.join(failures) or 'nothing'}; accounted: {result['accounted']}")
    return 0


@dataclass(frozen=True)
class Reading:
    """What one process holds, after a round."""

    seconds: float
    resident_bytes: int
    descriptors: int
    threads: int


def is_flat(memory: Sequence[int], growth: int = GROWTH_BYTES) -> bool:
    """Whether the last rounds took no memory, bytes: between the first and the last of a window.

    It cannot be said of fewer than a window's rounds. A warm-up is over at some point, a leak never is: gRPC
    alone remembers its last 2,500 connections or so.
    """
    if len(memory) < WINDOW:
        return False
    window = memory[-WINDOW:]
    return statistics.median(window[-ENDS:]) - statistics.median(window[:ENDS]) <= growth


def grows(readings: Sequence[Reading]) -> bool:
    """Whether a process took memory in the last rounds, or descriptors or threads since half way.

    Descriptors also have a warm-up: gRPC keeps sockets that a stranger has reset for some rounds.
    """
    half, last = readings[len(readings) // 2], readings[-1]
    return (
        not is_flat([reading.resident_bytes for reading in readings])
        or last.descriptors > half.descriptors + 4
        or last.threads > half.threads + 4
    )


def slope(readings: Sequence[Reading]) -> float:
    """Bytes an hour over the second half of the run: the median slope of all pairs (Theil and Sen)."""
    half = readings[len(readings) // 2 :]
    if len(half) < 2:
        return 0.0
    # Here: only a report needs it.
    from scipy.stats import theilslopes

    found = theilslopes([one.resident_bytes for one in half], [one.seconds for one in half])
    return float(found.slope) * 3600


@dataclass
class Soak:
    """The programs, and what they held after each round."""

    bundle: Bundle
    names: list[str]
    server: Program
    device: Program
    answers: Answers
    samples: dict[str, list[Reading]] = field(default_factory=lambda: {"cloud-server": [], "edge-device": []})
    connects: int = 0
    visits: int = 0
    fed: int = 0
    start: float = field(default_factory=time.monotonic)

    def round(self, *, connects: int, images: int, seconds: float = 0.0) -> None:
        """So many images through the device, and connects at the server beside them, over these seconds."""
        feeder = threading.Thread(target=self._feed, args=(images, seconds))
        feeder.start()
        pause = seconds / max(1, connects)
        due = time.monotonic()
        for _ in range(connects):
            self._connect()
            due += pause
            time.sleep(max(0.0, due - time.monotonic()))
        feeder.join()
        self._wait(lambda: self.answers.sources.total() >= self.fed, "answers to all images")
        self._wait(lambda: self._metric("open_streams") == 1, "no stream but the device's")
        for name, program in (("cloud-server", self.server), ("edge-device", self.device)):
            self.samples[name].append(reading(program, self.start))

    def _feed(self, images: int, seconds: float) -> None:
        pipe = self.device.process.stdin
        assert pipe is not None
        batches = max(1, min(images, round(seconds * 20)))
        due = time.monotonic()
        for number in range(batches):
            count = images * (number + 1) // batches - images * number // batches
            lines = [self.names[(self.fed + i) % len(self.names)] for i in range(count)]
            try:
                pipe.write("".join(f"{line}\n" for line in lines))
                pipe.flush()
            except OSError:  # the device is gone, which the round will notice
                return
            self.fed += count
            due += seconds / batches
            time.sleep(max(0.0, due - time.monotonic()))

    def _connect(self) -> None:
        kind = self.connects % 4
        self.connects += 1
        if kind == 0:
            with socket.create_connection(
                split_address("the server", self.server.address), timeout=WAIT
            ) as stranger:
                with suppress(OSError):
                    stranger.sendall(JUNK[(self.connects // 4) % len(JUNK)])
                if self.connects % 3:
                    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        self._visit(frames=0 if kind == 1 else FRAMES_OF_A_VISIT, leave_well=kind != 3)

    def _visit(self, frames: int, leave_well: bool) -> None:
        """A stream as a device opens it; it ends in good order, or is cancelled with frames on their way."""
        import grpc

        from offramp.common.wire import frame, transport

        payload = self.bundle.codec.encode(np.zeros(self.bundle.codec.shape, np.uint8))
        writer = frame.FrameWriter()
        messages = [frame.hello(self.bundle.digest)]
        messages += [writer.pack([frame.Frame(1 + i, *payload)]) for i in range(frames)]
        with grpc.insecure_channel(self.server.address, options=transport.device_options()) as channel:
            method: Any = channel.stream_stream(transport.OFFLOAD)
            call = method(iter(messages), timeout=WAIT)
            try:
                next(call)
                if leave_well:
                    for _ in call:
                        pass
            except grpc.RpcError as error:
                raise UnavailableError(f"soak: a visitor was turned away: {error}") from None
            finally:
                call.cancel()
        self.visits += 1

    def _wait(self, condition: Any, what: str) -> None:
        end = time.monotonic() + WAIT
        while not condition():
            if time.monotonic() > end or any(
                p.process.poll() is not None for p in (self.server, self.device)
            ):
                raise UnavailableError(f"soak: waited for {what}")
            time.sleep(0.02)

    def _metric(self, name: str) -> float:
        """One of the server's, without the prefix; 0 before it was counted."""
        return fetch_metrics(self.server.metrics).get(f"offramp_server_{name}", 0.0)

    def is_flat(self) -> bool:
        """Whether neither process grows: what ``finish`` will say of each."""
        return not any(grows(readings) for readings in self.samples.values())

    def finish(self) -> dict[str, Any]:
        """End the device; the figures, and whether every image has its one answer."""
        pipe = self.device.process.stdin
        assert pipe is not None
        pipe.close()
        self.answers.wait()
        answered, refused, abandoned = (
            self._metric(f'frames_total{{result="{result}"}}')
            for result in ("answered", "refused", "abandoned")
        )
        read = answered + refused + abandoned
        accounted = (
            self.answers.indices == Counter(range(self.fed))
            and self.answers.sources.total() == self.fed
            and self.fed <= answered
            and read <= self.fed + FRAMES_OF_A_VISIT * self.visits
        )
        return {
            "images": self.fed,
            "by": dict(self.answers.sources),
            "connects": self.connects,
            "streams": int(self._metric("streams_total")),
            "rounds": len(self.samples["cloud-server"]),
            "accounted": accounted,
            "processes": {
                name: {
                    "flat": not grows(readings),
                    "mb_first": readings[0].resident_bytes / 1e6,
                    "mb_last": readings[-1].resident_bytes / 1e6,
                    "mb_an_hour": slope(readings) / 1e6,
                    "descriptors": [readings[0].descriptors, readings[-1].descriptors],
                    "threads": [readings[0].threads, readings[-1].threads],
                }
                for name, readings in self.samples.items()
            },
        }


class Answers:
    """What the device prints: how many answers, to which images, from where."""

    def __init__(self, pipe: IO[str]) -> None:
        self.indices: Counter[int] = Counter()
        self.sources: Counter[str] = Counter()
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            record = json.loads(line)
            if "source" in record:
                self.indices[record["index"]] += 1
                self.sources[record["source"]] += 1

    def wait(self) -> None:
        """Wait until the device has closed its output, and all of it is read."""
        self._reader.join(WAIT)


def reading(program: Program, start: float) -> Reading:
    """What a program holds now."""
    folder = Path(f"/proc/{program.process.pid}")
    return Reading(
        time.monotonic() - start,
        program.resident_bytes(),
        len(os.listdir(folder / "fd")),
        len(os.listdir(folder / "task")),
    )


@contextmanager
def soaking(bundle: Path, images: Path, *, server: Sequence[str] = ()) -> Iterator[Soak]:
    """A server and a device that is fed by rounds. server: what Python runs in place of
    ``cloud-server``.
    """
    names = sorted(str(path.resolve()) for path in images.iterdir() if path.suffix in (".png", ".jpg"))
    if not names:
        raise UnavailableError(f"{images}: has no pictures")
    loaded = load_bundle(bundle)
    serving = ["--bundle", bundle, "--listen", "127.0.0.1:0", "--threads", 1, "--workers", 1]
    serving += ["--max-batch", 16, "--max-wait-ms", 0, "--metrics-port", 0]
    with running(_SERVER, *serving, python=server) as started:
        feeding = ["--bundle", bundle, "--threshold", 1, "--server", started.address, "--timeout", WAIT]
        feeding += ["--json", "--metrics-port", 0, "-"]
        with running(
            _DEVICE, *feeding, ready="metrics on", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as device:
            assert device.process.stdout is not None
            yield Soak(loaded, names, started, device, Answers(device.process.stdout))


def plot_of(samples: dict[str, list[Reading]]) -> Plot:
    """Memory over time."""
    lines = [
        Series(name, [r.seconds / 60 for r in readings], [r.resident_bytes / 1e6 for r in readings])
        for name, readings in samples.items()
    ]
    return Plot("Resident memory while devices come and go", "minutes", "MB (10^6 bytes)", lines)


def report(result: dict[str, Any]) -> list[str]:
    """The figures in lines."""
    lines = [
        f"{result['images']:,} images ({result['by']}), {result['connects']:,} connects and disconnects, "
        f"{result['streams']:,} streams in {result['seconds']:g} s; each image answered once: "
        f"{'yes' if result['accounted'] else 'NO'}",
        f"{'':14}{'MB first':>10}{'MB last':>10}{'MB an hour':>12}{'descriptors':>14}{'threads':>12}",
    ]
    for name, process in result["processes"].items():
        files, threads = (" … ".join(map(str, process[what])) for what in ("descriptors", "threads"))
        lines.append(
            f"{name:14}{process['mb_first']:>10.1f}{process['mb_last']:>10.1f}{process['mb_an_hour']:>12.2f}"
            f"{files:>14}{threads:>12}  {'flat' if process['flat'] else 'GREW'}"
        )
    return lines
