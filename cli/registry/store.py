"""What keeps artifacts: a registry (``remote.py``) or a directory (``layout.py``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from offramp.cli.registry.artifact import Blob


class Store(Protocol):
    """One repository, at one tag or digest. All raise PeerError, AccessError or UnavailableError."""

    async def manifest(self, known: str | None = None) -> bytes | None:
        """The artifact's manifest, at most ARTIFACT_BYTES; None where its digest is ``known``.

        Raises BundleError where there is none.
        """
        ...

    def blob(self, blob: Blob) -> AsyncIterator[bytes]:
        """The bytes of a blob, never more than its size. Their digest is the caller's to check."""
        ...

    async def upload(self, blob: Blob, data: bytes) -> bool:
        """Put a blob there; False if it was there before."""
        ...

    async def tag(self, manifest: bytes) -> None:
        """Put the manifest there, under the tag."""
        ...
