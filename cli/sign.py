"""``offramp sign``: say that a bundle is yours."""

from __future__ import annotations

import hashlib
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from offramp.common.arguments import Parser
from offramp.common.bundle.document import MANIFEST_BYTES
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import MANIFEST
from offramp.common.bundle.signature import SIGNATURE, SIGNATURE_BYTES, add_signature, date_text, sign
from offramp.common.errors import BundleError, OutputError
from offramp.common.files import read_bounded, replace_file

EPILOG = """\
examples:
  offramp sign models/my-digits --key release.key
  edge-device --bundle models/my-digits --trusted-key release.pub photos/
  cloud-server --bundle models --trusted-key release.pub --trusted-key last-year.pub

The bundle is verified before it is signed. Its digest stays what it was; manifest.sig is new. Another key's
signature is kept beside it. The date of a signature is part of what is signed: whoever follows a tag does not
go back to a bundle whose signature is older. To go back to an old bundle, sign it again.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises BundleError, ConfigError or OutputError."""
    parser = Parser(
        "offramp sign",
        description="Sign a bundle, so that programs with --trusted-key load it.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle's directory")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key, PEM")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.bundle
    bundle = load_bundle(folder)
    path = folder / SIGNATURE
    manifest = read_bounded(folder / MANIFEST, MANIFEST_BYTES, error=BundleError)
    if hashlib.sha256(manifest).digest() != bundle.digest:
        raise BundleError(f"{folder}: changed while it was verified")
    date = int(time.time())
    line = sign(manifest, arguments.key, date)
    existing = read_bounded(path, SIGNATURE_BYTES, error=BundleError) if path.exists() else b""
    data = add_signature(existing, line)
    try:
        replace_file(path, data)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}, expected a place for it") from None
    print(f"{path}: signed {bundle.manifest.name} ({bundle.digest.hex()}) at {date_text(date)}")
    return 0
