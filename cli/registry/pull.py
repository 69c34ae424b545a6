"""``offramp pull``: a bundle from a registry."""

from __future__ import annotations

import asyncio
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from offramp.cli.registry.options import (
    REFERENCE,
    add_registry_flags,
    add_trusted_key,
    open_store,
    reference_of,
    trusted_keys,
    within,
)
from offramp.cli.registry.transfer import pull, read_artifact
from offramp.common.arguments import Parser
from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError

EPILOG = """\
examples:
  offramp pull oci://registry.example/shop/digits:stable --out digits --trusted-key release.pub
  offramp pull oci://registry.example/shop/digits@sha256:… --out digits
  offramp pull oci-layout:release:stable --out digits

The directory is new, and appears once the bundle is whole and verified: the digests of its files, its graphs
and, with --trusted-key, its signature. To keep a directory at what a tag names, see `offramp follow`.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises OfframpError."""
    parser = Parser(
        "offramp pull",
        description="Pull a bundle from an OCI registry, or from a directory in the OCI image layout.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("reference", type=reference_of, help=f"{REFERENCE}; or @sha256:… for :TAG")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's new directory")
    add_trusted_key(parser)
    add_registry_flags(parser)
    arguments = parser.parse_args(argv)
    place: Path = arguments.out
    if place.is_symlink() or place.exists():
        raise ConfigError(f"--out {place}: is there already, expected a new directory")
    if not place.parent.is_dir():
        raise ConfigError(f"--out {place}: {place.parent} is not a directory, expected one")
    trusted = trusted_keys(arguments)

    async def run() -> tuple[str, Bundle]:
        async with open_store(arguments) as store:
            artifact = await read_artifact(store)
            assert artifact is not None
            return artifact.digest, await pull(artifact, store, place, trusted)

    digest, bundle = asyncio.run(within(arguments.timeout, arguments.reference.text, run))
    print(f"{place}: {bundle.manifest.name} ({bundle.digest.hex()}) of {digest}")
    return 0
