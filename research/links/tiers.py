"""``python -m research.links.tiers``: a device, a gateway and a server over two shaped links, for real.

    device ── radio ── gateway ── wire ── server

Each program runs in a network namespace of its own. A bundle of three parts runs on all three; one of two
parts on device and server, and what it sends passes both links, as TCP through a relay on the gateway. The
device answers one photo after the other over a connection that is up. Bytes are what the network interfaces
counted, in both directions, over all photos."""

from __future__ import annotations

import json
import statistics
import time
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from offramp.bench.labels import labels_of
from offramp.bench.timing import environment
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import ConfigError, UnavailableError
from research.links.run import SETTLE_SECONDS, TIMEOUT, asking_device
from research.links.shaped_link import Shape, ShapedLink, require_namespaces, shaped_link
from research.program import run_program

PROGRAM = "python -m research.links.tiers"
EPILOG = """\
examples:
  python -m research.links.tiers --images FOLDER build/three-parts/two build/three-parts/three
  python -m research.links.tiers --images FOLDER DIR@0.5,0 DIR@1,1 --radio 50/100 --wire 20000/20 --json

DIR@T[,T] has thresholds of its own, one for each exit (default: the bundle's). FOLDER has labels.csv or a
folder for each class. It needs root and iproute2.
"""
RADIO, WIRE = Shape(50e3, 0.1), Shape(20e6, 0.02)
_SERVER = "offramp.server.app"


@dataclass(frozen=True)
class Way:
    """A bundle and the thresholds of its exits."""

    directory: Path
    bundle: Bundle
    thresholds: tuple[float, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    return run_program(PROGRAM, _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    """Raises ConfigError without root or iproute2."""
    parser = Parser(
        PROGRAM,
        description="Measure latency and bytes of two and three parts over two shaped links.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundles", nargs="+", type=way_of, metavar="DIR[@T[,T]]")
    parser.add_argument("--images", type=Path, required=True, help="a folder of labelled photos")
    for name, shape in (("radio", RADIO), ("wire", WIRE)):
        usual = f"{shape.rate / 1e3:g}/{shape.round_trip * 1e3:g}"
        parser.add_argument(
            f"--{name}",
            type=Shape.of,
            default=shape,
            metavar="KBIT/MS",
            help=f"kbit/s and milliseconds there and back (default: {usual})",
        )
    parser.add_argument("--most", type=int, metavar="N", help="photos (default: all)")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.most is not None and arguments.most < 2:
        raise ConfigError(f"--most {arguments.most}: expected 2 or more")
    require_namespaces(PROGRAM)
    rows = []
    for way in tqdm(arguments.bundles, unit="bundle", disable=None, leave=False):
        labels = labels_of(arguments.images, way.bundle.manifest.classes)
        truth = {str(arguments.images / name): label for name, label in labels.items()}
        chosen = dict(list(truth.items())[:: max(1, len(truth) // (arguments.most or len(truth)))])
        rows.append(measure(way, chosen, arguments.radio, arguments.wire))
    result = {
        "environment": environment(["grpcio", "onnxruntime"], -1),
        "links": {"radio": str(arguments.radio), "wire": str(arguments.wire)},
        "rows": rows,
    }
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(lines(result)))
    return 0


def way_of(text: str) -> Way:
    """A bundle of two or three parts, and its thresholds, of DIR[@T[,T]]. Raises ConfigError, BundleError."""
    name, _, given = text.partition("@")
    bundle = load_bundle(Path(name))
    exits = [1.0 if part.exit is None else part.exit.threshold for part in bundle.manifest.parts[:-1]]
    if len(exits) not in (1, 2):
        raise ConfigError(f"{name}: has {len(exits) + 1} parts, expected two or three")
    try:
        thresholds = tuple(float(each) for each in given.split(",")) if given else tuple(exits)
    except ValueError:
        thresholds = ()
    if len(thresholds) != len(exits) or not all(0 <= each <= 1 for each in thresholds):
        raise ConfigError(f"{text}: expected {len(exits)} thresholds, 0 … 1, such as {name}@0.5")
    return Way(Path(name), bundle, thresholds)


@contextmanager
def reached(way: Way, radio: ShapedLink, wire: ShapedLink) -> Iterator[str]:
    """The programs behind the device; yields the address at which it reaches the next one."""
    bundle = ("--bundle", way.directory)
    if len(way.thresholds) == 1:
        with wire.server(_SERVER, *bundle) as address, radio.way_to(address) as near:
            yield near
        return
    with wire.server(_SERVER, *bundle, "--part", "last", "--insecure") as address:
        flags = ("--insecure", "--part", 2, "--exit-threshold", way.thresholds[1])
        upstream = ("--upstream", address, "--upstream-insecure", "--upstream-timeout", TIMEOUT)
        with radio.server(_SERVER, *bundle, *flags, *upstream) as near:
            yield near


def measure(way: Way, truth: dict[str, str], radio: Shape, wire: Shape) -> dict[str, Any]:
    """One bundle over both links. Raises UnavailableError where a photo has no answer of its part."""
    paths = [*map(Path, truth)]
    with (
        shaped_link(radio) as first,
        shaped_link(wire, after=first) as second,
        reached(way, first, second) as address,
        asking_device(
            first, "--bundle", way.directory, "--server", address, "--threshold", way.thresholds[0]
        ) as ask,
    ):
        ask(paths[0])  # connects, and allocates
        time.sleep(radio.round_trip + wire.round_trip + SETTLE_SECONDS)
        before = first.interface_bytes(), second.interface_bytes()
        answers = [ask(path) for path in paths]
        time.sleep(radio.round_trip + wire.round_trip + SETTLE_SECONDS)
        after = first.interface_bytes(), second.interface_bytes()
    for path, answer in zip(paths, answers, strict=True):
        if answer["source"] == "fallback" or answer.get("cut_short"):
            raise UnavailableError(f"{way.directory}: {path} was not answered: {answer['reason']}")
    by = [answer.get("part", 1 + (answer["source"] == "server")) for answer in answers]
    parts = Counter(by)
    right = sum(answer["label"] == truth[str(path)] for path, answer in zip(paths, answers, strict=True))
    latencies = [answer["latency_seconds"] * 1e3 for answer in answers]
    sent = [ms for ms, part in zip(latencies, by, strict=True) if part > 1]
    crossed = [sum(b) - sum(a) for a, b in zip(before, after, strict=True)]
    count = len(way.bundle.manifest.parts)
    return {
        "bundle": str(way.directory),
        "thresholds": list(way.thresholds),
        "photos": len(paths),
        "accuracy": right / len(paths),
        "by_part": {str(part): parts[part] for part in range(1, count + 1)},
        "payload_bytes_mean": statistics.fmean(answer["payload_bytes"] for answer in answers),
        "radio_bytes_mean": crossed[0] / len(paths),
        "wire_bytes_mean": crossed[1] / len(paths),
        "latency_ms_mean": statistics.fmean(latencies),
        "latency_ms_median_sent": statistics.median(sent) if sent else None,
        "latency_ms_most": max(latencies),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The figures as a Markdown table."""
    surroundings, links = result["environment"], result["links"]
    yield f"{surroundings['cpu']}, {surroundings['cores']} cores"
    yield f"radio: {links['radio']}; wire: {links['wire']}"
    yield ""
    yield (
        "| bundle | T_c | right | answered by | payload, B | on the radio, B | on the wire, B | mean, ms | "
        "a sent photo, median ms |"
    )
    yield "|---|---|---:" + "|---:" * 6 + "|"
    for row in result["rows"]:
        shares = " / ".join(f"{count / row['photos']:.1%}" for count in row["by_part"].values())
        median = row["latency_ms_median_sent"]
        yield (
            f"| {Path(row['bundle']).name} | {' '.join(f'{each:g}' for each in row['thresholds'])} | "
            f"{row['accuracy']:.2%} | {shares} | {row['payload_bytes_mean']:.1f} | "
            f"{row['radio_bytes_mean']:.1f} | {row['wire_bytes_mean']:.1f} | {row['latency_ms_mean']:.1f} | "
            f"{'' if median is None else f'{median:.0f}'} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
