"""A training run that dies in the middle."""

from offramp.training.train import Epoch, Progress


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
