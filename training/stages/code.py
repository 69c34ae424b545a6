"""The code stage: encoder and decoder of a bottleneck learn to hand on the activation in few bits.

A joint stage that began with random ones would first undo what the tail has learned. What counts is what the
activation becomes a few blocks further on: bits that make no difference there are not worth sending.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.fields import Weight
from offramp.training.models.layers import Flow
from offramp.training.models.split_model import Outputs, SplitModel
from offramp.training.stages.rate import CodeTask
from offramp.training.stages.stage import Plan, Stage, StageRecipe, Work, decisive


class CodeRecipe(StageRecipe):
    """The stage in which a bottleneck, if there is one, learns to hand on the activation; all else stays.

    ``rate`` is the loss of one KB of estimated payload for each image, where the variance of what has to come
    out right is 1: that is the output of position ``at`` behind the split, or, None, the activation itself.
    """

    rate: Weight = 0.0
    at: Annotated[int, Field(ge=1)] | None = None


class HandOnTask(CodeTask):
    """The error of what the decoded activation becomes, and estimated bytes."""

    def __init__(self, model: SplitModel, rho: list[float] | None, settings: CodeRecipe) -> None:
        super().__init__(model, head=0.0, tail=0.0, rate=settings.rate)
        self._early_weight = (rho or [0.5, 0.5])[0]
        self._at = settings.at or model.exit_number

    def forward(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> Tensor:
        activation = self.activation(images)
        code, early = self.model.encode(activation)
        loss = self._error(self.model.decode(code), activation) + self.cost(code, measure=measure)
        if self.model.exit_behind:
            loss = loss + self._early_weight * nn.functional.cross_entropy(early, labels)
        return loss

    def _error(self, decoded: Tensor, activation: Tensor) -> Tensor:
        """Mean squared error of what they become, in units of each channel's variance in this batch."""
        axes = (0, 2, 3)
        with torch.no_grad():
            wanted = self._further(activation)
        error = (self._further(decoded) - wanted).square().mean(axes)
        return (error / wanted.var(axes).clamp_min(1e-6)).mean()

    def _further(self, activation: Tensor) -> Tensor:
        (model,) = self._head
        return model.backbone.run(Flow(activation), model.exit_number + 1, self._at + 1).x.float()

    def measured(self, images: Tensor, labels: Tensor) -> tuple[Outputs, Tensor]:
        activation = self.activation(images)
        code, early = self.model.encode(activation)
        decoded = self.model.decode(code)
        return Outputs(early, self.model.finish(decoded), code), self._error(decoded, activation)

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        found = super().figures(means)
        found["error"] = found.pop("loss")
        return found


class CodeStage(Stage[CodeRecipe]):
    """The bottleneck joins."""

    name, place, stream = "code", 20, 1 << 32
    recipe = CodeRecipe
    default = CodeRecipe(epochs=0, learning_rate=2e-3)
    of_code = True

    def check_model(self, plan: Plan, model: SplitModel) -> None:
        at, last = self.settings(plan).at, len(model.backbone.blocks) - 1
        if at is not None and not model.exit_number <= at <= last:
            raise ConfigError(f"train.code.at: expected {model.exit_number} (the exit) … {last}, got {at}")

    def decides(self, plan: Plan) -> list[object]:
        return [decisive(self.settings(plan)), decisive(plan.model)]

    def prepare(self, plan: Plan, work: Work) -> None:
        # The noise is the same whether or not the stages before were trained in this call.
        torch.manual_seed(plan.seed)
        assert work.narrow is not None and plan.model.bottleneck is not None
        work.model.insert(work.narrow, exit_behind=plan.model.bottleneck.exit_behind)

    def task(self, plan: Plan, work: Work) -> HandOnTask:
        return HandOnTask(work.model, plan.rho, self.settings(plan))


STAGE = CodeStage()
