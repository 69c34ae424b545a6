"""What a split takes where that is no picture: the data, how they become numbers, how they are varied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from offramp.common.errors import ConfigError
from offramp.common.inputs.spec import TensorInput, WavFile
from offramp.training.data.datasets import Dataset, pasted
from offramp.training.data.photos import Columns
from offramp.training.data.tensors import Kind, Options, Originals, kind_of, read_tensors
from offramp.training.split.photos import Normalise

if TYPE_CHECKING:
    from offramp.training.split.run import Display, Job

_SHIFT = 0.1
"""Of a sound's frames: how far it is moved in time, each way."""
_GAIN = 6.0
"""Decibels by which a sound gets louder or softer, each way."""
_NOISE = 0.1
"""Deviation of the noise that is added, of the inputs' own."""
_MASKED = (0.2, 0.15)
"""Most of the bands, and of the frames, of which one stretch is hidden (SpecAugment, Park et al. 2019)."""


class Varied(Normalise):
    """As `Normalise`, for tensors, with changes that leave a tensor what it is: noise, and for a sound also
    another place in time, another loudness and a hidden stretch of bands and of frames."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], spec: TensorInput) -> None:
        low, high = spec.range
        super().__init__(
            tuple((each - low) / (high - low) for each in mean), tuple(each / (high - low) for each in std)
        )
        self._sound = isinstance(spec.file, WavFile)
        self._gain = _GAIN / std[0]

    def augmented(self, x: Tensor, *, flip: bool, mix: bool, generator: torch.Generator) -> Tensor:
        """Normalised tensors [N, …] to the same shape; ``flip`` is of photos alone."""

        def drawn(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        ones = [1] * (x.ndim - 1)
        if self._sound:
            count, _, bands, frames = x.shape
            moved = ((2 * drawn(count, 1) - 1) * _SHIFT * frames).round().long()
            place = (torch.arange(frames) + moved).clamp_(0, frames - 1)
            x = x.gather(3, place[:, None, None, :].expand_as(x))
            x = x + (2 * drawn(count, *ones) - 1) * self._gain
            for axis, size, most in ((2, bands, _MASKED[0]), (3, frames, _MASKED[1])):
                length, start = drawn(count, 1) * most * size, drawn(count, 1) * size
                at = torch.arange(size)
                hidden = (at >= start) & (at < start + length)
                x = x.masked_fill(hidden[:, None, :, None] if axis == 2 else hidden[:, None, None, :], 0.0)
        x = x + _NOISE * torch.randn(x.shape, generator=generator)
        if mix and x.ndim == 4 and float(drawn(1)) < 0.5:
            x = pasted(x, generator=generator)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@dataclass(frozen=True)
class Taken:
    """Data that are no pictures, read and divided.

    normalise: to what the model expects; notes: a sentence each; originals: the files.
    """

    spec: TensorInput
    data: Dataset
    normalise: Normalise
    notes: tuple[str, ...]
    originals: Originals


def take_for(job: Job, display: Display) -> Taken | None:
    """Read a job's data before all else, if they are no pictures: they say what the model takes."""
    with display.bar("reading") as bar:

        def counted(total: int) -> Callable[[], None]:
            done = iter(range(1, total + 1))
            return lambda: bar(next(done), total)

        taken = take(
            job.data,
            job.input,
            job.tensors,
            seed=job.seed,
            columns=job.columns,
            counted=counted,
            skipped=(lambda line: display.say(f"left out: {line}")) if job.skip_bad else None,
        )
    if taken is not None:
        data = taken.data
        display.say(
            f"{data.name}: {len(data.classes)} classes; {len(data.train):,} {taken.spec.what} to train, "
            f"{len(data.validation):,} to choose, {len(data.test):,} to test"
        )
        for note in taken.notes:
            display.say(note)
    return taken


def take(
    path: Path,
    kind: Kind,
    options: Options,
    *,
    seed: int,
    columns: Columns,
    counted: Callable[[int], Callable[[], object]],
    skipped: Callable[[str], object] | None,
) -> Taken | None:
    """Read data that are no pictures; None where they are.

    The arguments are those of `read_tensors`; mean and std are of the data to train where options do not say.

    Raises:
        ConfigError: options of another kind of input, or one of mean and std alone.
        DataError: data that cannot be used.
    """
    known = kind_of(path, columns) if kind == "auto" else kind
    if known == "picture":
        if options != Options():
            raise ConfigError(f"{path}: holds pictures; flags of sounds and tensors say nothing of them")
        return None
    mean, std = options.mean, options.std
    if (mean is None) != (std is None):
        raise ConfigError("--value-mean and --value-std: expected both or neither")
    found = read_tensors(path, known, options, seed=seed, columns=columns, counted=counted, skipped=skipped)
    spec, data, notes = found.spec, found.photos.data, list(found.photos.notes)
    if mean is None or std is None:
        low, high = spec.range
        step = (high - low) / 255
        values = data.train.images
        mean = (low + step * float(values.mean(dtype=np.float64)),)
        std = (max(step, step * float(values.std(dtype=np.float64))),)
        notes.append(
            f"the model gets values less {mean[0]:.4g}, over {std[0]:.4g}: the data's own (--value-mean and "
            "--value-std)"
        )
    if len(mean) not in (1, spec.shape[0]) or len(mean) != len(std):
        raise ConfigError(
            f"--value-mean and --value-std: {len(mean)} and {len(std)} numbers; expected one, or one for "
            f"each of {spec.shape[0]} channels"
        )
    return Taken(spec, data, Varied(mean, std, spec), tuple(notes), found.originals)
