"""``offramp top``: a running fleet in the terminal, from the metrics pages of its devices and servers."""

from __future__ import annotations

import asyncio
import math
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence

import httpx
from rich.console import Console
from rich.live import Live

from offramp.cli.fleet.fleet import AT_ONCE, Fleet, View
from offramp.cli.fleet.table import render
from offramp.common.arguments import Parser
from offramp.common.errors import ExitCode

FILE_WIDTH = 160
"""Characters of a line where there is no terminal."""

EPILOG = """\
examples:
  offramp top device-1:9102 device-2:9102 server:9101
  offramp top targets.json                 # Prometheus' file_sd format, read again when it changes
  offramp top --once --json 127.0.0.1:9101 | jq .servers

--once reads each page twice, one interval apart, prints, and exits. --json: one object for each interval.

exit status: 0 done, 1 a bug, 2 wrong flags or a wrong file, 3 with --once: a target did not answer as ours
do, 130 interrupted
"""


def seconds(text: str) -> float:
    """A flag's value."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.1 <= value <= 3600:
        raise ArgumentTypeError(f"{text!r}: expected seconds, 0.1 … 3600")
    return value


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = Parser(
        "offramp top",
        description="Watch a fleet by its metrics pages (--metrics-port of edge-device and cloud-server).",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets", nargs="+", help="HOST:PORT or URL of a metrics page, or a file_sd file (*.json)"
    )
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.add_argument("--json", action="store_true", help="one JSON object for each interval")
    parser.add_argument("--interval", type=seconds, default=2.0, help="seconds between readings (default: 2)")
    parser.add_argument(
        "--window", type=seconds, default=30.0, help="seconds that figures are of (default: 30)"
    )
    parser.add_argument("--timeout", type=seconds, default=2.0, help="seconds for one page (default: 2)")
    arguments = parser.parse_args(argv)
    fleet = Fleet(arguments.targets, arguments.window, arguments.timeout)
    return asyncio.run(_watch(fleet, arguments.interval, arguments.once, arguments.json))


async def _watch(fleet: Fleet, interval: float, once: bool, as_json: bool) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    headers = {"accept-encoding": "identity"}
    async with httpx.AsyncClient(trust_env=False, timeout=None, limits=limits, headers=headers) as client:
        await fleet.read(client)
        if once:
            await asyncio.sleep(interval)
            await fleet.read(client)
            view = fleet.view()
            _print(console, view, as_json)
            return ExitCode.UNAVAILABLE if view.failed else ExitCode.OK
        if as_json or not console.is_terminal:
            while True:
                _print(console, fleet.view(), as_json)
                await asyncio.sleep(interval)
                await fleet.read(client)
        with Live(render(fleet.view(), console), console=console, screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval)
                await fleet.read(client)
                live.update(render(fleet.view(), console), refresh=True)


def _print(console: Console, view: View, as_json: bool) -> None:
    if as_json:
        print(view.to_json(), flush=True)
    else:
        console.print(render(view, console))
