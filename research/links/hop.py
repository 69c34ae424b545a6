"""``python -m research.links.hop``: what a gateway adds to the latency of a frame that goes on.

The same frames of the same simulated devices, one frame a message at random times, go straight to a
``cloud-server`` that runs parts 2 … N, and through an ``edge-server`` to that server. Its exit is set to be
sure of nothing, so that every frame crosses; part 2 runs once on either way. What the second way takes longer
is the hop: decoding, a queue, encoding, a stream and its reply once more."""

from __future__ import annotations

import asyncio
import json
import os
import time
from argparse import RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bench.load import Messages, open_loop
from offramp.bench.metrics import fetch_metrics
from offramp.bench.processes import Program, pinned, running_server
from offramp.bench.serve import activations, quantiles
from offramp.bench.timing import environment
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import ConfigError, UnavailableError
from offramp.common.part.engine import Engine
from offramp.common.wire.frame import segment_of
from offramp.common.wire.transport import set_grpc_environment
from research.program import run_program

PROGRAM = "python -m research.links.hop"
EPILOG = """\
examples:
  python -m research.links.hop --bundle DIR
  python -m research.links.hop --bundle DIR --images DIR --json

The bundle has three parts or more. Without images its frames are of random ones. With six cores or more,
gateway, server and devices have cores of their own.
"""
MOST_MS = 2.0
"""What the hop may add at the median."""
DEADLINE = 2.0
STAGES = {
    "decode": "offramp_server_decode_seconds",
    "queue": "offramp_server_queue_seconds",
    "part 2": "offramp_server_inference_seconds",
    "encode": "offramp_server_encode_seconds",
    "upstream": "offramp_server_upstream_round_trip_seconds",
}
"""What the gateway's page says of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    return run_program(PROGRAM, _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        PROGRAM, description=str(__doc__), epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="a folder of inputs (default: random ones)")
    parser.add_argument("--devices", type=int, default=64, metavar="N", help="(default: 64)")
    parser.add_argument(
        "--rate",
        type=float,
        default=128.0,
        metavar="R",
        help="frames a second of all together (default: 128)",
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of each round (default: 5)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of both ways (default: 5)")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    arguments = parser.parse_args(argv)
    for name, least in (("devices", 1), ("rate", 1), ("seconds", 0.1), ("rounds", 1)):
        if getattr(arguments, name) < least:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: expected {least} or more")
    set_grpc_environment()
    bundle = load_bundle(arguments.bundle)
    if len(bundle.manifest.parts) < 3:
        raise ConfigError(f"--bundle {arguments.bundle}: has two parts, expected three or more")
    result = measure(
        bundle, arguments.images, arguments.devices, arguments.rate, arguments.seconds, arguments.rounds
    )
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(lines(result)))
    return 0


def shared_out(cores: set[int]) -> list[set[int]]:
    """The cores of gateway, server and devices: a third each, or all of all where there are few."""
    ordered = sorted(cores)
    third = len(ordered) // 3
    if third < 2:
        return [cores] * 3
    return [set(ordered[:third]), set(ordered[third : 2 * third]), set(ordered[2 * third :])]


def inputs(bundle: Bundle, engine: Engine, images: Path | None) -> NDArray[np.uint8]:
    """Symbols of the first crossing, uint8 [N, …]."""
    if images is not None:
        return activations(bundle, engine, images)
    taken = bundle.manifest.input
    rng = np.random.default_rng(0)
    if taken.dtype == "uint8":
        made: NDArray[Any] = rng.integers(0, 256, (32, *taken.shape), np.uint8)
    else:
        made = rng.standard_normal((32, *taken.shape)).astype(np.float32)
    return np.concatenate([engine.head(each[None])[0] for each in made])


def part_seconds(engine: Engine, symbols: NDArray[np.uint8]) -> float:
    """What part 2 alone takes of one frame: the median of many runs."""
    took = []
    for index in range(200):
        one = symbols[index % len(symbols)][None]
        start = time.perf_counter()
        engine.part(2, one)
        took.append(time.perf_counter() - start)
    return float(np.median(took))


def measure(
    bundle: Bundle, images: Path | None, devices: int, rate: float, seconds: float, rounds: int
) -> dict[str, Any]:
    """All figures; keys as ``--json`` prints them. Times are in milliseconds."""
    gateway_cores, server_cores, load_cores = shared_out(os.sched_getaffinity(0))
    engine = Engine(bundle, len(gateway_cores))
    symbols = inputs(bundle, engine, images)
    own = part_seconds(engine, symbols)
    messages = Messages([(int(codec), coded) for codec, coded in map(bundle.codec.encode, symbols)], 1)
    segment = segment_of(2, len(bundle.manifest.parts))

    cpu_us: dict[str, list[float]] = defaultdict(list)

    def latencies(server: Program) -> NDArray[np.float64]:
        found = asyncio.run(
            open_loop(
                server, bundle.digest, messages, streams=devices, rate=rate, warm=min(1.0, seconds / 3),
                seconds=seconds, deadline=DEADLINE, patient=True, segment=segment,
            )
        )  # fmt: skip
        kept = np.array(found.latency)[np.array(found.due) >= 0] * 1e3
        if not len(kept) or found.refused or found.lost:
            raise UnavailableError(
                f"{len(kept)} frames were answered, {found.refused} refused, {found.lost} lost: expected a "
                "lower --rate"
            )
        cpu_us[server.address].append(found.server_busy * seconds / len(kept) * 1e6)
        return kept

    common = ("--exit-threshold", 1, "--metrics-port", 0)
    with (
        pinned(load_cores),
        running_server(bundle.path, *common, cores=server_cores) as server,
        running_server(bundle.path, *common, "--upstream", server.address, cores=gateway_cores) as gateway,
    ):
        ways: dict[str, list[NDArray[np.float64]]] = {"direct": [], "gateway": []}
        for _ in range(rounds):
            ways["direct"].append(latencies(server))
            ways["gateway"].append(latencies(gateway))
        page = fetch_metrics(gateway.metrics)
    added = [
        quantiles(through)[q] - quantiles(direct)[q]  # type: ignore[operator]
        for q in ("p50", "p99")
        for direct, through in zip(ways["direct"], ways["gateway"], strict=True)
    ]
    return {
        "environment": environment(["grpcio", "onnxruntime"], min(load_cores)),
        "bundle": bundle.manifest.name,
        "cores": {
            "gateway": sorted(gateway_cores), "server": sorted(server_cores), "devices": sorted(load_cores)
        },
        "devices": devices,
        "frames_per_second": rate,
        "frames": {name: sum(map(len, each)) for name, each in ways.items()},
        "part_2_alone_ms": own * 1e3,
        "latency_ms": {name: [quantiles(each) for each in rounds] for name, rounds in ways.items()},
        "added_ms": {"p50": float(np.median(added[:rounds])), "p99": float(np.median(added[rounds:]))},
        "gateway_ms": {
            name: page[f"{metric}_sum"] / max(1.0, page[f"{metric}_count"]) * 1e3
            for name, metric in STAGES.items()
        },
        "cpu_us_per_frame": {
            "server, direct": float(np.median(cpu_us[server.address])),
            "gateway": float(np.median(cpu_us[gateway.address])),
        },
        "answers_by_upstream": page['offramp_server_answers_total{by="upstream"}'],
        "answers_by_fallback": page['offramp_server_answers_total{by="fallback"}'],
    }  # fmt: skip


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report as it is printed."""
    around, cores = result["environment"], result["cores"]
    yield f"{around['cpu']}, {around['cores']} cores, load {around['load_average'][0]}; cores {cores}"
    yield (
        f"{result['bundle']}, {result['devices']} devices, {result['frames_per_second']:g} frames/s "
        f"together; part 2 alone {result['part_2_alone_ms']:.2f} ms"
    )
    yield f"{'way':<10}{'round':>6}{'p50 ms':>9}{'p95':>9}{'p99':>9}"
    for name, rounds in result["latency_ms"].items():
        for number, each in enumerate(rounds, 1):
            yield f"{name:<10}{number:>6}{each['p50']:>9.2f}{each['p95']:>9.2f}{each['p99']:>9.2f}"
    added = result["added_ms"]
    verdict = "holds" if added["p50"] <= MOST_MS else "does not hold"
    yield (
        f"the hop adds {added['p50']:.2f} ms at the median (expected at most {MOST_MS:g}: {verdict}), "
        f"{added['p99']:.2f} ms at the 99th percentile; medians over rounds"
    )
    stages = ", ".join(f"{name} {value:.2f}" for name, value in result["gateway_ms"].items())
    yield f"of the gateway, means in ms: {stages}"
    cpu = ", ".join(f"{name} {value:.0f}" for name, value in result["cpu_us_per_frame"].items())
    yield f"processor time of a frame in us: {cpu}"
    if result["answers_by_fallback"]:
        yield f"{result['answers_by_fallback']:.0f} answers were fallbacks: they crossed nothing"


if __name__ == "__main__":
    raise SystemExit(main())
