"""``offramp export-c``: the device's half of a bundle as a program in C for a microcontroller."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from offramp.cli.export_c.emit import write_files
from offramp.cli.export_c.program import Program, make_program
from offramp.common.arguments import Parser, byte_count
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import ConfigError
from offramp.common.part.engine import Engine

DESCRIPTION = """\
Write the device's half of a bundle as C11 without an operating system, a heap or a dependency: head, early
exit, threshold, coder and datagram, with weights in flash and one static block of memory that is planned
here. Without --out nothing is written but the report: flash, RAM and multiplications."""

EPILOG = """\
examples:
  offramp export-c models/digits-mobilenetv2-exit12
  offramp export-c models/digits-mobilenetv2-exit12 --ram 128k --out firmware && make -C firmware
  offramp export-c DIR --json | jq .ram_bytes
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; raises BundleError for a head that C cannot run, ConfigError for what does not fit."""
    parser = Parser(
        "offramp export-c",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", help="the bundle's directory")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write the program: new, or empty")
    parser.add_argument(
        "--ram", type=byte_count, metavar="BYTES", help="refuse what needs more memory; as 65536, 64k"
    )
    parser.add_argument(
        "--flash", type=byte_count, metavar="BYTES", help="refuse what needs more flash; as 1m, 512k"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON, with each layer's figures")
    arguments = parser.parse_args(argv)
    bundle = load_bundle(arguments.bundle)
    # A graph that does not run is refused as the programs refuse it.
    Engine(bundle).load_head()
    program = make_program(bundle)
    program.require(arguments.ram, arguments.flash)
    if arguments.out is not None:
        _write(arguments.out, write_files(program))
    print(json.dumps(program.report(), indent=1) if arguments.json else "\n".join(report(program)))
    return 0


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"--out {folder}: is not empty, expected a new or an empty directory")
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written: {error.strerror}") from None


def report(program: Program) -> list[str]:
    """What it costs, in lines, before anything is compiled."""
    found = program.report()
    layers = found["layers"]
    width = max(len(layer["name"]) for layer in layers)
    lines = [
        f"{found['bundle']}  (digest {found['digest'][:16]}…)",
        f"  RAM    {found['ram_bytes']:>11,} B  and a stack; {found['whole_tensors_bytes']:,} B keeping all",
        f"         {found['picture_bytes']:>11,} B  the picture, which is the caller's",
        f"  flash  {found['flash_bytes']:>11,} B  weights {found['weight_bytes']:,}, tables of the coder "
        f"{found['coder_bytes']:,}, code about {found['code_bytes_about']:,}",
        f"  MACs   {found['macs']:>11,}",
        "",
        f"  {'layer':<{width}}  {'kind':<14}  {'MACs':>11}  {'flash':>9}  {'rows':>4}  {'RAM':>8}",
    ]
    return lines + [
        f"  {layer['name']:<{width}}  {layer['kind']:<14}  {layer['macs']:>11,}  {layer['flash_bytes']:>9,}  "
        f"{layer['rows_kept'] or '':>4}  {layer['ram_bytes']:>8,}"
        for layer in layers
    ]
