"""Whether N machines answer as one process does, input by input: real programs on loopback.

    python runs/chain_processes.py BUNDLE PHOTOS [--json]

BUNDLE has three parts or more; PHOTOS is what ``edge-device`` takes. For each set of thresholds (its own,
0.9 at all exits, and none that is sure) and for one frame at a time as well as many, each photo's class and
the part that answered are compared with ``common.part.chain.run_chain``. Exit status 1 where one differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from offramp.bench.labels import open_picture
from offramp.bench.processes import running_server
from offramp.common.bundle.load import load_bundle
from offramp.common.inputs.pictures import to_input
from offramp.common.part.chain import run_chain
from offramp.common.part.engine import Engine

WINDOWS = (1, 64)


def over_processes(
    bundle: Path, photos: Path, thresholds: tuple[float, ...], window: int
) -> dict[str, tuple[str, int]]:
    """Class and part of each photo, by its path: a program for each part, the last one started first."""
    count = len(thresholds) + 1
    with ExitStack() as stack:
        program = stack.enter_context(running_server(bundle, "--insecure", "--part", "last"))
        for part in range(count - 1, 1, -1):
            flags = ("--insecure", "--part", part, "--exit-threshold", thresholds[part - 1])
            upstream = ("--upstream", program.address, "--upstream-insecure")
            program = stack.enter_context(running_server(bundle, *flags, *upstream))
        command = [
            *(sys.executable, "-m", "offramp.device.app", "--bundle", bundle, "--server", program.address),
            *("--insecure", "--json", "--timeout", 30, "--threshold", thresholds[0], "--window", window),
            photos,
        ]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()][:-1]
    return {each["image"]: (each["label"], each["part"]) for each in records}


def main() -> int:
    """Compare; a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    engine, manifest = Engine(bundle), bundle.manifest
    own = tuple(1.0 if part.exit is None else part.exit.threshold for part in manifest.parts[:-1])
    failed = False
    for thresholds in (own, (0.9,) * len(own), (1.0,) * len(own)):
        for window in WINDOWS:
            found = over_processes(arguments.bundle, arguments.photos, thresholds, window)
            paths = sorted(found)
            pixels = np.stack([to_input(open_picture(Path(path)), manifest.preprocessing) for path in paths])
            answered = run_chain(engine, pixels, thresholds)
            wanted = [
                (manifest.classes[best], int(part))
                for best, part in zip(answered.best, answered.part, strict=True)
            ]
            differ = sum(found[path] != each for path, each in zip(paths, wanted, strict=True))
            failed |= bool(differ) or not paths
            parts = Counter(part for _, part in found.values())
            line = {
                "thresholds": list(thresholds),
                "window": window,
                "photos": len(paths),
                "by_part": {str(part): parts[part] for part in sorted(parts)},
                "differ": differ,
            }
            print(
                json.dumps(line) if arguments.json else "  ".join(f"{k} {v}" for k, v in line.items()),
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
