"""``offramp bench link``: latency and bytes of an image over narrow links, beside the ways without Offramp.

Real ``edge-device`` and ``cloud-server`` processes in network namespaces of their own. The rivals send over
the same link in the same frames, and are answered by the same service: pictures by the bundle's head and
tail, one after the other on the server, which is the whole model. One image at a time, over a connection
that is up.

Where an image goes is known beforehand, so a part of those that are sent, and of those that are not, is run;
means over all images weigh the two by their shares. Accuracy is over all images; every answer of a run is
held against the graphs'.
"""

from __future__ import annotations

import json
import math
import select
import statistics
import subprocess
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from offramp.bench.baselines import head_answers, whole_answers
from offramp.bench.plots import Plot, Series, publish
from offramp.bench.timing import environment
from offramp.cli.demo import read_labels
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import ConfigError, UnavailableError
from offramp.common.inputs.pictures import to_input
from offramp.common.part.engine import Engine
from offramp.common.wire.transport import set_grpc_environment
from research.links.picture_server import PictureCodec
from research.links.rival_device import encode_picture, open_picture
from research.links.shaped_link import Shape, ShapedLink, require_namespaces, shaped_link

EPILOG = """\
examples:
  offramp bench link
  offramp bench link --json --out build/bench-link
  offramp bench link --bundle DIR --images DIR --thresholds 0.7 0.9 1

DIR of the images has pictures and labels.csv (columns file,label). It needs root and iproute2. JPEG and WebP
are written at the lowest quality at which the whole model is as accurate as on the pictures themselves.

payload: what a frame carries. interface: what the device's network interface counted, both directions:
Ethernet, IP, TCP, HTTP/2 and gRPC in it. Both are means over all images.
"""
LINKS = (Shape(50e3, 0.3), Shape(1e6, 0.06), Shape(20e6, 0.015))
QUALITIES = (5, 10, 20, 30, 50, 75, 90)
TIMEOUT = 120.0
"""Seconds that a device waits for the server: a slow link is to be measured, not given up."""
SETTLE_SECONDS = 0.2
"""How long the last acknowledgement may take, beyond a round trip."""
KEPT = 100
"""Images that exit early: how many of them are run."""
EARLY_EXIT, WHOLE_HERE = "early exit alone", "whole model on the device"


@dataclass
class Way:
    """One way to have images classified, and what the graphs say it answers."""

    name: str
    kind: str
    """``offramp``, ``device`` (nothing is sent) or ``rival``."""
    sent: NDArray[np.bool_]
    """Which images go to the server, [N]."""
    best: NDArray[np.int64]
    """The class that each gets, [N]."""
    flags: list[str] = field(default_factory=list)
    pictures: bool = False
    """Whether the server takes pictures."""


def main(argv: Sequence[str]) -> int:
    """Run it; returns its exit status. Raises ConfigError without root or iproute2."""
    parser = Parser(
        "offramp bench link",
        description="Measure latency and bytes over shaped links.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=Path("models/digits-mobilenetv2-exit12"))
    parser.add_argument("--images", type=Path, default=Path("examples/digits"))
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        metavar="T",
        help="T_c (default: the bundle's, its best, and 1)",
    )
    parser.add_argument(
        "--links",
        nargs="+",
        default=LINKS,
        type=_link,
        metavar="KBIT/MS",
        help="links: kbit/s and milliseconds there and back (default: 50/300 1000/60 20000/15)",
    )
    parser.add_argument(
        "--sent", type=int, default=30, metavar="N", help="images that each way sends over a link, at most"
    )
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write link.json and the plots there")
    arguments = parser.parse_args(argv)
    if arguments.sent < 1:
        raise ConfigError(f"--sent {arguments.sent}: expected 1 or more")
    for threshold in arguments.thresholds or ():
        if not 0 <= threshold <= 1:
            raise ConfigError(f"--thresholds {threshold:g}: expected 0 … 1")
    require_namespaces("offramp bench link")
    set_grpc_environment()
    bundle = load_bundle(arguments.bundle)
    labels = read_labels(arguments.images, bundle.manifest.classes)
    result = measure(
        arguments.bundle,
        [arguments.images / name for name in labels],
        [bundle.manifest.classes.index(label) for label in labels.values()],
        arguments.thresholds or thresholds_of(bundle),
        arguments.links,
        arguments.sent,
    )
    publish("link", result, plots, lines, out=arguments.out, as_json=arguments.json)
    return 0


def _link(text: str) -> Shape:
    rate, slash, delay = text.partition("/")
    try:
        shape = Shape(float(rate) * 1e3, float(delay) / 1e3)
    except ValueError:
        shape = Shape(0, 0)
    if not slash or not 1e3 <= shape.rate <= 1e10 or not 0 <= shape.round_trip <= 10:
        raise ConfigError(
            f"--links {text}: expected KBIT/MS, as 50/300, with 1 kbit/s … 10 Gbit/s and 0 … 10 s"
        )
    return shape


def thresholds_of(bundle: Bundle) -> list[float]:
    """T_c of the bundle, that of its best measured accuracy (the lowest such), and 1."""
    points = bundle.manifest.figures.thresholds
    best = max(points, key=lambda point: (point.accuracy, -point.threshold)).threshold if points else 0.9
    return sorted({bundle.manifest.threshold, best, 1.0})


def measure(
    directory: Path,
    paths: Sequence[Path],
    truth: Sequence[int],
    thresholds: Sequence[float],
    shapes: Sequence[Shape],
    most: int,
) -> dict[str, Any]:
    """All figures of one run; keys as ``--json`` prints them."""
    bundle = load_bundle(directory)
    ways = ways_of(bundle, paths, truth, thresholds)
    right = np.array(truth)
    rows = []
    bar = tqdm(total=len(shapes) * len(ways), unit="way", disable=None, leave=False)
    for shape in shapes:
        with shaped_link(shape) as link, _servers(link, directory) as (tails, wholes):
            for way in ways:
                server = wholes if way.pictures else tails
                row = run_way(bundle, directory, link, server, way, paths, most)
                rows.append(
                    {
                        "link": str(shape),
                        "kbit_per_second": shape.rate / 1e3,
                        "round_trip_ms": shape.round_trip * 1e3,
                        "way": way.name,
                        "kind": way.kind,
                        "accuracy": float((way.best == right).mean()),
                        **row,
                    }
                )
                bar.update()
    bar.close()
    return {
        "environment": environment(["grpcio", "onnxruntime", "pillow"], -1),
        "bundle": bundle.manifest.name,
        "images": len(paths),
        "rows": rows,
        "verdicts": verdicts(rows),
    }


def ways_of(
    bundle: Bundle, paths: Sequence[Path], truth: Sequence[int], thresholds: Sequence[float]
) -> list[Way]:
    """All ways, with what each sends and answers, by running the graphs here."""
    engine = Engine(bundle)
    preprocessing = bundle.manifest.preprocessing
    pictures = [open_picture(path) for path in paths]
    pixels = np.stack([to_input(picture, preprocessing) for picture in pictures])
    _, early = head_answers(engine, pixels)
    confidence, exits = early.max(axis=1), early.argmax(axis=1)
    answered = whole_answers(engine, pixels)
    whole, told = answered.best, answered.answers(early, bundle.manifest.sent_answer)
    right = np.array(truth)
    codec = PictureCodec(bundle)
    every, none = np.ones(len(paths), bool), np.zeros(len(paths), bool)
    ways = [
        Way(
            f"Offramp, T_c = {t:g}",
            "offramp",
            confidence <= t,
            np.where(confidence <= t, told, exits),
            [f"{t!r}"],
        )
        for t in thresholds
    ]
    ways.append(Way("raw INT8 activation", "rival", every, whole, ["--send", "raw"]))
    own = bundle.manifest.threshold
    for kind in ("JPEG", "WEBP"):
        for quality in QUALITIES:
            coded = [encode_picture(picture, kind, quality) for picture in pictures]
            pictured = whole_answers(engine, np.stack([codec.decode(0, data) for data in coded]))
            best = pictured.best
            # The last one is taken as it is.
            if (best == right).mean() >= (whole == right).mean():
                break
        name = "WebP" if kind == "WEBP" else kind
        flags = ["--send", kind, "--quality", str(quality)]
        ways.append(Way(f"{name} {quality}", "rival", every, best, flags, pictures=True))
    unsure = confidence <= own
    ways.append(
        Way(
            f"early exit + WebP {quality}, T_c = {own:g}",
            "rival",
            unsure,
            np.where(unsure, pictured.answers(early, bundle.manifest.sent_answer), exits),
            [*flags, "--threshold", repr(own)],
            pictures=True,
        )
    )
    ways.append(Way(EARLY_EXIT, "device", none, exits, ["0"]))
    ways.append(Way(WHOLE_HERE, "device", none, whole, ["--send", "nothing"]))
    return ways


@contextmanager
def _servers(link: ShapedLink, directory: Path) -> Iterator[tuple[str, str]]:
    """Where the device reaches a ``cloud-server`` and the rival's server."""
    with (
        link.server("offramp.server.app", "--bundle", directory) as tails,
        link.server("research.links.picture_server", "--bundle", directory) as wholes,
    ):
        yield tails, wholes


def sample(chosen: NDArray[np.bool_], most: int) -> list[int]:
    """At most so many of the chosen images, evenly spread."""
    found = np.flatnonzero(chosen)
    if len(found) <= most:
        return [int(index) for index in found]
    return [int(found[int(step)]) for step in np.linspace(0, len(found) - 1, most)]


def run_way(
    bundle: Bundle,
    directory: Path,
    link: ShapedLink,
    server: str,
    way: Way,
    paths: Sequence[Path],
    most: int,
) -> dict[str, Any]:
    """One way over one link. Raises UnavailableError where an image is not answered as the graphs say."""
    sent, kept = sample(way.sent, most), sample(~way.sent, KEPT)
    with _device(link, directory, server, way) as ask:
        for index in (sent or kept)[:1]:  # connects, and allocates
            ask(paths[index])
        answers = {index: ask(paths[index]) for index in kept}
        time.sleep(link.shape.round_trip + SETTLE_SECONDS)
        before = link.interface_bytes()
        answers |= {index: ask(paths[index]) for index in sent}
        time.sleep(link.shape.round_trip + SETTLE_SECONDS)
        after = link.interface_bytes()
    differ = 0
    for index, answer in answers.items():
        if answer["source"] == "fallback":
            raise UnavailableError(
                f"{way.name} over {link.shape}: {paths[index]} was not answered by the server"
            )
        if (answer["source"] == "server") != bool(way.sent[index]):
            raise UnavailableError(f"{way.name}: {paths[index]} was answered by {answer['source']}")
        differ += answer["label"] != bundle.manifest.classes[way.best[index]]
    share = float(way.sent.mean())
    latencies = [[answers[index]["latency_seconds"] * 1e3 for index in which] for which in (sent, kept)]
    payloads = [answers[index]["payload_bytes"] for index in sent]
    carried = sum(after) - sum(before)
    return {
        "offload_share": share,
        "runs_sent": len(sent),
        "runs_kept": len(kept),
        "answers_that_differ": differ,
        "latency_ms_mean": weigh(share, *map(mean, latencies)),
        "latency_ms_sent": quartiles(latencies[0]),
        "latency_ms_kept": quartiles(latencies[1]),
        "payload_bytes_mean": weigh(share, mean(payloads), 0.0),
        "interface_bytes_mean": weigh(share, carried / len(sent) if sent else 0.0, 0.0),
    }


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return statistics.fmean(values) if values else 0.0


def weigh(share: float, sent: float, kept: float) -> float:
    """The mean over all images of which a share is sent."""
    return share * sent + (1 - share) * kept


def quartiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median and p95; None of nothing."""
    if not values:
        return None
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95)}


@contextmanager
def _device(link: ShapedLink, directory: Path, server: str, way: Way) -> Iterator[Any]:
    """A device's process; yields what asks it for one image and waits for the answer."""
    common = ["--bundle", str(directory), "--server", server]
    if way.flags[0].startswith("--"):
        command = ["research.links.rival_device", *common, *way.flags]
    else:
        command = ["offramp.device.app", *common, "--insecure", "--json", "--threshold", *way.flags]
        command += ["--timeout", str(TIMEOUT), "--log-level", "error", "-"]
    with subprocess.Popen(
        [*link.device_prefix, sys.executable, "-m", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(path: Path) -> dict[str, Any]:
            stdin.write(f"{path.absolute()}\n")
            if not select.select([stdout], [], [], TIMEOUT + 30)[0]:
                raise UnavailableError(f"{command[0]} did not answer {path} within {TIMEOUT + 30:g} s")
            line = stdout.readline()
            if not line:
                raise UnavailableError(f"{command[0]} ended before it answered {path}")
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise UnavailableError(f"{command[0]}: {answer['error']}")
            return answer

        try:
            yield ask
            stdin.close()
            stdout.read()
        finally:
            process.terminate()


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each rival on each link beside the fastest Offramp that is at least as accurate; ratios rival/Offramp.

    A rival that is more accurate than every Offramp is set beside the most accurate one.
    """
    found = []
    for rival in rows:
        if rival["kind"] == "offramp":
            continue
        ours = [row for row in rows if row["link"] == rival["link"] and row["kind"] == "offramp"]
        equal = [row for row in ours if row["accuracy"] >= rival["accuracy"]]
        # Where none is as accurate, the most accurate.
        chosen = min(
            equal or ours,
            key=lambda row: (0 if equal else -row["accuracy"], row["latency_ms_mean"]),
        )
        found.append(
            {
                "link": rival["link"],
                "rival": rival["way"],
                "ours": chosen["way"],
                "as_accurate": bool(equal),
                "latency_ratio": rival["latency_ms_mean"] / chosen["latency_ms_mean"],
                "payload_ratio": _ratio(rival["payload_bytes_mean"], chosen["payload_bytes_mean"]),
                "interface_ratio": _ratio(rival["interface_bytes_mean"], chosen["interface_bytes_mean"]),
            }
        )
    return found


def _ratio(theirs: float, ours: float) -> float | None:
    return theirs / ours if ours else None


def plots(result: dict[str, Any]) -> dict[str, Plot]:
    """By file name."""
    rows = result["rows"]
    ways = list(dict.fromkeys(row["way"] for row in rows))
    links = list(dict.fromkeys(row["link"] for row in rows))

    def series(key: str) -> list[Series]:
        return [
            Series(
                way,
                links,
                [row[key] for link in links for row in rows if (row["way"], row["link"]) == (way, link)],
            )
            for way in ways
        ]

    nothing = {row["way"] for row in rows if row["kind"] == "device"}
    return {
        "link-latency": Plot(
            f"Mean latency of an image, {result['bundle']}",
            "link: rate, round-trip time",
            "ms",
            series("latency_ms_mean"),
            kind="bars",
            log_y=True,
        ),
        "link-bytes": Plot(
            f"Mean bytes of an image on the interface, {result['bundle']}",
            "link: rate, round-trip time",
            "bytes, both directions",
            [each for each in series("interface_bytes_mean") if each.name not in nothing],
            kind="bars",
            log_y=True,
        ),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report as it is printed."""
    around = result["environment"]
    yield f"{around['cpu']}, {around['cores']} cores, load {around['load_average'][0]}"
    yield f"{result['bundle']}, {result['images']} images; device and server are equally fast here"
    width = max(len(row["way"]) for row in result["rows"])
    for link in dict.fromkeys(row["link"] for row in result["rows"]):
        yield ""
        heads = f"{'accuracy':>9} {'sent':>7} {'mean ms':>9} {'p50 sent':>9} {'p95 sent':>9}"
        yield f"{link:<{width}} {heads} {'payload B':>10} {'interface B':>12}"
        for row in result["rows"]:
            if row["link"] != link:
                continue
            sent = row["latency_ms_sent"]
            shown = [f"{sent[q]:.1f}" if sent else "" for q in ("p50", "p95")]
            differ = f"  {row['answers_that_differ']} differ" if row["answers_that_differ"] else ""
            yield (
                f"{row['way']:<{width}} {row['accuracy']:>9.2%} {row['offload_share']:>7.1%} "
                f"{row['latency_ms_mean']:>9.2f} {shown[0]:>9} {shown[1]:>9} "
                f"{row['payload_bytes_mean']:>10.1f} {row['interface_bytes_mean']:>12.1f}{differ}"
            )
        yield "rival over the fastest Offramp that is as accurate: above 1 Offramp wins"
        for each in result["verdicts"]:
            if each["link"] == link:
                ratios = [each[f"{what}_ratio"] for what in ("latency", "payload", "interface")]
                latency, payload, interface = (
                    "-" if r is None or math.isinf(r) else f"{r:.2f}" for r in ratios
                )
                less = "" if each["as_accurate"] else ", which is less accurate"
                yield (
                    f"  {each['rival']:<{width}} latency {latency:>7}  payload {payload:>7}  "
                    f"interface {interface:>7}  ({each['ours']}{less})"
                )
