"""``offramp follow``: keep a directory at what a tag names, and a command running with it."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from offramp.cli.fleet.targets import address
from offramp.cli.follow.channel import Channel, Folder
from offramp.cli.follow.child import BUNDLE
from offramp.cli.follow.follower import Follower, Terms
from offramp.cli.follow.metrics import FollowMetrics
from offramp.cli.follow.notify import Relay
from offramp.cli.registry.options import (
    REFERENCE,
    add_registry_flags,
    add_trusted_key,
    reference_of,
    seconds,
    trusted_keys,
)
from offramp.common.arguments import Parser, number
from offramp.common.errors import ConfigError
from offramp.common.logs import start_log
from offramp.common.metrics import serve_metrics
from offramp.common.wire.address import join_address

EPILOG = """\
examples:
  offramp follow oci://registry.example/shop/digits:stable --dir bundles --trusted-key release.pub \\
    --metrics 127.0.0.1:9102 -- edge-device --bundle {bundle} --metrics-port 9102 --audit 0.02 --watch photos
  offramp follow oci://registry.example/shop/digits:stable --dir bundles -- cloud-server --bundle bundles

With {bundle} in it the command is restarted for each new bundle, which is on probation at first. It is given
up, and the one before it run again, where the command ends by an error, and with --metrics where audits
agree less often than before, unsure images have no answer, or no server has this bundle; the last two are
tried again later, an hour at first. Without {bundle} the command is started once: a server loads what is in
the directory by itself. Without a command the directory is all.

With --trusted-key a bundle that was signed before the current one is not taken up: a registry may serve an
old one again. To go back, sign the old one again (offramp sign) and push it.

SIGTERM ends the command, then the follower; SIGHUP asks the registry now. An end of the command by 0 ends
both.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises OfframpError."""
    arguments, command = parse(argv)
    if command and BUNDLE not in command[0] and shutil.which(command[0]) is None:
        # A typing error is said now, not once a registry that is away has answered.
        raise ConfigError(f"{command[0]}: not found, expected a program")
    trusted = trusted_keys(arguments)
    log = start_log("follow", arguments.log_level)
    terms = Terms(
        command=command,
        metrics_url=None if arguments.metrics is None else address("--metrics", arguments.metrics).url,
        every=arguments.every,
        probation=arguments.probation,
        grace=arguments.grace,
        keep=arguments.keep,
        allow_older=arguments.allow_older,
    )
    if terms.allow_older and trusted is None:
        raise ConfigError("--allow-older: expected --trusted-key with it, without which bundles have no date")
    if terms.metrics_url is not None and not terms.switches:
        raise ConfigError(f"--metrics: expected a command with {BUNDLE} in it, which is judged by its page")
    metrics = FollowMetrics()
    page = serve_metrics(metrics.registry, arguments.metrics_host, arguments.metrics_port)
    with Folder(arguments.dir, trusted) as folder, page as port:
        if port is not None:
            log.info("metrics on %s", join_address(arguments.metrics_host, port))
        return asyncio.run(_follow(terms, folder, Channel(arguments, folder, trusted), metrics))


async def _follow(terms: Terms, folder: Folder, channel: Channel, metrics: FollowMetrics) -> int:
    async with Relay() as relay:
        follower = Follower(terms, folder, channel, metrics, relay)
        loop = asyncio.get_running_loop()
        for number_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number_, follower.stop)
        loop.add_signal_handler(signal.SIGHUP, follower.poll)
        return await follower.run()


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the command behind ``--``. Raises ConfigError."""
    parser = Parser(
        "offramp follow",
        description="Keep a directory at the bundle that a tag names, and run a command with it.",
        usage="offramp follow REFERENCE --dir DIR [flags] [-- COMMAND …]",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("reference", type=reference_of, help=REFERENCE)
    parser.add_argument(
        "--dir", type=Path, required=True, metavar="DIR", help="bundles, and what is remembered"
    )
    add_trusted_key(parser)
    parser.add_argument(
        "--allow-older",
        action="store_true",
        help="with --trusted-key: take up a bundle too that was signed before the current one",
    )
    parser.add_argument(
        "--every",
        type=seconds,
        default=300.0,
        metavar="SECONDS",
        help="how often the registry is asked, give or take a fifth (default: 300)",
    )
    parser.add_argument(
        "--probation",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long a new bundle has to do well (default: 600)",
    )
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="the command's metrics page, to judge a new bundle by"
    )
    parser.add_argument(
        "--grace",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long the command may take to end before it is killed (default: 30)",
    )
    parser.add_argument(
        "--keep",
        type=number(int, 1, 16, "a whole number, 1 … 16"),
        default=2,
        metavar="N",
        help="bundles that stay in the directory, with the current one (default: 2)",
    )
    add_registry_flags(parser)
    parser.add_argument(
        "--metrics-host", default="127.0.0.1", metavar="HOST", help="address of the follower's own metrics"
    )
    parser.add_argument(
        "--metrics-port",
        type=number(int, 0, 65_535, "0 … 65535"),
        metavar="PORT",
        help="serve the follower's own metrics on this port",
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what is logged"
    )
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:at]), words[at + 1 :]
