"""Whether N machines answer as one process does, input by input: real programs on loopback.

    python runs/chain_processes.py BUNDLE PHOTOS [--thresholds A,B …] [--json]

BUNDLE has three parts or more; PHOTOS is what ``edge-device`` takes. For each set of thresholds, and for one
frame at a time as well as 64 on the way, each photo's class and the part that answered are compared with
``common.part.chain.run_chain``. Without ``--thresholds`` these are the bundle's own; 0.5, 0.9 and 1 at all
exits (1: none is ever sure); and 1 at the first with 0.6 at the others. Exit status 1 where answers differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.bench.labels import open_picture
from offramp.bench.processes import running_server
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.inputs.pictures import to_input
from offramp.common.part.chain import run_chain
from offramp.common.part.engine import Engine

WINDOWS = (1, 64)
BATCH = 16
"""Photos that the one process answers at once: more take too much memory."""

Said = dict[str, tuple[str, int]]
"""Class and part of each photo, by its path."""


@contextmanager
def gateways(bundle: Path, server: str, thresholds: tuple[float, ...]) -> Iterator[str]:
    """A program for each part between the first and the last, in front of a server; the first's address."""
    with ExitStack() as stack:
        address = server
        for part in range(len(thresholds), 1, -1):
            flags = ("--insecure", "--part", part, "--exit-threshold", thresholds[part - 1])
            upstream = ("--upstream", address, "--upstream-insecure")
            address = stack.enter_context(running_server(bundle, *flags, *upstream)).address
        yield address


def by_device(bundle: Path, photos: Path, server: str, threshold: float, window: int) -> Said:
    """What ``edge-device`` prints, asking this server."""
    command = [
        *(sys.executable, "-m", "offramp.device.app", "--bundle", bundle, "--server", server, "--insecure"),
        *("--json", "--timeout", 30, "--threshold", threshold, "--window", window, photos),
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()][:-1]
    return {each["image"]: (each["label"], each["part"]) for each in records}


def in_one_process(
    engine: Engine, pixels: dict[str, NDArray[np.uint8]], thresholds: tuple[float, ...]
) -> Said:
    """What all parts say here."""
    paths, found = sorted(pixels), Said()
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        answered = run_chain(engine, np.stack([pixels[path] for path in some]), thresholds)
        for path, best, part in zip(some, answered.best, answered.part, strict=True):
            found[path] = engine.manifest.classes[best], int(part)
    return found


def sets_of(bundle: Bundle, asked: list[str] | None) -> list[tuple[float, ...]]:
    """The thresholds to try. Raises SystemExit for another number of them than the bundle has exits."""
    parts = bundle.manifest.parts[:-1]
    own = tuple(1.0 if part.exit is None else part.exit.threshold for part in parts)
    if asked is None:
        more = [(level,) * len(own) for level in (0.5, 0.9, 1.0)]
        return [own, *more, (1.0, *(0.6 for _ in own[1:]))]
    found = [tuple(float(each) for each in one.split(",")) for one in asked]
    for one in found:
        if len(one) != len(own):
            raise SystemExit(f"--thresholds {one}: expected {len(own)}, one for each exit")
    return found


def main() -> int:
    """Compare; a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument(
        "--thresholds", action="append", metavar="A,B", help="of the exits in order; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    engine = Engine(bundle)
    sets = sets_of(bundle, arguments.thresholds)
    pixels: dict[str, NDArray[np.uint8]] = {}
    runs = compared = wrong = 0
    with running_server(bundle.path, "--insecure", "--part", "last") as server:
        for thresholds in sets:
            with gateways(bundle.path, server.address, thresholds) as address:
                for window in WINDOWS:
                    found = by_device(bundle.path, arguments.photos, address, thresholds[0], window)
                    if not pixels:
                        pixels = {
                            path: to_input(open_picture(Path(path)), bundle.manifest.preprocessing)
                            for path in found
                        }
                    wanted = in_one_process(engine, pixels, thresholds)
                    differ = sum(found.get(path) != each for path, each in wanted.items())
                    runs, compared, wrong = runs + 1, compared + len(wanted), wrong + differ
                    parts = Counter(part for _, part in found.values())
                    line = {
                        "thresholds": list(thresholds),
                        "window": window,
                        "photos": len(found),
                        "by_part": {str(part): parts[part] for part in sorted(parts)},
                        "differ": differ,
                    }
                    shown = "  ".join(f"{key} {value}" for key, value in line.items())
                    print(json.dumps(line) if arguments.json else shown, flush=True)
    if not arguments.json:
        print(f"{runs} runs, {compared} answers compared, {wrong} differ")
    return int(bool(wrong) or not compared)


if __name__ == "__main__":
    raise SystemExit(main())
