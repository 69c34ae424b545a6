"""One recipe from data to a bundle and its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from offramp.common.bundle.load import Bundle
from offramp.training.data.datasets import Dataset
from offramp.training.hardware import Hardware
from offramp.training.loop import train
from offramp.training.make_bundle import make_bundle
from offramp.training.progress import Clock, OutOfTime, Progress
from offramp.training.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """Everything that one run needs; ``say`` is called with what it is about to do."""

    recipe: Recipe
    text: str
    data: Dataset
    checkpoints: Path
    out: Path
    resume: bool
    hardware: Hardware
    clock: Clock
    progress: Progress
    say: Callable[[str], None]


def run(job: Job) -> Bundle | None:
    """Train, and write the bundle with its record; None in other processes than the main one.

    Raises what `train` does.
    """
    hardware = job.hardware
    trained = train(
        job.recipe,
        job.data,
        job.checkpoints,
        resume=job.resume,
        hardware=hardware,
        clock=job.clock,
        progress=job.progress,
    )
    if hardware.any(job.clock.over()):
        raise OutOfTime
    bundle = None
    if hardware.is_main:
        job.say("quantizing, exporting and measuring")
        bundle, _ = make_bundle(job.out, job.recipe, job.text, job.data, trained, hardware)
    hardware.wait()
    return bundle
