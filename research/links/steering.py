"""``python -m research.links.steering``: how T_c follows a link whose rate changes.

A real ``edge-device`` classifies images at a fixed rate over a shaped link to a real ``cloud-server``; in
mid-run the link becomes slow, and fast again. Once with a byte budget alone, once with a latency target too.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from offramp.bench.plots import Plot, Series, publish
from offramp.bench.timing import environment
from offramp.common.arguments import Parser
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import ConfigError, DataError, UnavailableError
from offramp.common.wire.transport import set_grpc_environment
from offramp.device.sources.source import Source
from research.links.shaped_link import Shape, ShapedLink, require_namespaces, shaped_link
from research.program import run_program

PROGRAM = "python -m research.links.steering"
EPILOG = """\
examples:
  python -m research.links.steering --out build/bench-steering
  python -m research.links.steering --byte-budget 1000 --target-latency 15 --json

The link is --fast for a quarter of the time, --slow for a quarter, and --fast again. It needs root and
iproute2. Both runs go on at the same time, over links of their own.
"""
BINS = 60
"""Slices of time that a run is shown in."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    return run_program(PROGRAM, _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    """Raises ConfigError without root or iproute2."""
    parser = Parser(
        PROGRAM,
        description="Show how T_c follows a link whose rate changes.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=Path("models/digits-mobilenetv2-exit12"))
    parser.add_argument("--images", type=Path, default=Path("examples/digits"))
    parser.add_argument("--rate", type=float, default=40.0, metavar="R", help="images a second (default: 40)")
    parser.add_argument(
        "--byte-budget", type=float, default=2000.0, metavar="B", help="bytes a second (default: 2000)"
    )
    parser.add_argument(
        "--target-latency", type=float, default=15.0, metavar="MS", help="mean of all images (default: 15)"
    )
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        default=(0.5, 0.9999),
        metavar=("FLOOR", "CEILING"),
        help="of T_c (default: 0.5 0.9999)",
    )
    parser.add_argument("--fast", type=float, default=1e6, metavar="BIT/S", help="default: 1 Mbit/s")
    parser.add_argument("--slow", type=float, default=8e3, metavar="BIT/S", help="default: 8 kbit/s")
    parser.add_argument("--round-trip", type=float, default=60.0, metavar="MS", help="default: 60")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run (default: 120)")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write steering.json and the plots there")
    arguments = parser.parse_args(argv)
    for name in ("rate", "byte_budget", "target_latency", "fast", "slow", "seconds"):
        if getattr(arguments, name) <= 0:
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(arguments, name):g}: expected more than 0"
            )
    require_namespaces(PROGRAM)
    set_grpc_environment()
    budget = ["--byte-budget", str(arguments.byte_budget)]
    runs = {
        "byte budget": budget,
        "byte budget and latency target": [*budget, "--target-latency", str(arguments.target_latency)],
    }
    phases = [arguments.fast, arguments.slow, arguments.fast, arguments.fast]
    common = [
        *("--rate", str(arguments.rate), "--threshold-floor", str(arguments.range[0])),
        *("--threshold-ceiling", str(arguments.range[1])),
    ]
    result: dict[str, Any] = {
        "environment": environment(["grpcio", "onnxruntime"], -1),
        "bundle": load_bundle(arguments.bundle).manifest.name,
        "images_per_second": arguments.rate,
        "byte_budget_per_second": arguments.byte_budget,
        "target_latency_ms": arguments.target_latency,
        "threshold_range": list(arguments.range),
        "round_trip_ms": arguments.round_trip,
        "seconds": arguments.seconds,
        "phases_bit_per_second": phases,
        "runs": {},
    }
    shape = Shape(arguments.fast, arguments.round_trip / 1e3)
    count = round(arguments.rate * arguments.seconds)
    with TemporaryDirectory() as folder:
        listed = list_images(arguments, count, Path(folder))
        with ThreadPoolExecutor(len(runs)) as threads:
            under_way = [
                threads.submit(
                    run, arguments.bundle, listed, shape, phases, arguments.seconds, [*common, *flags], number
                )
                for number, flags in enumerate(runs.values())
            ]
        for name, each in zip(runs, under_way, strict=True):
            records, carried = each.result()
            result["runs"][name] = by_time(records, carried, arguments.seconds, phases)
    publish("steering", result, plots, lines, out=arguments.out, as_json=arguments.json)
    return 0


def list_images(arguments: Any, count: int, folder: Path) -> Path:
    """A list of so many paths: the images again and again, each time in another order."""
    source = Source([arguments.images], load_bundle(arguments.bundle).manifest.preprocessing)
    names = [str(Path(item.name).absolute()) for item in source if isinstance(item.image, np.ndarray)]
    if not names:
        raise DataError(f"{arguments.images}: has no pictures, expected some")
    rng = random.Random(0)
    paths: list[str] = []
    while len(paths) < count:
        rng.shuffle(names)
        paths += names
    path = folder / "images.txt"
    path.write_text("\n".join(paths[:count]) + "\n")
    return path


def run(
    bundle: Path,
    listed: Path,
    shape: Shape,
    phases: Sequence[float],
    seconds: float,
    flags: Sequence[str],
    number: int = 0,
) -> tuple[list[dict[str, Any]], list[int]]:
    """One device's records, each with ``at``, seconds from the first one; and its interface's bytes by phase.

    Raises UnavailableError where it answers nothing.
    """
    with (
        shaped_link(shape, steady=False) as link,
        link.server("offramp.server.app", "--bundle", bundle) as address,
    ):
        command = [
            *(*link.device_prefix, sys.executable, "-m", "offramp.device.app", "--bundle", str(bundle)),
            *("--server", address, "--insecure", "--json", "--log-level", "error", *flags, str(listed)),
        ]
        stop = threading.Event()
        records: list[dict[str, Any]] = []
        carried: list[int] = []
        changing = threading.Thread(target=_change, args=(link, phases, seconds, stop, carried))
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
            tqdm(total=round(seconds), unit="s", disable=None, leave=False, position=number) as bar,
        ):
            try:
                assert process.stdout is not None
                start = 0.0
                for line in process.stdout:
                    record = json.loads(line)
                    if "source" not in record:
                        continue
                    if not records:
                        start = time.monotonic()
                        changing.start()
                    records.append(record | {"at": time.monotonic() - start})
                    bar.update(int(records[-1]["at"]) - bar.n)
                if records:
                    changing.join()
            finally:
                process.terminate()
                stop.set()
                if changing.ident is not None:
                    changing.join()
    if not records:
        raise UnavailableError("edge-device ended without an answer")
    return records, carried


def _change(
    link: ShapedLink, phases: Sequence[float], seconds: float, stop: threading.Event, carried: list[int]
) -> None:
    """Give the link each rate for its part of the time; note what the interface carried in it."""
    before = sum(link.interface_bytes())
    for rate in phases:
        link.set_rate(rate)
        if stop.wait(seconds / len(phases)):
            return
        after = sum(link.interface_bytes())
        carried.append(after - before)
        before = after


def by_time(
    records: Sequence[dict[str, Any]], carried: Sequence[int], seconds: float, phases: Sequence[float]
) -> dict[str, list[dict[str, Any]]]:
    """Means of each slice of time and of each phase; the last of each has what came after the end, too.

    records: with ``at``, seconds. carried: bytes of the interface in each phase.
    """
    at = np.array([record["at"] for record in records])
    found = {}
    for name, count in (("slices", BINS), ("phases", len(phases))):
        edges = np.linspace(0, seconds, count + 1)
        which = np.minimum(np.searchsorted(edges, at, side="right") - 1, count - 1)
        found[name] = [
            _means(
                [records[int(i)] for i in np.flatnonzero(which == number)],
                float(edges[number]),
                seconds / count,
            )
            for number in range(count)
        ]
    for phase, rate, size in zip(found["phases"], phases, carried, strict=True):
        phase["link_bit_per_second"] = rate
        phase["interface_bytes_per_second"] = size / (seconds / len(phases))
    return found


def _means(records: Sequence[dict[str, Any]], start: float, seconds: float) -> dict[str, Any]:
    """Figures of one slice; None where it has no image."""

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    return {
        "from_s": start,
        "images": len(records),
        "threshold": mean([record["threshold"] for record in records]),
        "bytes_per_second": sum(record["wire_bytes"] for record in records) / seconds,
        "latency_ms": mean([record["latency_seconds"] * 1e3 for record in records]),
        "server": sum(record["source"] == "server" for record in records),
        "fallback": sum(record["source"] == "fallback" for record in records),
    }


def plots(result: dict[str, Any]) -> dict[str, Plot]:
    """By file name."""
    rates = ", ".join(f"{rate / 1e3:g}" for rate in result["phases_bit_per_second"])
    part = result["seconds"] / len(result["phases_bit_per_second"])
    when = f"seconds; the link has {rates} kbit/s for {part:g} s each"

    def series(key: str) -> list[Series]:
        found = []
        for name, run in result["runs"].items():
            rows = [row for row in run["slices"] if row[key] is not None]
            found.append(Series(name, [row["from_s"] for row in rows], [row[key] for row in rows]))
        return found

    ends = [0.0, result["seconds"]]
    budget = Series("budget", ends, [result["byte_budget_per_second"]] * 2, paper=True)
    target = Series("target", ends, [result["target_latency_ms"]] * 2, paper=True)
    return {
        "steering-threshold": Plot("Confidence threshold T_c", when, "T_c", series("threshold")),
        "steering-bytes": Plot(
            "Bytes of answered images, both directions",
            when,
            "bytes/s",
            [*series("bytes_per_second"), budget],
        ),
        "steering-latency": Plot(
            "Mean latency of all images", when, "ms", [*series("latency_ms"), target], log_y=True
        ),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report as it is printed."""
    around = result["environment"]
    yield f"{around['cpu']}, {around['cores']} cores, load {around['load_average'][0]}"
    yield (
        f"{result['bundle']}, {result['images_per_second']:g} images/s, "
        f"round trip {result['round_trip_ms']:g} ms; "
        f"budget {result['byte_budget_per_second']:g} B/s, target {result['target_latency_ms']:g} ms"
    )
    for name, run in result["runs"].items():
        yield ""
        yield name
        heads = f"{'link kbit/s':>12} {'T_c':>8} {'bytes/s':>8} {'interface':>10} {'mean ms':>8}"
        yield f"{heads} {'images':>7} {'server':>7} {'fallback':>9}"
        for row in run["phases"]:
            threshold = "-" if row["threshold"] is None else f"{row['threshold']:.4f}"
            latency = "-" if row["latency_ms"] is None else f"{row['latency_ms']:.1f}"
            yield (
                f"{row['link_bit_per_second'] / 1e3:>12g} {threshold:>8} {row['bytes_per_second']:>8.0f} "
                f"{row['interface_bytes_per_second']:>10.0f} {latency:>8} "
                f"{row['images']:>7} {row['server']:>7} {row['fallback']:>9}"
            )


if __name__ == "__main__":
    raise SystemExit(main())
