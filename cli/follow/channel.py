"""What a tag names now, and the directory of bundles that it is pulled into."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from offramp.cli.follow.state import Held, folder_of
from offramp.cli.registry.artifact import Artifact
from offramp.cli.registry.options import open_store, within
from offramp.cli.registry.transfer import STAGING, pull, read_artifact, read_named
from offramp.common.bundle.document import MANIFEST_BYTES
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import MANIFEST
from offramp.common.bundle.signature import UNDATED, TrustedKeys
from offramp.common.errors import BundleError, ConfigError

log = logging.getLogger("offramp.follow")

T = TypeVar("T")
LOCK = "follow.lock"
_OURS = re.compile(r"[0-9a-f]{16}")


class Folder:
    """The directory, which one follower has for itself while the block runs.

    trusted: keys of which one must have signed each bundle; None: none has to be signed. Raises ConfigError.
    """

    def __init__(self, path: Path, trusted: TrustedKeys | None) -> None:
        self.path = path
        self._trusted = trusted
        try:
            path.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = os.open(path / LOCK, flags, 0o644)
        except OSError as error:
            raise ConfigError(f"--dir {path}: {error.strerror}, expected a directory") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(
                f"--dir {path}: another follower has it, expected a directory of its own"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let another follower have it."""
        os.close(self._lock)

    def place(self, bundle: str) -> Path:
        """Where the bundle of this digest lies, or is to lie."""
        return self.path / folder_of(bundle)

    def is_whole(self, held: Held) -> bool:
        """Whether it is on disk as it was pulled, and signed; what is damaged is removed."""
        place = self.place(held.bundle)
        try:
            if load_bundle(place, self._trusted).digest.hex() == held.bundle:
                return True
            reason = f"{place}: is another bundle"
        except BundleError as error:
            reason = str(error)
        if place.exists() or place.is_symlink():
            log.warning("%s; removed", reason)
            _remove(place)
        return False

    def clean(self, kept: Collection[Held]) -> None:
        """Remove the bundles that are not kept, and what was left of pulls that were cut off."""
        names = {each.folder for each in kept}
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.startswith(STAGING) or (
                    _OURS.fullmatch(entry.name) and entry.name not in names
                ):
                    _remove(Path(entry.path))


@dataclass(frozen=True)
class Older:
    """A bundle that was signed before the one that it would follow."""

    bundle: str
    """Its digest."""
    signed: int
    """Seconds since 1970, or UNDATED."""


class Channel:
    """A tag that is asked for now and then. arguments: with the flags of a registry."""

    def __init__(self, arguments: argparse.Namespace, folder: Folder, trusted: TrustedKeys | None) -> None:
        self._arguments = arguments
        self._folder = folder
        self._trusted = trusted

    async def look(self, known: str | None) -> Artifact | None:
        """What the tag names, or None where that is still ``known``. Raises OfframpError."""

        async def run() -> Artifact | None:
            async with open_store(self._arguments) as store:
                return await read_artifact(store, known)

        return await self._within(run)

    async def fetch(self, artifact: Artifact, oldest: int = UNDATED) -> Held | Older:
        """Have an artifact's bundle in the directory. Raises OfframpError.

        oldest: when it has to have been signed at least, seconds since 1970; one that is older is not pulled.
        """
        bundle = artifact.blob(MANIFEST, MANIFEST_BYTES).digest.removeprefix("sha256:")
        held = Held(artifact=artifact.digest, bundle=bundle)
        if self._trusted is None and self._folder.is_whole(held):
            return held

        async def run() -> Held | Older:
            async with open_store(self._arguments) as store:
                # Also of one that is on disk: it may have been signed again.
                named = await read_named(artifact, store, self._trusted)
                if named.date < oldest:
                    return Older(bundle, named.date)
                dated = held.model_copy(update={"signed": named.date})
                if not self._folder.is_whole(dated):
                    await pull(artifact, store, self._folder.place(bundle), self._trusted, named)
                return dated

        return await self._within(run)

    async def _within(self, run: Callable[[], Awaitable[T]]) -> T:
        return await within(self._arguments.timeout, self._arguments.reference.text, run)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
