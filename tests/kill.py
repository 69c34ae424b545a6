"""A training run that dies in the middle."""

import shutil
from pathlib import Path

import pytest
import torch

from offramp.training.data.datasets import Dataset
from offramp.training.loop import Trained, train
from offramp.training.progress import Epoch, Progress
from offramp.training.recipe import Recipe


class Killed(Exception):
    """In the place of SIGKILL."""


def before_the_checkpoint(stage: str, number: int = 1) -> Progress:
    """Dies when an epoch is done and not yet kept."""

    def after_epoch(epoch: Epoch) -> None:
        if (epoch.stage, epoch.number) == (stage, number):
            raise Killed

    return Progress(epoch=after_epoch)


def in_the_middle(stage: str, number: int) -> Progress:
    """Dies within an epoch, after its second step."""

    def after_batch(name: str, epoch: int, step: int, _steps: int) -> None:
        if (name, epoch, step) == (stage, number, 2):
            raise Killed

    return Progress(batch=after_batch)


def killed_and_resumed(
    recipe: Recipe, data: Dataset, checkpoints: Path, killed: Progress, *, resume: bool = False
) -> tuple[Trained, list[tuple[str, int]]]:
    """What a run ends with that went on from where ``killed`` ended another, and the epochs that it ran.

    resume: the one that is killed goes on from ``checkpoints`` itself.
    """
    with pytest.raises(Killed):
        train(recipe, data, checkpoints, progress=killed, resume=resume)
    # Nothing depends on what was drawn before.
    torch.manual_seed(99)
    torch.rand(7)
    again: list[Epoch] = []
    resumed = train(recipe, data, checkpoints, resume=True, progress=Progress(epoch=again.append))
    return resumed, [(epoch.stage, epoch.number) for epoch in again]


def ends_as_unbroken(recipe: Recipe, data: Dataset, begun: Path, killed: Progress) -> list[tuple[str, int]]:
    """The epochs of a run that went on from where ``killed`` ended another, once it has ended with the same
    bits as one that nothing broke. Both go on from the checkpoints in ``begun``."""
    whole_folder, broken_folder = begun.with_name("whole"), begun.with_name("broken")
    shutil.copytree(begun, whole_folder)
    shutil.copytree(begun, broken_folder)
    whole = train(recipe, data, whole_folder, resume=True)
    resumed, again = killed_and_resumed(recipe, data, broken_folder, killed, resume=True)
    assert resumed.epochs == whole.epochs
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    return again
