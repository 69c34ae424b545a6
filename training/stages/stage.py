"""What a stage of the schedule is: a section of the recipe, what is trained, and what decides how it ends.

A new stage is a new file in this folder with a ``STAGE`` in it (`schedule`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from offramp.training.data.datasets import Labelled
from offramp.training.fields import Section, Weight
from offramp.training.models.backbone import Backbone
from offramp.training.models.bottleneck import Bottleneck
from offramp.training.models.recipe import ModelRecipe
from offramp.training.models.split_model import SplitModel
from offramp.training.quantize.recipe import QuantizeRecipe


class StageRecipe(Section):
    """One training stage; the learning rate falls from this value to 0 along half a cosine."""

    epochs: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    images: Annotated[int, Field(ge=1)] | None = None
    """How many of the training images an epoch draws, others each time; None: all."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The smallest share of an image that the stage sees, blown up to the whole frame; 1: all of it."""
    weight_decay: Weight | None = None
    """The stage's own; None: that of ``[train]``."""

    def side(self, epoch: int) -> int | None:
        """Side of the images in an epoch, from 0; None: their own."""
        return None

    def unlabelled(self, count: int) -> int:
        """How many images of a batch, its first, have parts of others in them and so no label."""
        return 0

    def qualities(self) -> Sequence[int]:
        """Of WebP: images are seen as they are, or as it leaves them at one of these."""
        return ()


@dataclass(frozen=True)
class Plan:
    """What a recipe says to its stages."""

    seed: int
    model: ModelRecipe
    quantize: QuantizeRecipe
    rho: list[float] | None
    """Weights of the exits' losses; None: equal ones."""
    bins: int
    """Of the entropy's histogram, N_b."""
    sections: Mapping[str, StageRecipe]
    """By stage, in the order in which they run."""


@dataclass
class Work:
    """What the stages so far have left."""

    model: SplitModel
    narrow: Bottleneck | None
    """What the code stage puts at the split, if there is a code."""
    validation: Labelled
    teacher: Backbone | None = None
    """The unsplit model, once it is trained."""

    @property
    def unsplit(self) -> Backbone:
        """The unsplit model, which teaches."""
        assert self.teacher is not None
        return self.teacher


class Task(nn.Module, ABC):
    """What a stage trains: called with a batch it gives the loss, and its weights are those that checkpoints
    hold."""

    bits: Tensor | None = None
    """Entropy of the last batch's activation, bits per sample, where it was measured."""
    capturable = True
    """Whether a step can be a CUDA graph: the CPU waits for nothing in it."""

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> Tensor:
        """The loss of float32 images [N, 3, H, W] and labels [N], a scalar; ``measure``: ``bits`` too."""

    @abstractmethod
    def optimizer(self, learning_rate: float, decay: float, momentum: float) -> torch.optim.Optimizer:
        """For the weights that learn."""

    @abstractmethod
    def sums(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Figures of a validation batch, each summed over its images."""

    @abstractmethod
    def figures(self, means: dict[str, float]) -> dict[str, float]:
        """What an epoch reports, from means of `sums` over all images; ``score`` says which one is best."""


class PapersTask(Task):
    """A task of the paper's own schedule: all of its weights learn, by SGD."""

    def optimizer(self, learning_rate: float, decay: float, momentum: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.parameters(), lr=learning_rate, momentum=momentum, weight_decay=decay, nesterov=momentum > 0
        )


_Settings = TypeVar("_Settings", bound=StageRecipe)


class Stage(ABC, Generic[_Settings]):
    """One stage, which owns all that is its own."""

    name: str
    """Of its section in ``[train]``, in checkpoints and in records."""
    place: int
    """Where in the schedule: stages run by it."""
    stream: int
    """Added to the seed of the random numbers: those of one stage apart from another's, and of one seed apart
    from the next one's."""
    recipe: type[_Settings]
    default: _Settings | None = None
    """Its section where a recipe has none; None: every recipe has to have one."""
    of_code = False
    """Whether it exists only where a bottleneck is trained."""
    optional = False
    """Whether it is left out, with all that it changes, where it has no epochs."""
    samples_entropy = False
    """Whether the entropy of the activations is sampled within its epochs (Fig. 8)."""

    def settings(self, plan: Plan) -> _Settings:
        """Its section of a recipe."""
        section = plan.sections[self.name]
        assert isinstance(section, self.recipe)
        return section

    def present(self, plan: Plan) -> bool:
        """Whether a recipe has this stage."""
        if self.of_code and plan.model.bottleneck is None:
            return False
        return not self.optional or self.settings(plan).epochs > 0

    def check(self, plan: Plan) -> None:
        """Raises ValueError for settings that do not fit the rest of the recipe."""

    def check_model(self, plan: Plan, model: SplitModel) -> None:
        """Raises ConfigError for settings that do not fit the model, before anything is trained."""

    def builds_on(self, earlier: str, plan: Plan) -> bool:
        """Whether what an earlier stage of the recipe left has a part in how this one ends."""
        return True

    def decides(self, plan: Plan) -> list[object]:
        """What, beside the stages that it builds on, decides how it ends; as JSON values."""
        return [decisive(self.settings(plan))]

    def prepare(self, plan: Plan, work: Work) -> None:
        """Change the model's shape for this stage and all later ones."""

    @abstractmethod
    def task(self, plan: Plan, work: Work) -> Task:
        """What it trains."""

    def finish(self, work: Work) -> None:
        """Called when it is done and ``work.model`` is its best."""


# Where they do nothing they are left out: checkpoints older than these fields still fit.
_LATER_FIELDS: dict[str, object] = {
    "crop": 1,
    "cutmix": 0,
    "density": "channel",
    "distill_early": 0,
    "weight_decay": None,
}


def decisive(section: BaseModel) -> dict[str, Any]:
    """The fields of a section that decide how training ends, as JSON values."""
    return _without(section.model_dump())


def _without(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _LATER_FIELDS or _LATER_FIELDS[name] != value
    }
