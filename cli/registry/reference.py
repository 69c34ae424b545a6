"""Where a bundle is: ``oci://HOST[:PORT]/REPOSITORY:TAG`` in a registry, ``oci-layout:DIRECTORY:TAG`` here.

In place of ``:TAG`` a reference to read may have ``@sha256:…``, the digest of one manifest for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from offramp.common.errors import ConfigError, printable
from offramp.common.wire.address import split_address

REGISTRY, LAYOUT = "oci://", "oci-layout:"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# As the distribution specification has them.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
REPOSITORY = 255
"""Characters of a repository's name, at most."""


@dataclass(frozen=True)
class Reference:
    """A tag, or one manifest, of a repository in a registry or of a directory in the OCI image layout."""

    text: str
    """As it was given, fit for a message."""
    version: str
    """A tag, or ``sha256:…``."""
    host: str = ""
    """HOST or HOST:PORT of a registry."""
    repository: str = ""
    directory: Path | None = None
    """Of a layout on disk."""

    @property
    def is_digest(self) -> bool:
        """Whether it names one manifest, which no tag moves away from."""
        return DIGEST.fullmatch(self.version) is not None

    @property
    def hostname(self) -> str:
        """The registry's host without its port."""
        return split_address("", self.host)[0] if _has_port(self.host) else self.host.strip("[]")

    def require_tag(self) -> None:
        """Raises ConfigError for a digest, which nothing can be pushed to."""
        if self.is_digest:
            raise ConfigError(f"{self.text}: names a digest, expected a tag to push to")


def parse_reference(text: str) -> Reference:
    """Raises ConfigError, which repeats no password."""
    shown = printable(text, 400)
    if text.startswith(LAYOUT):
        where, version = _split(text.removeprefix(LAYOUT), shown)
        if not where or "\0" in where:
            raise ConfigError(f"{shown}: expected {LAYOUT}DIRECTORY:TAG")
        return Reference(shown, version, directory=Path(where))
    wanted = f"expected {REGISTRY}HOST[:PORT]/REPOSITORY:TAG or {LAYOUT}DIRECTORY:TAG"
    if not text.startswith(REGISTRY):
        raise ConfigError(f"{_without_login(shown)}: {wanted}")
    host, slash, rest = text.removeprefix(REGISTRY).partition("/")
    if "@" in host:
        raise ConfigError(
            f"{_without_login(shown)}: has a login in it, expected none: --user-file and --token-file"
        )
    if not slash or not host:
        raise ConfigError(f"{shown}: {wanted}")
    if _has_port(host):
        split_address(shown, host)
    elif not _HOST.fullmatch(host):
        raise ConfigError(f"{shown}: {wanted}")
    repository, version = _split(rest, shown)
    if len(repository) > REPOSITORY or not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f"{shown}: {printable(repository, 80)!r} is not a repository's name, expected lower case letters "
            "and digits, with . _ - between them and / between parts"
        )
    return Reference(shown, version, host, repository)


def _split(text: str, shown: str) -> tuple[str, str]:
    """What is before ``:TAG`` or ``@DIGEST``, and that."""
    before, at, digest = text.rpartition("@")
    if at and DIGEST.fullmatch(digest):
        return before, digest
    before, colon, tag = text.rpartition(":")
    if not colon or "/" in tag or not _TAG.fullmatch(tag):
        raise ConfigError(
            f"{shown}: has no tag, expected :TAG at its end (letters, digits, . _ -), or @sha256:…"
        )
    return before, tag


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2] or host.startswith("[")


def _without_login(shown: str) -> str:
    """A URL without what may be a password."""
    scheme, separator, rest = shown.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
