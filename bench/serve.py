"""``offramp bench serve``: what a server makes of its cores, beside the bare tail on the same ones.

A real ``cloud-server`` on some of the machine's cores, asked over loopback by a generator on the others, so
that neither takes the other's time; the bare tail runs on the server's cores, with as many threads, before
and after. Frames are the coded activations of real images, encoded before.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offramp.bench.answers import head_answers
from offramp.bench.plots import Plot, Series, draw
from offramp.bench.processes import Program, pinned, running_server
from offramp.bench.timing import environment
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import ConfigError, DataError
from offramp.common.part.engine import Engine
from offramp.common.wire.transport import set_grpc_environment
from offramp.device.sources.source import Source

if TYPE_CHECKING:
    # It imports the stubs, which --help does not need.
    from offramp.bench.load import Arrivals, Rate

EPILOG = """\
examples:
  offramp bench serve
  offramp bench serve --json --out build/bench-serve
  offramp bench serve --bundle DIR --images DIR --server-cores 4

engine: the bare tail, batch by batch. batching: the server held to the same batches. throughput: the server
as it plans by itself, closed loop, eight frames and one frame a message. load: --streams devices, one frame a
message, open loop, at 80 % of what they get in a closed one. overload: three times as much, from devices that
do as the retry hint says, as edge-device does, and from devices that do not; goodput as a share of the best
at any load.
"""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
TOGETHER = 8
"""Frames of a message where they share one."""
LOAD, OVERLOAD = 0.8, 3.0
"""Shares of the closed loop's throughput that are offered."""
PEAK_LOADS = (0.9, 1.0, 1.2)
"""Where the peak of goodput over load is looked for."""
DEADLINE = 2.0
"""Seconds that a device waits, edge-device's default."""
LEAST_RATIO, LEAST_GOODPUT = 0.8, 0.9
SATURATED = 0.9
"""A generator that is busier than this may be what was measured."""


def main(argv: Sequence[str]) -> int:
    """Run it; returns its exit status."""
    parser = Parser(
        "offramp bench serve",
        description="Measure what a server makes of its cores.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=Path("models/digits-mobilenetv2-exit12"))
    parser.add_argument("--images", type=Path, default=Path("examples/digits"))
    parser.add_argument("--streams", type=int, default=256, metavar="N", help="devices (default: 256)")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=BATCHES,
        metavar="N",
        help="batch sizes (default: 1 2 4 … 64)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="of each point (default: 2); load and overload take four times as long",
    )
    parser.add_argument(
        "--server-cores", type=int, metavar="N", help="cores of server and engine (default: half of them)"
    )
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write serve.json and the plots there")
    arguments = parser.parse_args(argv)
    for name, least in (("streams", 1), ("seconds", 0.05)):
        if getattr(arguments, name) < least:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: expected {least} or more")
    if min(arguments.batches) < 1:
        raise ConfigError(f"--batches {min(arguments.batches)}: expected 1 or more")
    cores = split_cores(os.sched_getaffinity(0), arguments.server_cores)
    set_grpc_environment()
    result = measure(
        arguments.bundle,
        arguments.images,
        cores,
        arguments.streams,
        sorted(set(arguments.batches)),
        arguments.seconds,
    )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "serve.json").write_text(json.dumps(result, indent=1) + "\n")
        for name, plot in plots(result).items():
            draw(plot, arguments.out / name)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        report(result)
    return 0


def split_cores(cores: set[int], wanted: int | None) -> tuple[set[int], set[int]]:
    """The server's cores and the generator's. Raises ConfigError where one of them has none."""
    count = len(cores) // 2 if wanted is None else wanted
    if not 0 < count < len(cores):
        raise ConfigError(
            f"--server-cores {count} of {len(cores)}: expected one or more for each of server and load"
        )
    ordered = sorted(cores)
    return set(ordered[:count]), set(ordered[count:])


def measure(
    directory: Path,
    images: Path,
    cores: tuple[set[int], set[int]],
    streams: int,
    batches: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    """All figures of one run; keys as ``--json`` prints them."""
    from offramp.bench.load import Messages, closed_loop, open_loop

    bundle = load_bundle(directory)
    server_cores, load_cores = cores
    warm = seconds / 3
    with pinned(server_cores):
        engine = Engine(bundle, len(server_cores))
        symbols = activations(bundle, engine, images)
        curve = engine_curve(engine, symbols, batches, seconds / 6)
    payloads = [(int(codec), payload) for codec, payload in map(bundle.codec.encode, symbols)]
    result: dict[str, Any] = {
        "environment": environment(["grpcio", "onnxruntime"], min(server_cores)),
        "bundle": bundle.manifest.name,
        "cores": {"server": sorted(server_cores), "load": sorted(load_cores)},
        "payload_bytes_mean": float(np.mean([len(payload) for _, payload in payloads])),
    }

    def closed(server: Program, per_message: int, count: int, depth: int) -> Rate:
        return asyncio.run(
            closed_loop(
                server,
                bundle.digest,
                Messages(payloads, per_message),
                streams=count,
                depth=depth,
                warm=warm,
                seconds=seconds,
            )
        )

    fixed = ("--workers", 1, "--threads", len(server_cores), "--max-wait-ms", 0)
    held: dict[int, Rate] = {}
    with pinned(load_cores):
        for batch in batches:
            with running_server(directory, *fixed, "--max-batch", batch, cores=server_cores) as server:
                # Twice the largest batch is under way: there is always a whole one to run.
                held[batch] = closed(server, TOGETHER, max(2, 2 * max(batches) // TOGETHER), 2)
        with running_server(directory, cores=server_cores) as server:
            result["plan"] = next((line.partition(": ")[2] for line in server.log if "serves " in line), "")
            together = closed(server, TOGETHER, 16, 2)
            alone = closed(server, 1, 64, 2)
            many = closed(server, 1, streams, 1)
            peak = many.frames_per_second

            def opened(rate: float, patient: bool) -> Arrivals:
                return asyncio.run(
                    open_loop(
                        server,
                        bundle.digest,
                        Messages(payloads, 1),
                        streams=streams,
                        rate=rate,
                        warm=2 * warm,
                        seconds=4 * seconds,
                        deadline=DEADLINE,
                        patient=patient,
                    )
                )

            loaded = opened(LOAD * peak, patient=True)
            around = [opened(share * peak, patient=True) for share in PEAK_LOADS]
            overloaded = {
                name: opened(OVERLOAD * peak, patient=name == "patient") for name in ("patient", "impatient")
            }
    with pinned(server_cores):
        again = engine_curve(engine, symbols, batches, seconds / 6)
    curve = {batch: max(curve[batch], again[batch]) for batch in batches}
    best = max(curve.values())
    bare_us = len(server_cores) * 1e6 / best
    result["engine"] = {"images_per_second": curve, "best": best, "core_us_per_image": bare_us}
    result["batching"] = {
        batch: asdict(rate)
        | {
            "gain": rate.frames_per_second / held[min(batches)].frames_per_second,
            "engine_gain": curve[batch] / curve[min(batches)],
        }
        for batch, rate in held.items()
    }
    result["batch_cost_us"] = batch_cost(
        {batch: rate.server_cpu_us for batch, rate in held.items()},
        {batch: len(server_cores) * 1e6 / rate for batch, rate in curve.items()},
    )
    result["throughput"] = {
        name: asdict(rate)
        | {"ratio": rate.frames_per_second / best, "cpu_ratio": bare_us / rate.server_cpu_us}
        for name, rate in (
            (f"{TOGETHER} frames a message, 16 streams", together),
            ("1 frame a message, 64 streams", alone),
            (f"1 frame a message, {streams} streams", many),
        )
    }
    result["load"] = {"share": LOAD, "streams": streams} | summary(loaded)
    result["peak"] = [
        {"share": share} | summary(each) for share, each in zip(PEAK_LOADS, around, strict=True)
    ]
    best_open = max(each.goodput(DEADLINE) for each in (loaded, *around))
    result["overload"] = {
        name: {
            "share": OVERLOAD,
            "goodput_of_peak": each.goodput(DEADLINE) / best_open,
            "goodput_of_closed_loop": each.goodput(DEADLINE) / peak,
        }
        | summary(each)
        for name, each in overloaded.items()
    }
    return result


def activations(bundle: Bundle, engine: Engine, images: Path) -> NDArray[np.uint8]:
    """What the head says of a folder's images, uint8 [N, C, h, w]. Raises DataError where there are none."""
    items = Source([images], bundle.manifest.input)
    pixels = [item.image for item in items if isinstance(item.image, np.ndarray)]
    if not pixels:
        raise DataError(f"{images}: has no pictures, expected some")
    return head_answers(engine, np.stack(pixels))[0]


def engine_curve(
    engine: Engine, symbols: NDArray[np.uint8], batches: Sequence[int], seconds: float
) -> dict[int, float]:
    """Images a second of the bare tail for each batch size, on real activations."""
    rates = {}
    for batch in batches:
        inputs = np.resize(symbols, (batch, *symbols.shape[1:]))
        engine.tail(inputs)
        runs, start = 0, time.perf_counter()
        while (now := time.perf_counter()) < start + seconds or not runs:
            engine.tail(inputs)
            runs += 1
        rates[batch] = runs * batch / (now - start)
    return rates


def batch_cost(server_us: dict[int, float], engine_us: dict[int, float]) -> float:
    """Microseconds that a batch costs the server beside the tail.

    What a frame costs is the tail's share, something for itself, and its share of the batch's: the slope of
    the rest over 1/batch, by least squares. 0 with fewer than two batch sizes.
    """
    if len(server_us) < 2:
        return 0.0
    shares = np.array([1 / batch for batch in server_us])
    rest = np.array([server_us[batch] - engine_us[batch] for batch in server_us])
    return float(np.polyfit(shares, rest, 1)[0])


def summary(arrivals: Arrivals) -> dict[str, Any]:
    """Latencies (milliseconds) all together and by time, frames by what became of them, memory."""
    due = np.array(arrivals.due)
    counts = due >= 0
    latency, due = np.array(arrivals.latency)[counts] * 1e3, due[counts]
    sizes = [size for _, size in arrivals.resident]
    edges = np.linspace(0, arrivals.seconds, 13)
    slices = []
    for start, end in pairwise(edges):
        inside = latency[(due >= start) & (due < end)]
        if len(inside):
            slices.append({"from_s": float(start), **quantiles(inside)})
    return {
        "offered_per_second": arrivals.rate,
        "seconds": arrivals.seconds,
        "answered": len(latency),
        "goodput_per_second": arrivals.goodput(DEADLINE),
        "refused": arrivals.refused,
        "kept_by_devices": arrivals.kept,
        "lost": arrivals.lost,
        "latency_ms": quantiles(latency),
        "latency_ms_by_time": slices,
        "server_busy": arrivals.server_busy,
        "load_busy": arrivals.load_busy,
        "resident_bytes": {"start": sizes[0], "end": sizes[-1], "max": max(sizes)},
        "resident_bytes_by_time": [{"at_s": at, "bytes": size} for at, size in arrivals.resident],
    }


def quantiles(values: NDArray[np.float64]) -> dict[str, float | None]:
    """p50, p95 and p99; None of nothing."""
    return {f"p{q}": float(np.percentile(values, q)) if len(values) else None for q in (50, 95, 99)}


def plots(result: dict[str, Any]) -> dict[str, Plot]:
    """By file name."""
    engine, held = result["engine"]["images_per_second"], result["batching"]
    load = result["load"]
    return {
        "serve-batching": Plot(
            "Images a second by batch size, same cores",
            "batch",
            "images/s",
            [
                Series("bare tail", list(engine), list(engine.values())),
                Series(
                    "cloud-server, compressed frames",
                    list(held),
                    [row["frames_per_second"] for row in held.values()],
                ),
            ],
            log_x=True,
        ),
        "serve-latency": Plot(
            f"Latency of {load['streams']} devices at {load['share']:.0%} of the peak",
            "seconds",
            "ms",
            [
                Series(
                    quantile,
                    [row["from_s"] for row in load["latency_ms_by_time"]],
                    [row[quantile] for row in load["latency_ms_by_time"]],
                )
                for quantile in ("p50", "p95", "p99")
            ],
        ),
        "serve-memory": Plot(
            f"The server's memory at {OVERLOAD:g} times the peak",
            "seconds",
            "resident MB",
            [
                Series(
                    f"{name} devices",
                    [row["at_s"] for row in each["resident_bytes_by_time"]],
                    [row["bytes"] / 1e6 for row in each["resident_bytes_by_time"]],
                )
                for name, each in result["overload"].items()
            ],
        ),
    }


def report(result: dict[str, Any]) -> None:
    """Print it."""
    for line in lines(result):
        print(line)


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report as it is printed."""
    around, cores = result["environment"], result["cores"]
    yield (
        f"{around['cpu']}, {around['cores']} cores, load {around['load_average'][0]}; "
        f"server and bare tail on {len(cores['server'])} of them, generator on {len(cores['load'])}"
    )
    yield f"{result['bundle']}, {result['payload_bytes_mean']:.0f} B of payload a frame"
    yield f"the server's plan: {result['plan']}"
    yield ""
    yield f"{'batch':>6} {'bare tail/s':>12} {'gain':>6} {'server/s':>9} {'gain':>6} {'server CPU us':>14}"
    for batch, row in result["batching"].items():
        yield (
            f"{batch:>6} {result['engine']['images_per_second'][batch]:>12.0f} {row['engine_gain']:>6.2f} "
            f"{row['frames_per_second']:>9.0f} {row['gain']:>6.2f} {row['server_cpu_us']:>14.0f}"
        )
    yield f"a batch costs the server {result['batch_cost_us']:.0f} us beside the tail"
    yield ""
    best = result["engine"]["best"]
    yield f"throughput beside the bare tail's best, {best:.0f} images/s; expected {LEAST_RATIO:g}"
    yield f"{'':<32} {'frames/s':>9} {'ratio':>6} {'CPU ratio':>10} {'CPU us':>7} {'generator busy':>15}"
    for name, row in result["throughput"].items():
        yield (
            f"{name:<32} {row['frames_per_second']:>9.0f} {row['ratio']:>6.2f} {row['cpu_ratio']:>10.2f} "
            f"{row['server_cpu_us']:>7.0f} {row['load_busy']:>15.0%}"
        )
    yield ""
    heads = f"{'offered/s':>9} {'good/s':>7} {'of best':>8} {'p50 ms':>7} {'p95':>7} {'p99':>7}"
    yield f"{'':<28} {heads} {'RSS MB: start / end / max':>26}"
    load = result["load"]
    yield _open_line(f"{load['streams']} devices at {LOAD:.0%}", load, None)
    for row in result["peak"]:
        yield _open_line(f"at {row['share']:.0%}", row, None)
    for name, row in result["overload"].items():
        yield _open_line(f"{OVERLOAD:g}x, {name} devices", row, row["goodput_of_peak"])
    firsts, lasts = load["latency_ms_by_time"][0], load["latency_ms_by_time"][-1]
    yield (
        f"p99 at {LOAD:.0%} in the first twelfth {firsts['p99']:.1f} ms, in the last {lasts['p99']:.1f} ms; "
        f"goodput at {OVERLOAD:g}x expected "
        f"{LEAST_GOODPUT:.0%} of the best"
    )
    for name, row in result["overload"].items():
        yield (
            f"{OVERLOAD:g}x, {name}: {row['answered']} answered, {row['refused']} refused, "
            f"{row['kept_by_devices']} kept by their devices, {row['lost']} lost; "
            f"generator {row['load_busy']:.0%} busy"
        )
    rows = [load, *result["overload"].values(), *result["throughput"].values(), *result["batching"].values()]
    if max(row["load_busy"] for row in rows) > SATURATED * len(cores["load"]):
        yield "The generator was at its limit in some of these: their figures are the generator's."


def _open_line(name: str, row: dict[str, Any], share: float | None) -> str:
    latency, size = row["latency_ms"], row["resident_bytes"]
    shown = [f"{latency[q]:.1f}" if latency[q] is not None else "-" for q in ("p50", "p95", "p99")]
    memory = " / ".join(f"{size[which] / 1e6:.0f}" for which in ("start", "end", "max"))
    return (
        f"{name:<28} {row['offered_per_second']:>9.0f} {row['goodput_per_second']:>7.0f} "
        f"{'' if share is None else format(share, '.0%'):>8} {shown[0]:>7} {shown[1]:>7} {shown[2]:>7} "
        f"{memory:>26}"
    )
