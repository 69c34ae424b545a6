"""What push, pull and follow have in common: flags, and the store that they name."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from offramp.cli.registry.auth import docker_config, read_login
from offramp.cli.registry.layout import Layout
from offramp.cli.registry.reference import Reference, parse_reference
from offramp.cli.registry.remote import Remote, base_url, make_client
from offramp.cli.registry.store import Store
from offramp.common.arguments import Parser, number
from offramp.common.bundle.signature import TrustedKeys
from offramp.common.errors import ConfigError, UnavailableError

T = TypeVar("T")
seconds = number(float, 0.1, 86_400 * 7, "seconds, 0.1 … 604800")
REFERENCE = "oci://HOST[:PORT]/REPOSITORY:TAG, or oci-layout:DIRECTORY:TAG"


def add_registry_flags(parser: Parser) -> None:
    """The flags of a registry."""
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with a bearer token for the registry, or with --user-file that user's password or token "
        "(default: docker's config.json)",
    )
    parser.add_argument("--user-file", metavar="FILE", help="file with a user name for the registry")
    parser.add_argument("--ca", metavar="FILE", help="trust the authorities in this PEM file only")
    parser.add_argument(
        "--insecure", action="store_true", help="plaintext to a registry that is not on this machine"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long the whole transfer may take (default: 600)",
    )


def add_trusted_key(parser: Parser) -> None:
    """``--trusted-key``."""
    parser.add_argument(
        "--trusted-key",
        action="append",
        metavar="FILE",
        help="Ed25519 public key, PEM; only a bundle that it has signed is taken; may be given again",
    )


def trusted_keys(arguments: argparse.Namespace) -> TrustedKeys | None:
    """The keys of ``--trusted-key``. Raises ConfigError."""
    return TrustedKeys(arguments.trusted_key) if arguments.trusted_key else None


def reference_of(text: str) -> Reference:
    """An argparse type: a reference."""
    try:
        return parse_reference(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@asynccontextmanager
async def open_store(arguments: argparse.Namespace, *, write: bool = False) -> AsyncIterator[Store]:
    """The store that ``arguments.reference`` names. Raises ConfigError."""
    reference: Reference = arguments.reference
    if reference.directory is not None:
        yield Layout(reference)
        return
    login = read_login(reference.host, arguments.token_file, arguments.user_file, docker_config())
    base = base_url(reference, arguments.ca, arguments.insecure)
    async with make_client(reference, arguments.ca, arguments.insecure) as client:
        yield Remote(reference, client, base, login, write=write)


async def within(timeout: float, what: str, call: Callable[[], Awaitable[T]]) -> T:
    """What a call returns. Raises UnavailableError where it takes longer."""
    try:
        async with asyncio.timeout(timeout):
            return await call()
    except TimeoutError:
        raise UnavailableError(f"{what}: is not done after {timeout:g} s (--timeout)") from None
