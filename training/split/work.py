"""The working folder of ``offramp split``: what is kept of each stage, and whether it still fits.

A stage is identified by the values that decide its result. Each stage's identity includes the digest of the
one before it, so that a changed setting repeats that stage and those behind it, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from offramp.common.errors import ConfigError, printable
from offramp.common.files import replace_file
from offramp.training.checkpoint import write_checkpoint

KEPT = "stage.json"
SAVE_SECONDS = 30.0
"""Between two checkpoints."""


class Clock:
    """The time that a run may take; ``seconds`` None: as long as it likes."""

    def __init__(self, seconds: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self.seconds, self.began = now, seconds, now()

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return self._now() - self.began

    def left(self, until: float = 1.0) -> float:
        """Seconds until this share of the time is over, not below 0; infinite without a limit."""
        return float("inf") if self.seconds is None else max(0.0, until * self.seconds - self.spent)


class Stage:
    """One stage's files in a folder of its own."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        text = json.dumps(self.identity, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        changed = self._changed()
        if changed:
            say(f"{folder.name}: kept from a run with {changed}; begins again")
            for path in folder.iterdir():
                path.unlink()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder}: {error.strerror}; expected a folder to write to") from None
        replace_file(folder / KEPT, json.dumps(self.identity, indent=1).encode())

    def _changed(self) -> str:
        """Which values differ, in words; empty where there is nothing or it fits."""
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return ""
        try:
            kept = json.loads((self.folder / KEPT).read_bytes())
        except (OSError, ValueError):
            return "an unknown setting"
        if not isinstance(kept, dict):
            return "an unknown setting"
        names = [n for n in {**kept, **self.identity} if kept.get(n) != self.identity.get(n)]
        shown = [f"{n} {_short(kept.get(n))}, now {_short(self.identity.get(n))}" for n in names[:3]]
        return "; ".join(shown)

    def save(self, name: str, values: Any) -> None:
        """Keep tensors and plain values, so that a reader sees all or nothing of them."""
        write_checkpoint(self.folder / name, values)

    def load(self, name: str) -> Any | None:
        """What was kept under this name; None where nothing was. Raises ConfigError for a damaged file."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (
            OSError,
            RuntimeError,
            EOFError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
            KeyError,
        ) as error:
            reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise ConfigError(f"{path}: a damaged checkpoint ({reason}); remove it to begin again") from None

    @contextmanager
    def restoring(self, name: str) -> Iterator[None]:
        """Around what puts a checkpoint back. Raises ConfigError where it is of another code or release."""
        try:
            yield
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            # PyTorch names the module first, and then what is wrong.
            reason = printable(" ".join(str(error).split())[:160] or type(error).__name__)
            raise ConfigError(
                f"{self.folder / name}: a checkpoint that does not fit, as of another release ({reason}); "
                "remove it to begin again"
            ) from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:8]}…"
    return printable(text, 60)


class Pace:
    """How many steps a stage takes: fixed, or as many as its time allows, shortened where it runs late.

    ``progress`` goes from 0 to 1 and decides the learning rate; after every step it moves by its share of
    what is left, so that a stage that is shortened still ends its schedule.
    """

    def __init__(self, fixed: int | None, most: int) -> None:
        self.fixed, self.most = fixed, most
        self.step, self.progress = 0, 0.0
        self.steps = most if fixed is None else fixed

    def plan(self, seconds_a_step: float, left: float) -> None:
        """Set the number of steps by the time that is left; a fixed number stays."""
        if self.fixed is None and seconds_a_step > 0:
            affordable = left / seconds_a_step
            self.steps = int(min(self.most, self.step + max(0.0, affordable)))

    def advance(self) -> None:
        """One step is done."""
        self.step += 1
        remaining = self.steps - self.step
        self.progress = 1.0 if remaining <= 0 else self.progress + (1 - self.progress) / (remaining + 1)

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.steps

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"step": self.step, "progress": self.progress, "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.step, self.progress = int(state["step"]), float(state["progress"])
        if self.fixed is None:
            self.steps = int(state["steps"])


def seeded(seed: int, step: int) -> torch.Generator:
    """Random numbers that depend on the seed and the step alone; dropout draws from the global ones."""
    torch.manual_seed(((seed + 1) << 32) + step)
    return torch.Generator().manual_seed((seed << 32) + step)


def schedule(pace: Pace) -> float:
    """Of the learning rate: up over the first steps, then down as a cosine."""
    warm = max(1, min(50, pace.steps // 10))
    return min(1.0, (pace.step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * pace.progress))


class Pacer:
    """Measures what a step takes, and plans again every few of them."""

    EVERY = 10

    def __init__(self, pace: Pace, clock: Clock, until: float) -> None:
        self._pace, self._clock, self._until = pace, clock, until
        self._since, self._count = time.monotonic(), 0

    def after_step(self) -> None:
        """Call after each step; the first few decide how many there are."""
        self._count += 1
        if self._count == 2:
            # The first two warm caches up.
            self._since = time.monotonic()
        elif self._count > 2 and (self._count == 5 or self._count % self.EVERY == 0):
            each = (time.monotonic() - self._since) / (self._count - 2)
            self._pace.plan(each, self._clock.left(self._until))
