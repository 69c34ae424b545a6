"""``offramp push``: a bundle to a registry."""

from __future__ import annotations

import asyncio
import re
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
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
from offramp.cli.registry.transfer import Pushed, push
from offramp.common.arguments import Parser
from offramp.common.bundle.load import load_bundle

EPILOG = """\
examples:
  offramp push models/my-digits oci://registry.example/shop/digits:stable --token-file token
  offramp push models/my-digits oci://127.0.0.1:5000/digits:1.2.0 --version 1.2.0
  offramp push models/my-digits oci-layout:release:stable

The bundle is verified, then pushed as an OCI artifact: one layer a file, as `oras push` does, with
manifest.sig if there is one. Files that the registry has are not sent again, so a second tag costs one small
request.
"""
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def _version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        raise ArgumentTypeError(f"{text!r}, expected letters, digits, . _ + -, 64 of them at most")
    return text


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises OfframpError."""
    parser = Parser(
        "offramp push",
        description="Push a bundle to an OCI registry, or to a directory in the OCI image layout.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle's directory")
    parser.add_argument("reference", type=reference_of, help=REFERENCE)
    parser.add_argument(
        "--version", type=_version, metavar="V", help="what you call this release, as an annotation"
    )
    add_trusted_key(parser)
    add_registry_flags(parser)
    arguments = parser.parse_args(argv)
    arguments.reference.require_tag()
    bundle = load_bundle(arguments.bundle, trusted_keys(arguments))

    async def run() -> Pushed:
        async with open_store(arguments, write=True) as store:
            return await push(bundle, store, arguments.version)

    pushed = asyncio.run(within(arguments.timeout, arguments.reference.text, run))
    print(
        f"{arguments.reference.text}@{pushed.digest}: {bundle.manifest.name} ({bundle.digest.hex()}), "
        f"{pushed.uploaded} bytes uploaded"
    )
    return 0
