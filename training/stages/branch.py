"""The branch stage: the early exit alone, or a wider one in its place; all else stays, the code too."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from offramp.training.models.backbone import Backbone
from offramp.training.models.layers import folded
from offramp.training.models.split_model import SplitModel
from offramp.training.stages.stage import Plan, Stage, Task, Work
from offramp.training.stages.taught import TaughtRecipe, answers_loss


class BranchRecipe(TaughtRecipe):
    """The early exit alone learns; all else stays, the transmitted activation too.

    ``widths``: a new early exit takes the old one's place, with as many 3x3 convolutions of stride 2 of its
    own before its pool, of so many channels; none: the old one learns on.
    """

    widths: Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(max_length=4)] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _learnt(self) -> Self:
        if self.widths and not self.epochs:
            raise ValueError("widths: expected none where the new early exit has no epochs to learn in")
        return self


class BranchTask(Task):
    """The early exit's answers. A part of this module, and so of its checkpoint, is the early exit only.

    Args:
        model: whose early exit learns.
        settings: the stage's own.
        teacher: the unsplit model; stays as it is.
    """

    def __init__(self, model: SplitModel, settings: BranchRecipe, teacher: Backbone) -> None:
        super().__init__()
        self.branch, self.settings = model.branch.requires_grad_(True), settings
        frozen = folded(model)
        frozen.branch = self.branch
        # In lists: no parts of this module.
        self._model, self._teacher = [frozen], [folded(teacher)]

    def optimizer(self, learning_rate: float, decay: float, momentum: float) -> torch.optim.Optimizer:
        """As in the other stages that are not the paper's."""
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=decay)

    def answers(self, early: Tensor, images: Tensor, labels: Tensor, unlabelled: int = 0) -> Tensor:
        """Loss of early logits [N, K] for images of which the first ``unlabelled`` have no label."""
        settings = self.settings
        # Two thirds of a step's arithmetic are the teacher's: it answers only what it is asked.
        asked = images if settings.distill > 0 else images[:unlabelled]
        with torch.no_grad():
            taught = self._teacher[0](asked) if len(asked) else early[:0]
        if len(asked) < len(images):
            taught = torch.cat([taught, torch.zeros_like(early[len(asked) :])])
        return answers_loss(early, labels, taught, settings.distill, settings.temperature, unlabelled)

    def forward(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> Tensor:
        _, early = self._model[0].head(images)
        return self.answers(early, images, labels, self.settings.unlabelled(len(images)))

    def sums(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        _, early = self._model[0].head(images)
        return {
            "early": float((early.argmax(1) == labels).sum()),
            "loss": float(self.answers(early, images, labels)) * len(labels),
        }

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        return {"score": -means["loss"], "early": means["early"]}


class BranchStage(Stage[BranchRecipe]):
    """After the regularised stage, with or without a code."""

    name, place, stream = "branch", 40, 5 << 32
    recipe = BranchRecipe
    default = BranchRecipe(epochs=0, learning_rate=2e-3)
    optional = True

    def prepare(self, plan: Plan, work: Work) -> None:
        widths = self.settings(plan).widths
        if widths:
            torch.manual_seed(plan.seed)
            work.model.widen_exit(widths)

    def task(self, plan: Plan, work: Work) -> BranchTask:
        return BranchTask(work.model, self.settings(plan), work.unsplit)


STAGE = BranchStage()
