"""``offramp keygen``: a key pair to sign bundles with."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from offramp.common.arguments import Parser
from offramp.common.bundle.signature import generate_key

EPILOG = """\
examples:
  offramp keygen release                          # release.key, which stays secret, and release.pub
  openssl pkey -in release.key -noout -text       # they are ordinary PEM files

The private key is readable by this user only. It belongs where bundles are made, not where they run.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises OutputError."""
    parser = Parser(
        "offramp keygen",
        description="Make an Ed25519 key pair to sign bundles with.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", type=Path, help="where to write NAME.key and NAME.pub; neither may exist")
    name: Path = parser.parse_args(argv).name
    private, public = (name.with_name(name.name + suffix) for suffix in (".key", ".pub"))
    generate_key(private, public)
    print(f"{private} (secret), {public}")
    return 0
