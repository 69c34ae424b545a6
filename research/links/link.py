"""``python -m research.links.link``: latency and bytes of an image over narrow links, beside other ways.

Real ``edge-device`` and ``cloud-server`` processes in network namespaces of their own. The rivals send over
the same link in the same frames, and are answered by the same service: pictures by the bundle's head and
tail, one after the other on the server, which is the whole model (``cloud-server
--pictures``). One image at a time, over a connection that is up.

Where an image goes is known beforehand, so a part of those that are sent, and of those that are not, is run;
means over all images weigh the two by their shares. Accuracy is over all images; every answer of a run is
held against the graphs'."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from offramp.bench.labels import labels_of
from offramp.bench.plots import publish
from offramp.bench.timing import environment
from offramp.common.arguments import Parser
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import ConfigError
from offramp.common.wire.transport import set_grpc_environment
from research.links.link_report import lines, plots, verdicts
from research.links.run import run_way
from research.links.shaped_link import Shape, require_namespaces, shaped_link
from research.links.ways import thresholds_of, ways_of
from research.program import run_program

PROGRAM = "python -m research.links.link"
EPILOG = """\
examples:
  python -m research.links.link
  python -m research.links.link --json --out build/bench-link
  python -m research.links.link --bundle DIR --images DIR --thresholds 0.7 0.9 1

DIR of the images has pictures and labels.csv (columns file,label). It needs root and iproute2. WebP is
written at the lowest quality at which the whole model is as accurate as on the pictures themselves.

payload: bytes in a frame. interface: what the device's network interface counted, both directions:
Ethernet, IP, TCP, HTTP/2 and gRPC in it. Both are means over all images.
"""
LINKS = (Shape(50e3, 0.3), Shape(1e6, 0.06), Shape(20e6, 0.015))
_SERVER = "offramp.server.app"


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns its exit status."""
    return run_program(PROGRAM, _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    """Raises ConfigError without root or iproute2."""
    parser = Parser(
        PROGRAM,
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
        type=Shape.of,
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
    require_namespaces(PROGRAM)
    set_grpc_environment()
    bundle = load_bundle(arguments.bundle)
    labels = labels_of(arguments.images, bundle.manifest.classes)
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
    # One server for all ways: as pictures, images are answered by the same bundle's whole model.
    serving = ("--bundle", directory, "--pictures", directory)
    rows = []
    bar = tqdm(total=len(shapes) * len(ways), unit="way", disable=None, leave=False)
    for shape in shapes:
        with shaped_link(shape) as link, link.server(_SERVER, *serving) as server:
            for way in ways:
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


if __name__ == "__main__":
    raise SystemExit(main())
