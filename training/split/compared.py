"""What else could be sent in a split's place: pictures, sounds or bytes, beside the pair."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from offramp.common.errors import printable
from offramp.training.data.datasets import Dataset
from offramp.training.split import classifier
from offramp.training.split.build import Built
from offramp.training.split.capture import capture
from offramp.training.split.photos import Normalise
from offramp.training.split.rivals import FORMATS, Comparison, compare, tune_on_pictures
from offramp.training.split.sound_rivals import compare_tensors
from offramp.training.split.taken import Taken
from offramp.training.split.work import Stage

if TYPE_CHECKING:
    from offramp.training.split.run import Display, Job


def compared(
    job: Job,
    made: classifier.Made,
    data: Dataset,
    built: Built,
    normalise: Normalise,
    display: Display,
    taken: Taken | None,
    digest: str,
) -> Comparison:
    """Measure what else could be sent, and the pair; digest: of the classifier's weights."""
    whole = classifier.module_logits(made.captured)
    if taken is not None:
        with display.bar("comparing with files") as bar:
            return compare_tensors(
                whole, taken, built.answers, built.payloads, say=display.say, tick=lambda *at: bar(*at)
            )
    rival, tuned = _rival(job, made, data, normalise, display, digest) if job.rival_minutes else (None, 0.0)
    with display.bar("comparing with pictures") as bar:
        done = iter(range(1, len(FORMATS) + 1))
        return compare(
            [whole] if rival is None else [whole, rival],
            normalise,
            data.test,
            built.answers,
            built.payloads,
            tuned=tuned,
            tick=lambda: bar(next(done), len(FORMATS)),
        )


def _rival(
    job: Job,
    made: classifier.Made,
    data: Dataset,
    normalise: Normalise,
    display: Display,
    digest: str,
) -> tuple[Callable[[Tensor], Tensor], float]:
    """A copy of the classifier that was tuned on pictures, and for how many epochs."""
    module = copy.deepcopy(made.module).requires_grad_(True)
    captured = capture(module, made.captured.shape, name=printable(job.model))
    identity = {"classifier": digest, "photos": data.sha256, "minutes": job.rival_minutes}
    stage = Stage(job.out / "work" / "rival", identity, display.say)
    with display.bar("a rival that knows pictures") as bar:
        epochs = tune_on_pictures(
            module,
            captured,
            data.train,
            normalise,
            flip=job.flip,
            seed=job.seed,
            stage=stage,
            minutes=job.rival_minutes,
            tick=lambda step, steps, loss: bar(step, steps, f"loss {loss:.3f}"),
        )
    return classifier.module_logits(captured), epochs
