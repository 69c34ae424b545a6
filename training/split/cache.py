"""What the frozen head makes of every training photo, computed once: activations and the teacher's logits.

    version 0 of each photo is the photo itself, the others are augmented
    activations.f16   float16 [versions · N, *shape], memory-mapped
    logits.f32        float32 [versions · N, K], memory-mapped; at the first cut alone
    done.json         how many chunks are complete

Chunk after chunk, each with random numbers of its own seed, so that it goes on after an interruption and ends
with the same bytes. Memory is one chunk's.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Labelled
from offramp.training.split.photos import BATCH, Normalise, fast
from offramp.training.split.work import Stage

MAX_BYTES = 8 << 30
_DONE = "done.json"
_HALF = 65_504.0
"""The largest float16."""


@dataclass(frozen=True)
class Cached:
    """Inputs and answers to learn from.

    activations: float16 [M, *shape]; logits: float32 [M, K].
    """

    activations: NDArray[np.float16]
    logits: NDArray[np.float32]

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Activations, float32, and logits at these positions, int64 [B]."""
        at = index.numpy()
        return torch.from_numpy(self.activations[at].astype(np.float32)), torch.from_numpy(self.logits[at])

    def sample(self, most: int = 2048) -> Tensor:
        """Activations of photos from all over, float32."""
        step = max(1, len(self.activations) // most)
        return torch.from_numpy(self.activations[::step].astype(np.float32))


@dataclass(frozen=True)
class Plan:
    """What to cache: versions of each photo, whether mirrored ones are among them, and the seed."""

    versions: int
    flip: bool
    seed: int


def versions_for(
    photos: int, shape: tuple[int, ...], *, seconds_a_photo: float, left: float, most: int = 8
) -> int:
    """How many versions of each photo time and the limit on disk space allow: 1 … most."""
    by_time = left / max(1e-9, seconds_a_photo * photos)
    by_space = MAX_BYTES / (2 * math.prod(shape) * photos)
    return int(max(1, min(most, by_time, by_space)))


@torch.inference_mode()
def fill(
    stage: Stage,
    head: Callable[[Tensor], Tensor],
    tail: Callable[[Tensor], Tensor],
    data: Labelled,
    normalise: Normalise,
    plan: Plan,
    *,
    shape: tuple[int, ...],
    classes: int,
    tick: Callable[[int, int], object] = lambda *_: None,
) -> Cached:
    """Compute what is missing; ``tick(done, total)`` is called after each chunk of photos.

    Args:
        head, tail: the frozen halves, in evaluation.
        shape: of the tensor between them.
        classes: K.

    Raises:
        ConfigError: not enough disk space, or activations that float16 cannot hold.
    """
    total, parts = plan.versions * len(data), math.ceil(len(data) / BATCH)
    files = (
        _File("activations.f16", np.float16, (total, *shape)),
        _File("logits.f32", np.float32, (total, classes)),
    )

    def compute(chunk: int, activations: NDArray[Any], logits: NDArray[Any]) -> int:
        version, part = divmod(chunk, parts)
        first = part * BATCH
        images = normalise(torch.from_numpy(data.images[first : first + BATCH]))
        if version:
            generator = torch.Generator().manual_seed((plan.seed << 32) + chunk)
            images = normalise.augmented(images, flip=plan.flip, mix=True, generator=generator)
        with fast():
            crossing = head(images)
            answer = tail(crossing).float()
        own = slice(version * len(data) + first, version * len(data) + first + len(images))
        activations[own], logits[own] = _checked(crossing), answer.numpy()
        return own.stop

    return Cached(*_in_chunks(stage, files, plan.versions * parts, compute, tick))


@torch.inference_mode()
def carry_on(
    stage: Stage,
    before: Cached,
    step: Callable[[Tensor], Tensor],
    *,
    shape: tuple[int, ...],
    tick: Callable[[int, int], object] = lambda *_: None,
) -> Cached:
    """The same at the next cut: what ``step`` makes of the activations before it, the code's errors included.

    The teacher's logits stay. Arguments and errors are those of `fill`.
    """
    total = len(before.logits)

    def compute(chunk: int, activations: NDArray[Any]) -> int:
        own = slice(chunk * BATCH, min(total, (chunk + 1) * BATCH))
        with fast():
            activations[own] = _checked(step(before.batch(torch.arange(own.start, own.stop))[0]))
        return own.stop

    file = _File("activations.f16", np.float16, (total, *shape))
    (activations,) = _in_chunks(stage, (file,), math.ceil(total / BATCH), compute, tick)
    return Cached(activations, before.logits)


@dataclass(frozen=True)
class _File:
    name: str
    dtype: type[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


def _in_chunks(
    stage: Stage,
    files: Sequence[_File],
    chunks: int,
    compute: Callable[..., int],
    tick: Callable[[int, int], object],
) -> Sequence[NDArray[Any]]:
    """The stage's files, from the first chunk that is not complete.

    compute: gets a chunk's number and the files' arrays, and returns how many rows there are now.
    """
    done = _done(stage, files)
    if not done:
        _require_space(stage, sum(file.nbytes for file in files))
    mode: Literal["r+", "w+"] = "r+" if done else "w+"
    arrays = [np.memmap(stage.folder / file.name, file.dtype, mode, shape=file.shape) for file in files]
    for chunk in range(done, chunks):
        rows = compute(chunk, *arrays)
        if chunk % 16 == 15 or chunk + 1 == chunks:
            for array in arrays:
                array.flush()
            (stage.folder / _DONE).write_text(json.dumps(chunk + 1))
        tick(rows, files[0].shape[0])
    return arrays


def _checked(crossing: Tensor) -> NDArray[np.float32]:
    crossing = crossing.float()
    if not bool((crossing.abs() <= _HALF).all()):
        raise ConfigError(f"the head's values pass {_HALF:,.0f}; expected a cut with smaller ones")
    return crossing.numpy()


def _require_space(stage: Stage, need: int) -> None:
    if need > (free := shutil.disk_usage(stage.folder).free):
        raise ConfigError(
            f"{stage.folder}: the activations take {need >> 20:,} MiB, {free >> 20:,} MiB are free; "
            "expected more space, or fewer --versions"
        )


def _done(stage: Stage, files: Sequence[_File]) -> int:
    try:
        found = json.loads((stage.folder / _DONE).read_bytes())
    except (OSError, ValueError):
        return 0
    there = all((stage.folder / file.name).exists() for file in files)
    return found if isinstance(found, int) and there else 0
