"""A stage's checkpoint: all that the rest of a run depends on, in one file.

Written after every epoch (on a GPU, every few seconds), so that a run that was killed and resumed ends with
the same bits as one that was not (on one CPU, with one number of threads). A finished stage's is its best
model alone, a quarter as long.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from offramp.common.errors import ConfigError


def write_checkpoint(path: Path, state: Any) -> None:
    """Replace a checkpoint; a kill while writing leaves the previous one whole."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU.

    Raises:
        ConfigError: a file that cannot be read, or one of another identity.
    """
    state = read_any(path)
    if state.get("identity") != identity or "epochs" not in state:
        raise ConfigError(
            f"checkpoint {path} is of another recipe, data set or release than its name says: remove it"
        )
    return state


def read_any(path: Path) -> dict[str, Any]:
    """A checkpoint of whatever recipe. Raises ConfigError for a file that cannot be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"checkpoint {path} cannot be read: remove it to train this stage from the start"
        ) from error
    return state if isinstance(state, dict) else {}
