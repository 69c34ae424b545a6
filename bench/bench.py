"""``offramp bench``: what the benchmarks are; each is a module with ``main(argv) -> int``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from offramp.common.arguments import Parser

BENCHMARKS = {
    "device": ("offramp.bench.device", "bytes and time that the device adds to head and tail"),
    "extras": ("offramp.bench.extras", "what audits, samples and the live page take of a device"),
    "soak": ("offramp.bench.soak", "memory, descriptors and answers over a long, unquiet run"),
    "serve": ("offramp.bench.serve", "throughput, latency and overload of a server"),
    "codec": ("offramp.bench.codec", "bytes and speed of all coders and their peers"),
}


def main(argv: Sequence[str]) -> int:
    """Run one benchmark; returns its exit status."""
    parser = Parser("offramp bench", description="Measure, and say on what.")
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True, dest="benchmark")
    for name, (_, text) in BENCHMARKS.items():
        benchmarks.add_parser(name, help=text, add_help=False)
    module, _ = BENCHMARKS[parser.parse_known_args(list(argv[:1]))[0].benchmark]
    return int(importlib.import_module(module).main(list(argv[1:])))
