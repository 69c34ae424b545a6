"""Ed25519 signatures of bundles: who says that this bundle is theirs.

A bundle's manifest names its files by SHA-256, so a signature of ``manifest.json`` covers the whole bundle.
Signatures lie beside it in ``manifest.sig``, one a line: ``ed25519 KEY SIGNATURE DATE``, key and signature in
base64, the date in seconds since 1970. They are not part of the manifest: signing changes neither its bytes
nor the digest that names the bundle on the wire.

What is signed is DATED, the date's digits, a zero byte, and then the manifest's bytes, so that no signature
made for something else fits. A line without a date, as before, signs CONTEXT and the manifest's bytes.
Keys are PEM files (PKCS #8, SubjectPublicKeyInfo) as ``openssl genpkey -algorithm ed25519`` writes them.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.common.errors import BundleError, ConfigError, OutputError
from offramp.common.files import read_bounded

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
SIGNATURE_BYTES = 16_384
CONTEXT = b"offramp bundle manifest 1\0"
DATED = b"offramp bundle manifest 2\0"
UNDATED = 0
"""The date of a signature that has none: it is older than all that have one."""
KEY_FILE_BYTES = 16_384
_KIND, _KEY_BYTES, _SIGNATURE_BYTES = "ed25519", 32, 64
_DATE = re.compile(r"[1-9][0-9]{0,11}")
"""As it is written, without zeros before it: one date is signed in one way."""


class TrustedKeys:
    """Public keys, of which one must have signed a bundle.

    paths: PEM files, a key each; flag: what named them. Raises ConfigError for what is not an
    Ed25519 key.
    """

    def __init__(self, paths: Sequence[Path | str], flag: str = "--trusted-key") -> None:
        self._keys: dict[bytes, Ed25519PublicKey] = {}
        for path in paths:
            key = _public_key(flag, path)
            self._keys[key.public_bytes_raw()] = key

    def check(self, manifest: bytes, signatures: bytes) -> int:
        """When one of these keys signed these bytes of a manifest: seconds since 1970, or UNDATED.

        signatures: the bytes of ``manifest.sig``. Those of other keys prove nothing, and are passed over; of
        several that do, the latest is the one. Raises BundleError where there is none.
        """
        from cryptography.exceptions import InvalidSignature

        known, good = 0, []
        for public, signature, date in parse_signatures(signatures):
            key = self._keys.get(public)
            if key is None:
                continue
            known += 1
            try:
                key.verify(signature, _signed(manifest, date))
            except InvalidSignature:
                continue
            good.append(date)
        if good:
            return max(good)
        if known:
            raise BundleError(f"{SIGNATURE}: the signature is not one of this manifest")
        raise BundleError(f"{SIGNATURE}: no trusted key has signed this bundle, expected one that has")


def _signed(manifest: bytes, date: int) -> bytes:
    """What a signature of this date signs."""
    return CONTEXT + manifest if date == UNDATED else DATED + b"%d\0" % date + manifest


def parse_signatures(data: bytes) -> list[tuple[bytes, bytes, int]]:
    """Public key, signature and date (or UNDATED) of each line of ``manifest.sig``. Raises BundleError."""
    found = []
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise BundleError(f"{SIGNATURE}: is not ASCII text, expected a signature a line") from None
    for number, line in enumerate(lines, 1):
        try:
            kind, *rest = line.split(" ")
            key, signature = (base64.b64decode(part, validate=True) for part in rest[:2])
            if (kind, len(key), len(signature)) != (_KIND, _KEY_BYTES, _SIGNATURE_BYTES):
                raise ValueError
            if rest[2:] and not (len(rest) == 3 and _DATE.fullmatch(rest[2])):
                raise ValueError
        except (ValueError, binascii.Error):
            raise BundleError(
                f"{SIGNATURE}: line {number} is not a signature, expected: {_KIND} KEY SIGNATURE DATE"
            ) from None
        found.append((key, signature, int(rest[2]) if rest[2:] else UNDATED))
    return found


def sign(manifest: bytes, key: Path | str, date: int) -> str:
    """The line of ``manifest.sig`` for these bytes of a manifest.

    key: PEM file. date: seconds since 1970, or UNDATED. Raises ConfigError.
    """
    private = _private_key("--key", key)
    parts = (private.public_key().public_bytes_raw(), private.sign(_signed(manifest, date)))
    dated = [] if date == UNDATED else [str(date)]
    return " ".join([_KIND, *(base64.b64encode(part).decode() for part in parts), *dated])


def date_text(date: int) -> str:
    """A signature's date for people."""
    if date == UNDATED:
        return "an unknown time"
    try:
        return datetime.fromtimestamp(date, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"second {date}"


def add_signature(existing: bytes, line: str) -> bytes:
    """``manifest.sig`` with this line in it, instead of one by the same key. Raises BundleError."""
    key = parse_signatures(line.encode())[0][0]
    parsed = parse_signatures(existing)
    lines = existing.decode().splitlines()
    others = [each for each, (other, *_) in zip(lines, parsed, strict=True) if other != key]
    return ("\n".join([*others, line]) + "\n").encode()


def generate_key(private: Path, public: Path) -> None:
    """Write a new key pair, the private one readable by this user only. Raises OutputError.

    Neither file may be there yet: a key that is overwritten is lost.
    """
    serialization = _load_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem, raw = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, raw)
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for path, data, mode in ((private, secret, 0o600), (public, shown, 0o644)):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}, expected a place for a new file") from None


def _load_cryptography() -> Any:
    """The package's part that reads and writes keys, imported only where signatures are used."""
    try:
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError:
        raise ConfigError("signatures need the package 'cryptography': pip install 'offramp[sign]'") from None
    return serialization


def _public_key(flag: str, path: Path | str) -> Ed25519PublicKey:
    serialization = _load_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(_read(flag, path))
    except Exception:  # ValueError and its own kinds; what they say may quote the file
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{flag} {path}: expected an Ed25519 public key, PEM")
    return key


def _private_key(flag: str, path: Path | str) -> Ed25519PrivateKey:
    serialization = _load_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _read(flag, path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except Exception:  # as above
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{flag} {path}: expected an Ed25519 private key, PEM, without a password")
    return key


def _read(flag: str, path: Path | str) -> bytes:
    return read_bounded(path, KEY_FILE_BYTES, name=f"{flag} {path}", expected="a file")
