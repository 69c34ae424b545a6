"""What a follower remembers on disk: a bundle that takes the whole machine down is not tried for ever.

The file is read as a stranger's: bounded, strict, names that are digests. One that is damaged is set aside,
and the follower begins again with what the channel names.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.common.bundle.signature import UNDATED
from offramp.common.errors import ConfigError, OutputError
from offramp.common.files import read_bounded, sync_folder, write_new

log = logging.getLogger("offramp.follow")

STATE = "follow.json"
STATE_BYTES = 1 << 16
REFUSED = 64
"""Bundles that are remembered as refused; the oldest goes first."""
RETRY_FIRST, RETRY_MOST = 3600.0, 86_400.0
"""Seconds until a bundle is tried again that no server took: doubled each time up to the second."""

ArtifactDigest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
BundleDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Held(_Strict):
    """A bundle on disk."""

    artifact: ArtifactDigest
    """Of the artifact that it was pulled as."""
    bundle: BundleDigest
    signed: Annotated[int, Field(ge=0, le=10**12)] = UNDATED
    """When a trusted key signed it, seconds since 1970."""

    @property
    def folder(self) -> str:
        """The name of its directory."""
        return folder_of(self.bundle)


class Trial(_Strict):
    """A bundle in its probation."""

    held: Held
    starts: Annotated[int, Field(ge=0, le=1000)] = 0
    """Times that it was started and neither passed, nor was refused, nor was stopped in good order."""


class Refusal(_Strict):
    """A bundle that did not pass."""

    artifact: ArtifactDigest
    reason: Annotated[str, Field(max_length=300)]
    times: Annotated[int, Field(ge=1, le=1000)] = 1
    retry_at: Annotated[float, Field(ge=0, le=1e11)] | None = None
    """Seconds since 1970 when it is tried again; None: never."""


class State(_Strict):
    """All of it."""

    version: Literal[1] = 1
    held: Annotated[tuple[Held, ...], Field(max_length=16, strict=False)] = ()
    """The current bundle first, then those before it."""
    trial: Trial | None = None
    refused: Annotated[tuple[Refusal, ...], Field(max_length=REFUSED, strict=False)] = ()

    @property
    def current(self) -> Held | None:
        """The bundle that passed last."""
        return self.held[0] if self.held else None

    def taken(self, held: Held, keep: int) -> State:
        """With this one as the current bundle, and ``keep`` bundles at most."""
        others = tuple(each for each in self.held if each.bundle != held.bundle)
        return self.model_copy(update={"held": (held, *others)[:keep], "trial": None})

    def refuse(self, artifact: str, reason: str, *, again: bool, now: float) -> State:
        """With this artifact refused. again: whether it may be tried later."""
        before = self.refusal_of(artifact)
        times = 1 if before is None else min(before.times + 1, 1000)
        pause = min(RETRY_FIRST * 2.0 ** min(times - 1, 10), RETRY_MOST)
        refusal = Refusal(
            artifact=artifact, reason=reason[:300], times=times, retry_at=now + pause if again else None
        )
        others = [each for each in self.refused if each.artifact != artifact]
        return self.model_copy(update={"trial": None, "refused": (*others, refusal)[-REFUSED:]})

    def refusal_of(self, artifact: str) -> Refusal | None:
        """What was said of this artifact."""
        return next((each for each in self.refused if each.artifact == artifact), None)

    def may_try(self, artifact: str, now: float) -> bool:
        """Whether a bundle may be tried. A clock that was set back puts it off for a day at most."""
        refusal = self.refusal_of(artifact)
        if refusal is None:
            return True
        at = refusal.retry_at
        return at is not None and not now < at <= now + RETRY_MOST


def folder_of(bundle: str) -> str:
    """The directory's name of a bundle with this digest."""
    return bundle[:16]


def read_state(folder: Path) -> State:
    """What is remembered in this directory; nothing where there is no file, or no usable one."""
    path = folder / STATE
    if not path.is_symlink() and not path.exists():
        return State()
    try:
        return State.model_validate_json(read_bounded(path, STATE_BYTES, follow=False))
    except (ConfigError, ValidationError) as error:
        reason = str(error) if isinstance(error, ConfigError) else f"{path}: is not a follower's state"
        log.warning("%s; it is set aside, and what was refused is forgotten", reason)
    try:
        os.replace(path, path.with_name(f"{STATE}.bad"))
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}, expected a place for a file") from None
    return State()


def write_state(folder: Path, state: State) -> None:
    """Remember it, also through a power cut. Raises OutputError."""
    path = folder / STATE
    temporary = path.with_name(f"{STATE}.new")
    try:
        temporary.unlink(missing_ok=True)
        write_new(temporary, state.model_dump_json().encode())
        os.replace(temporary, path)
        sync_folder(folder)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}, expected a place for a file") from None
