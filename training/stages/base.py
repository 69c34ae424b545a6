"""The base stage: the backbone with its final exit only."""

from __future__ import annotations

import copy
from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from offramp.training.models.backbone import Backbone
from offramp.training.stages.stage import PapersTask, Plan, Stage, StageRecipe, Work


class BaseRecipe(StageRecipe):
    """The base stage, where images may be smaller at first: it has no early exit whose size they decide.

    ``sides`` are those of the images in the first epochs, one each; in the others images have their own size.
    """

    sides: list[Annotated[int, Field(ge=8)]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _whole_at_last(self) -> Self:
        if len(self.sides) >= max(1, self.epochs):
            raise ValueError("sides: expected fewer than epochs, so that the last ones see whole images")
        return self

    def side(self, epoch: int) -> int | None:
        return self.sides[epoch] if epoch < len(self.sides) else None


class BaseTask(PapersTask):
    """Cross-entropy of the final exit."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone

    def forward(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> Tensor:
        return nn.functional.cross_entropy(self.model(images), labels)

    def sums(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        return {"final": float((self.model(images).argmax(1) == labels).sum())}

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        return {"score": means["final"], **means}


class BaseStage(Stage[BaseRecipe]):
    """First of all; what it leaves teaches later ones."""

    name, place, stream = "base", 0, 0
    recipe = BaseRecipe

    def task(self, plan: Plan, work: Work) -> BaseTask:
        return BaseTask(work.model.backbone)

    def finish(self, work: Work) -> None:
        work.teacher = copy.deepcopy(work.model.backbone)


STAGE = BaseStage()
